"""What the evaluation asks of a simulator: one interface for the embedded suite and for RoboTwin.

Vectors of 14 are ordered as RoboTwin's ``joint_action``: 6 joints and a gripper, first left, then right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")

JOINT_NAMES = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ACTION_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINT_NAMES)

# Joint ranges of the ViperX 300 in radians; the gripper runs from 0 (closed) to 1 (open).
_ARM_LOW = (-3.14158, -1.85005, -1.76278, -3.14158, -1.86750, -3.14158, 0.0)
_ARM_HIGH = (3.14158, 1.25664, 1.60570, 3.14158, 2.23402, 3.14158, 1.0)
ACTION_LOW = np.array(_ARM_LOW * 2, dtype=np.float32)
ACTION_HIGH = np.array(_ARM_HIGH * 2, dtype=np.float32)
ACTION_LOW.setflags(write=False)
ACTION_HIGH.setflags(write=False)


@dataclass(frozen=True)
class Observation:
    """What a policy sees: camera name -> uint8 (H, W, 3), and the measured joints (14,) float32."""

    images: dict[str, np.ndarray]
    state: np.ndarray


@dataclass(frozen=True)
class Demonstration:
    """One run of a scripted expert.

    Attributes:
        actions: (T, 14) float32, absolute joint targets, one per control step.
        mode: which of the admissible ways was chosen, such as "left"; "" where a task has only one.
        solved: whether the simulator accepted the episode as a success.
        reason: why not; "" when solved.
    """

    actions: np.ndarray
    mode: str
    solved: bool
    reason: str


class Simulator(Protocol):
    """A set of tasks whose episodes are a pure function of (task, seed, actions)."""

    control_hz: float

    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        ...

    def step_limit(self, task: str) -> int:
        """Control steps after which an episode without success has failed."""
        ...

    def instruction(self, task: str, seed: int, split: str = "unseen") -> str:
        """A paraphrase chosen by the seed; the splits "seen" and "unseen" share no sentence."""
        ...

    def reset(self, task: str, seed: int) -> None:
        """Starts an episode; renders nothing."""
        ...

    def plan(self, task: str, seed: int, mode: str | None = None) -> Demonstration:
        """Resets to (task, seed) and gives the scripted expert's actions without running them."""
        ...

    def expert(self, task: str, seed: int, mode: str | None = None) -> Demonstration:
        """Resets to (task, seed) and runs the scripted expert; ``mode=None`` draws the mode from the seed."""
        ...

    def observe(self, cameras: Sequence[str] = CAMERAS) -> Observation:
        """Renders the named cameras and reads the joints."""
        ...

    def step(self, action: np.ndarray) -> None:
        """Runs one control step towards absolute joint targets (14,); renders nothing.

        Raises:
            ValueError: the action has another shape, is not finite or leaves a joint's limits.
        """
        ...

    def success(self) -> bool:
        """Whether the episode has succeeded so far; once true, it stays true."""
        ...

    def mode(self) -> str:
        """Which mode the physics has shown so far; "" while undecided."""
        ...

    def truth(self) -> np.ndarray:
        """(3,) float32, the position of the task's object in metres (privileged)."""
        ...

    def close(self) -> None:
        """Frees rendering contexts and ends the episode."""
        ...


def check_action(action: np.ndarray, tolerance: float = 1e-4) -> np.ndarray:
    """Returns the action as float64 (14,), clipped by at most ``tolerance`` (float32 rounding) to the limits.

    Raises:
        ValueError: wrong shape, a value that is not finite, or one outside its joint's limits.
    """
    values = np.asarray(action, dtype=np.float64)
    if values.shape != (len(ACTION_NAMES),):
        raise ValueError(f"action: expected shape ({len(ACTION_NAMES)},), got {values.shape}")
    for name, value, low, high in zip(ACTION_NAMES, values, ACTION_LOW, ACTION_HIGH, strict=True):
        if not np.isfinite(value):
            raise ValueError(f"action: {name} is {value}; joint targets must be finite")
        if not low - tolerance <= value <= high + tolerance:
            raise ValueError(
                f"action: {name} is {value:.4f}, outside [{low:.4f}, {high:.4f}]; "
                "clip it to ACTION_LOW/ACTION_HIGH"
            )
    return np.clip(values, ACTION_LOW, ACTION_HIGH)
