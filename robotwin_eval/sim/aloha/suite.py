"""The embedded suite: four bimanual tasks with gym-aloha's robot in MuJoCo, as a `Simulator`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from robotwin_eval.policy.protocol import Observation
from robotwin_eval.sim.aloha import robot
from robotwin_eval.sim.aloha.camera import Camera
from robotwin_eval.sim.aloha.gl import mujoco
from robotwin_eval.sim.aloha.kinematics import ArmKinematics, Unreachable
from robotwin_eval.sim.aloha.lift_bar import LiftBar
from robotwin_eval.sim.aloha.press_button import PressButton
from robotwin_eval.sim.aloha.robot import ACTION_HIGH, ACTION_LOW, ACTION_NAMES, CAMERAS, check_action
from robotwin_eval.sim.aloha.scene import compile_model
from robotwin_eval.sim.aloha.task import Task
from robotwin_eval.sim.aloha.transfer_cube import TransferCube
from robotwin_eval.sim.aloha.two_buttons import TwoButtons
from robotwin_eval.sim.base import ActionSpace, Demonstration

TASKS: dict[str, Task] = {
    task.name: task for task in (PressButton(), LiftBar(), TransferCube(), TwoButtons())
}

# Raised by every change to an episode: scenes, experts, referees, limits, pictures or sentences.
SUITE_VERSION = "1"
# Actions per second. The experts' timing counts in these steps.
CONTROL_HZ = 10.0
# What a seed decides; each has its own random stream, so that one more draw in one never changes another.
_SCENE, _MODE, _INSTRUCTION = range(3)
# Metres per second: in an episode of press_button 16 cm, from where a button starts to where others start.
MAX_GLIDE = 0.1
# The referee looks at the state every 10 ms.
_REFEREE_EVERY = 5


class _TaskScene:
    """One task's shared model with this simulator's own state, kinematics and camera."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model = compile_model(task.bodies, task.extra)
        self.data = mujoco.MjData(self.model)
        self.kinematics = ArmKinematics(self.model)
        self.referee = task.referee(self.model)
        self.control = np.zeros(self.model.nu)
        self.velocity = np.zeros(2)
        self.camera: Camera | None = None

    def picture(self, name: str, size: int, light: bool) -> np.ndarray:
        """Returns uint8 (size, size, 3); makes the rendering context on the first call."""
        if self.camera is None:
            self.camera = Camera(self.model, size, light)
        return self.camera.picture(self.data, name)


