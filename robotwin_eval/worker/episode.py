"""One episode: one simulator, one policy, RoboTwin's loop (`eval_policy.py`): chunk by chunk to the limit.

What happens depends on the job alone: task, seed, instruction, noise seed, how many actions of each chunk are
carried out, and how late chunks come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robotwin_eval.policy.protocol import (
    ChunkPolicy,
    NoiseKey,
    Observation,
    PolicyError,
    Reply,
    Request,
    check_reply,
)
from robotwin_eval.sim.base import ActionRefused, ActionSpace, MeasuringSimulator, Simulator
from robotwin_eval.worker.measures import episode_measures


class SimulatorFailure(RuntimeError):
    """The simulator raised: the episode says nothing about the policy.

    Attributes:
        machine: whether the machine is at fault (memory, files, a lost device), not this episode.
    """

    def __init__(self, message: str, *, machine: bool = False) -> None:
        super().__init__(message)
        self.machine = machine


class StateMismatch(ValueError):
    """The simulator's state has another length than the policy was trained with."""


@dataclass(frozen=True)
class EpisodeJob:
    """What one episode depends on.

    Attributes:
        task: name of the task.
        seed: seed of the episode.
        instruction: what the policy is told.
        execute: actions carried out of each chunk until the next one is asked for; None for all of them.
        noise_seed: the run's part of the key of the sampling noise.
        session: names the policy's memory that this episode uses.
        cameras: the policy's camera -> the simulator's; a camera not listed has the same name in both.
        record: keep frames for a film.
        state_dim: length of the state that the policy expects; None if it does not say.
        delay: control steps that pass between the view of a chunk and its first action. Meanwhile the robot
            carries out what is left of the running chunk, then holds its last target; actions of the new
            chunk for as many steps come too late. The first chunk of an episode is waited for. None: the
            world waits for every chunk, and the policy is told of no delay.
    """

    task: str
    seed: int
    instruction: str
    execute: int | None = None
    noise_seed: int = 0
    session: str = "episode"
    cameras: Mapping[str, str] = field(default_factory=dict)
    record: bool = False
    state_dim: int | None = None
    delay: int | None = None


@dataclass
class EpisodeOutcome:
    """How an episode went.

    Attributes:
        success: whether the simulator reported success within the step limit.
        steps: control steps carried out.
        mode: how the task was solved, "" if it was not.
        latencies: seconds of the inference of each chunk, as the policy reports them.
        batches: requests that shared each of these inferences, 1 if the policy does not say.
        execute: actions carried out of each chunk.
        clipped: action values that were outside the action space and were clipped.
        error: what the policy did wrong, "" for nothing.
        last_frame: (H, W, 3) uint8 of a failed episode; None otherwise.
        frames: pictures for the film, the first before any action.
        seconds: wall time of "reset", "simulation", "inference" and in "total".
        measures: name -> value, see `robotwin_eval.worker.measures`.
    """

    success: bool = False
    steps: int = 0
    mode: str = ""
    latencies: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    execute: int = 0
    clipped: int = 0
    error: str = ""
    last_frame: np.ndarray | None = None
    frames: list[np.ndarray] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)


# Told what the episode is about to do: "reset", "step" or "inference". A watchdog waits for it.
Beat = Callable[[str], None]


def run_episode(
    simulator: Simulator, policy: ChunkPolicy, job: EpisodeJob, *, beat: Beat = lambda phase: None
) -> EpisodeOutcome:
    """Runs one episode; the simulator's current one is lost.

    `beat` is called before every reset, simulator step and inference.

    Returns:
        The outcome. A `PolicyError`, an unusable chunk and an action that `step` refuses with `ActionRefused`
        end the episode as a failure with its reason in `error`.

    Raises:
        SimulatorFailure: the simulator raised anything else.
        StateMismatch: the policy cannot take this simulator's state.
        OSError: the policy could not be reached.
        ValueError: `job.execute` is not within the policy's horizon.
    """
    return _Run(simulator, policy, job, beat).run()


