"""What makes up a task of the embedded suite: its bodies, its seeded start, its expert and its referee."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robotwin_eval.sim.aloha.gl import mujoco
from robotwin_eval.sim.aloha.kinematics import ArmKinematics
from robotwin_eval.sim.aloha.robot import SIDES, TIP_REACH, arm_slice, gripper_index, home_action


@dataclass(frozen=True)
class Waypoint:
    """Where one arm should be at the end of a control step.

    Attributes:
        step: control steps since the start of the episode.
        joints: (6,) radians.
        gripper: 0 (closed) to 1 (open).
    """

    step: int
    joints: np.ndarray
    gripper: float


def trajectory(plans: dict[str, Sequence[Waypoint]], steps: int) -> np.ndarray:
    """(steps, 14) joint targets through the waypoints of each arm: straight in joint space, smooth in time.

    Every plan starts at the noise-free home pose, not at the measured joints, so that a demonstration depends
    on the object alone. An arm without a plan stays at home. Each leg follows s(x) = 3x^2 - 2x^3.
    """
    home = home_action()
    actions = np.tile(home, (steps, 1))
    for side, plan in plans.items():
        columns = np.append(np.arange(14)[arm_slice(side)], gripper_index(side))
        previous, start = home[columns], 0
        for waypoint in plan:
            target = np.append(waypoint.joints, waypoint.gripper)
            x = np.arange(1, waypoint.step - start + 1) / (waypoint.step - start)
            blend = (3 * x**2 - 2 * x**3)[:, None]
            actions[start : waypoint.step, columns] = previous + blend * (target - previous)
            previous, start = target, waypoint.step
        actions[start:, columns] = previous
    return actions.astype(np.float32)


class Referee(ABC):
    """Watches the physics of one episode; once `success` is true, it stays true."""

    def __init__(self) -> None:
        self.success = False
        self.mode = ""

    @abstractmethod
    def update(self, data: mujoco.MjData) -> None:
        """Looks at the state after a few physics steps."""

    @abstractmethod
    def reason(self) -> str:
        """Why the episode has not succeeded so far."""

    def measures(self) -> dict[str, float]:
        """How far the episode is from perfect, see `MeasuringSimulator.measures`; nothing by default."""
        return {}


class Task(ABC):
    """One task; holds no state of an episode.

    Attributes:
        name: the task's name.
        step_limit: control steps of an episode.
        demonstration_steps: control steps of a demonstration, the same for every seed.
        modes: the admissible ways to solve it, ("",) if there is only one.
        bodies: MJCF of the task's bodies.
        extra: MJCF for the top level.
        seen, unseen: instruction sentences of the two splits.
    """

    name: str
    step_limit: int
    demonstration_steps: int
    modes: tuple[str, ...] = ("",)
    bodies: str
    extra: str = ""
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    @abstractmethod
    def place(self, model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
        """Draws where the object starts and writes it into `data`."""

    def heading(self, data: mujoco.MjData) -> np.ndarray:
        """The direction (2,), a unit vector over the table, in which the task's object glides.

        The object is the model's first mocap body.

        Raises:
            ValueError: the task has none.
        """
        raise ValueError(f"glide: nothing of {self.name} can glide; press_button's button can")

    @abstractmethod
    def plan(self, kinematics: ArmKinematics, data: mujoco.MjData, mode: str) -> np.ndarray:
        """The expert's joint targets (demonstration_steps, 14), from the state at the start.

        Raises:
            Unreachable: a gripper pose has no joint solution.
        """

    @abstractmethod
    def referee(self, model: mujoco.MjModel) -> Referee:
        """A fresh referee for one episode."""

    @abstractmethod
    def truth(self, data: mujoco.MjData) -> np.ndarray:
        """(3,) position of the object in metres, or one after the other if there are several."""


class FingerTips:
    """Reads where both grippers' fingers end from the state of the physics."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._body = {side: model.body(f"vx300s_{side}/gripper_link").id for side in SIDES}

    def of(self, data: mujoco.MjData, side: str) -> np.ndarray:
        """(3,) metres, the end of one gripper's fingers."""
        body = self._body[side]
        return data.xpos[body] + TIP_REACH * data.xmat[body].reshape(3, 3)[:, 0]


def arm_geoms(model: mujoco.MjModel, side: str) -> frozenset[int]:
    """Ids of all geoms of one arm."""
    return frozenset(g for g in range(model.ngeom) if model.geom(g).name.startswith(f"vx300s_{side}/"))


def touches(data: mujoco.MjData, first: frozenset[int], second: frozenset[int]) -> bool:
    """Whether any geom of one set is in contact with any of the other."""
    pairs = data.contact.geom[: data.ncon].tolist()
    return any((a in first and b in second) or (b in first and a in second) for a, b in pairs)