class AlohaSuite:
    """Four bimanual tasks on a CPU: press_button, lift_bar, transfer_cube, two_buttons.

    Episodes are a pure function of (task, seed, actions). Many suites can live in one process: they share the
    compiled models, which are never changed. Observe from one thread only, as an OpenGL context belongs to a
    thread.

    Args:
        image_size: height and width of a picture in pixels.
        light: draw the arms' convex hulls instead of their meshes, which is several times faster.
        glide: metres per second at which the button of press_button glides over the table, so that a view of
            it grows old. Experts act, and seeds are chosen, without it.

    Example:
        >>> suite = AlohaSuite()
        >>> suite.reset("press_button", seed=0)
        >>> suite.observe(["cam_high"]).images["cam_high"].shape
        (64, 64, 3)
        >>> suite.close()
    """

    # The measured joints, in the order of the actions.
    state_dim = len(ACTION_NAMES)
    state_names = ACTION_NAMES

    def __init__(self, image_size: int = 64, light: bool = True, glide: float = 0.0) -> None:
        if image_size < 1:
            raise ValueError(f"image_size: expected at least 1 pixel, got {image_size}")
        if not 0 <= glide <= MAX_GLIDE:
            raise ValueError(f"glide: expected 0 to {MAX_GLIDE} metres per second, got {glide}")
        self._glide = glide
        self.control_hz = CONTROL_HZ
        self._image_size = image_size
        self._light = light
        self._scenes: dict[str, _TaskScene] = {}
        self._scene: _TaskScene | None = None

    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(TASKS)

    def step_limit(self, task: str) -> int:
        """Control steps after which an episode without success has failed."""
        return _find(task).step_limit

    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras."""
        return CAMERAS

    def action_space(self) -> ActionSpace:
        """Absolute joint targets in radians, grippers from 0 (closed) to 1 (open)."""
        return ActionSpace(ACTION_NAMES, ACTION_LOW, ACTION_HIGH)

    def provenance(self) -> dict[str, str]:
        """The suite's version and everything that episodes and pictures depend on."""
        return {
            "suite": "aloha",
            "version": SUITE_VERSION,
            "image_size": str(self._image_size),
            "renderer": "light" if self._light else "full",
            "mujoco": mujoco.__version__,
            **({"glide": str(self._glide)} if self._glide else {}),
        }

    def resolve_split(self, split: str) -> str:
        """The kind of sentences of a split: "official" means "seen", all that the tiny base has learned."""
        return "seen" if split == "official" else split

    def instruction(
        self, task: str, seed: int, split: str = "unseen", info: Mapping[str, str] | None = None
    ) -> str:
        """A paraphrase chosen by the seed; `info` is not used, because the sentences have no blanks.

        Raises:
            ValueError: unknown task or split (other than "seen", for training, and "unseen").
        """
        sentences = {"seen": _find(task).seen, "unseen": _find(task).unseen}
        if split not in sentences:
            raise ValueError(f"split: expected one of {sorted(sentences)}, got {split!r}")
        return str(_stream(task, seed, _INSTRUCTION).choice(sentences[split]))

    def reset(self, task: str, seed: int) -> None:
        """Starts an episode: home pose with noise of 0.05 rad, the object where the seed puts it.

        Raises:
            ValueError: unknown task or negative seed, or nothing of the task can glide.
        """
        scene = self._enter(task)
        rng = _stream(task, seed, _SCENE)
        mujoco.mj_resetData(scene.model, scene.data)
        start = robot.home_action()
        for side in robot.SIDES:
            start[robot.arm_slice(side)] += rng.uniform(-robot.START_NOISE, robot.START_NOISE, 6)
        low, high = scene.model.actuator_ctrlrange.T
        scene.control = np.clip(robot.controls(start), low, high)
        scene.data.qpos[:16] = scene.control
        scene.data.ctrl[:] = scene.control
        scene.task.place(scene.model, scene.data, rng)
        scene.velocity[:] = 0.0
        if self._glide:
            scene.velocity[:] = self._glide * scene.task.heading(scene.data)
        mujoco.mj_forward(scene.model, scene.data)
        scene.referee = scene.task.referee(scene.model)
        scene.referee.update(scene.data)

    def plan(self, task: str, seed: int, mode: str | None = None) -> Demonstration:
        """Resets to (task, seed) and plans from the true state; runs nothing, so `solved` is False.

        `mode` is one of the task's modes; None draws it from the seed.

        Raises:
            ValueError: unknown task or mode.
        """
        self.reset(task, seed)
        scene = self._current()
        scene.velocity[:] = 0.0
        modes = scene.task.modes
        if mode is None:
            mode = str(_stream(task, seed, _MODE).choice(modes))
        if mode not in modes:
            raise ValueError(f"mode: {task} knows {modes}, got {mode!r}")
        try:
            actions = scene.task.plan(scene.kinematics, scene.data, mode)
        except Unreachable as error:
            return Demonstration(False, str(error), mode)
        return Demonstration(False, "not run", mode, actions=actions)

    def expert(self, task: str, seed: int, mode: str | None = None) -> Demonstration:
        """Plans for (task, seed) and runs the plan; arguments and errors as for `plan`."""
        plan = self.plan(task, seed, mode)
        for action in plan.actions:
            self.step(action)
        referee = self._current().referee
        if plan.actions.size == 0 or not referee.success:
            return replace(plan, reason=referee.reason() if plan.actions.size else plan.reason)
        return replace(plan, solved=True, reason="")

    def observe(self, cameras: Sequence[str] = CAMERAS) -> Observation:
        """Renders the named cameras and reads the measured joints.

        Raises:
            ValueError: unknown camera.
            RuntimeError: no episode was started, or rendering is impossible on this machine.
        """
        scene = self._current()
        for name in cameras:
            if name not in CAMERAS:
                raise ValueError(f"camera: expected one of {CAMERAS}, got {name!r}")
        images = {name: scene.picture(name, self._image_size, self._light) for name in cameras}
        return Observation(images, robot.measured_state(scene.data.qpos))

    def step(self, action: np.ndarray) -> None:
        """Runs one control step, the targets moving straight from the last action to this one.

        Raises:
            ActionRefused: the action has another shape, is not finite or leaves a joint's limits.
            RuntimeError: no episode was started.
        """
        scene = self._current()
        target = robot.controls(check_action(action))
        substeps = round(1.0 / (CONTROL_HZ * scene.model.opt.timestep))
        previous = scene.control
        for k in range(1, substeps + 1):
            scene.data.ctrl[:] = previous + (k / substeps) * (target - previous)
            if self._glide:
                scene.data.mocap_pos[0, :2] += scene.velocity * scene.model.opt.timestep
            mujoco.mj_step(scene.model, scene.data)
            if k % _REFEREE_EVERY == 0 or k == substeps:
                scene.referee.update(scene.data)
        scene.control = target

    def success(self) -> bool:
        """Whether the episode has succeeded so far; once true, it stays true."""
        return self._current().referee.success

    def mode(self) -> str:
        """The arm, or arms, that touched the button first; "" before that and for tasks with one mode."""
        return self._current().referee.mode

    def measures(self) -> dict[str, float]:
        """The task's error in millimetres so far, see the task's referee."""
        return self._current().referee.measures()

    def truth(self) -> np.ndarray:
        """(3,) float32 metres: the top of the button, the middle of the bar or cube; (6,) for two buttons."""
        scene = self._current()
        return np.array(scene.task.truth(scene.data), dtype=np.float32)

    def close(self) -> None:
        """Frees the rendering contexts and the episode; a later `reset` starts afresh."""
        for scene in self._scenes.values():
            if scene.camera is not None:
                scene.camera.close()
        self._scenes.clear()
        self._scene = None

    def _enter(self, task: str) -> _TaskScene:
        if task not in self._scenes:
            self._scenes[task] = _TaskScene(_find(task))
        self._scene = self._scenes[task]
        return self._scene

    def _current(self) -> _TaskScene:
        if self._scene is None:
            raise RuntimeError("no episode: call reset(task, seed) first")
        return self._scene


def _find(task: str) -> Task:
    if task not in TASKS:
        raise ValueError(f"task: expected one of {tuple(TASKS)}, got {task!r}")
    return TASKS[task]


def _stream(task: str, seed: int, purpose: int) -> np.random.Generator:
    if seed < 0:
        raise ValueError(f"seed: expected a number >= 0, got {seed}")
    return np.random.default_rng([seed, zlib.crc32(task.encode()), purpose])