class _Run:
    def __init__(self, simulator: Simulator, policy: ChunkPolicy, job: EpisodeJob, beat: Beat) -> None:
        self.simulator, self.policy, self.job, self.beat = simulator, policy, job, beat
        self.outcome = EpisodeOutcome(
            execute=checked_execute(job.execute, policy.horizon),
            seconds={"reset": 0.0, "simulation": 0.0, "inference": 0.0, "total": 0.0},
        )
        sources = {camera: job.cameras.get(camera, camera) for camera in policy.cameras}
        has, optional = simulator.cameras(), getattr(policy, "optional_cameras", ())
        self.sources = {c: source for c, source in sources.items() if source in has or c not in optional}
        self.executed = 0
        self.carried_out: list[np.ndarray] = []
        self.borders: list[int] = []
        self.replies: list[Reply] = []
        self.space: ActionSpace
        self.limit = 0

    def run(self) -> EpisodeOutcome:
        began = time.perf_counter()
        self._simulate("reset", "reset", self._reset)
        try:
            self._act()
        except PolicyError as error:
            self.outcome.error = str(error)
        self._simulate("step", "simulation", self._finish)
        self.outcome.seconds["total"] = time.perf_counter() - began
        return self.outcome

    def _act(self) -> None:
        """Carries out chunk after chunk; `place` is the next action in the running one."""
        chunk, place = self._chunk(), 0
        while not self._over:
            if place < self.outcome.execute:
                self._carry_out(chunk[place])
                place += 1
                continue
            self.executed = place
            coming = self._chunk()
            late = min(self.job.delay or 0, len(chunk) - place)
            for step in range(self.job.delay or 0):
                if self._over:
                    return
                self._carry_out(chunk[place + step] if step < late else self.carried_out[-1])
            chunk, place = coming, late
            self.borders.append(len(self.carried_out))

    @property
    def _over(self) -> bool:
        return self.outcome.success or self.outcome.steps >= self.limit

    def _simulate(self, phase: str, part: str, call: Callable[[], Any]) -> Any:
        """Calls the simulator, counts its time and turns its exceptions into ours."""
        self.beat(phase)
        began = time.perf_counter()
        try:
            return call()
        except PolicyError:
            raise
        except Exception as error:
            job = self.job
            raise SimulatorFailure(
                f"task {job.task!r} seed {job.seed} after {self.outcome.steps} steps: "
                f"{type(error).__name__}: {error}",
                machine=isinstance(error, (OSError, MemoryError)),
            ) from error
        finally:
            self.outcome.seconds[part] += time.perf_counter() - began

    def _reset(self) -> None:
        self.space = self.simulator.action_space()
        self.simulator.reset(self.job.task, self.job.seed)
        self.limit = self.simulator.step_limit(self.job.task)
        self._film()

    def _observe(self) -> Observation:
        seen = self.simulator.observe(tuple(dict.fromkeys(self.sources.values())))
        return Observation({name: seen.images[source] for name, source in self.sources.items()}, seen.state)

    def _chunk(self) -> np.ndarray:
        """Asks for the next chunk; (H, A) float64."""
        job, outcome = self.job, self.outcome
        observation: Observation = self._simulate("step", "simulation", self._observe)
        if job.state_dim is not None and observation.state.shape != (job.state_dim,):
            raise StateMismatch(
                f"state: the simulator's has shape {observation.state.shape}, "
                f"the policy was trained with ({job.state_dim},)"
            )
        index = len(outcome.latencies)
        key = NoiseKey(job.noise_seed, job.task, job.seed, index)
        delay = job.delay or 0
        request = Request(
            session=job.session,
            observation=observation,
            instruction=job.instruction,
            key=key,
            reset=index == 0,
            executed=self.executed,
            # The next chunk is asked for after so many, and is late.
            execute=min(max(outcome.execute, delay) + delay, self.policy.horizon),
            delay=job.delay,
        )
        self.beat("inference")
        began = time.perf_counter()
        try:
            replies = self.policy.infer([request])
        except PolicyError as error:
            raise PolicyError(f"chunk {index}: {error}") from error
        finally:
            outcome.seconds["inference"] += time.perf_counter() - began
        if len(replies) != 1:
            raise PolicyError(f"chunk {index}: {len(replies)} replies to one request")
        actions = check_reply(replies[0], request, self.policy.horizon, len(self.space.names))
        outcome.latencies.append(float(replies[0].seconds))
        outcome.batches.append(replies[0].batch)
        self.replies.append(replies[0])
        return actions

    def _carry_out(self, wanted: np.ndarray) -> None:
        action = np.clip(wanted, self.space.low, self.space.high)
        self.outcome.clipped += int((action != wanted).sum())
        self._simulate("step", "simulation", lambda: self._step(action))
        self.outcome.steps += 1
        self.carried_out.append(action)
        self._simulate("step", "simulation", self._after_step)

    def _step(self, action: np.ndarray) -> None:
        try:
            self.simulator.step(action)
        except ActionRefused as error:
            raise PolicyError(f"step {self.outcome.steps}: action refused: {error}") from error

    def _after_step(self) -> None:
        self.outcome.success = bool(self.simulator.success())
        self._film()

    def _film(self) -> None:
        if self.job.record:
            self.outcome.frames.append(self._picture())

    def _picture(self) -> np.ndarray:
        camera = next(iter(self.sources.values()), None) or self.simulator.cameras()[0]
        return np.array(self.simulator.observe((camera,)).images[camera], dtype=np.uint8)

    def _finish(self) -> None:
        own = self.simulator.measures() if isinstance(self.simulator, MeasuringSimulator) else {}
        self.outcome.measures = episode_measures(own, self.carried_out, self.borders, self.replies)
        if self.outcome.success:
            self.outcome.mode = self.simulator.mode()
        else:
            self.outcome.last_frame = self._picture()


def checked_execute(execute: int | None, horizon: int) -> int:
    """Returns how many actions of a chunk are carried out.

    Raises:
        ValueError: not within 1..horizon.
    """
    if execute is None:
        return horizon
    if not 1 <= execute <= horizon:
        raise ValueError(f"execute: expected 1..{horizon} (the policy's horizon), got {execute}")
    return execute
