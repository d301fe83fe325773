"""Runs episodes: several simulators in one process, in lock step, so that one inference call serves them all.

An episode depends on its task, its seed and the run seed alone: neither on the number of simulators, nor on
which episodes ran beside it, nor on a restart.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from robotwin_eval.protocol import (
    ChunkPolicy,
    NoiseKey,
    PolicyError,
    Reply,
    Request,
    check_policy,
    check_reply,
)
from robotwin_eval.results import EpisodeResult
from robotwin_eval.sim.base import Simulator


class SimulatorError(RuntimeError):
    """A simulator failed twice on the same episode."""


@dataclass(frozen=True)
class Episode:
    """One episode to run: a task, the seed to reset with, and the instruction to give."""

    task: str
    seed: int
    instruction: str


@dataclass(frozen=True)
class Film:
    """Frames of one episode.

    Attributes:
        policy: Name of the policy.
        task: Name of the task.
        seed: Seed of the episode.
        success: Whether it succeeded.
        hz: Frames a second of simulated time.
        frames: (H, W, 3) uint8 each, the first before any action.
    """

    policy: str
    task: str
    seed: int
    success: bool
    hz: float
    frames: tuple[np.ndarray, ...]


@dataclass
class _Slot:
    """One simulator and the episode that it is running, None between episodes."""

    session: str
    simulator: Simulator | None = None
    episode: Episode | None = None
    attempt: int = 1
    limit: int = 0
    steps: int = 0
    executed: int = 0
    latencies: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)

    def close(self) -> None:
        if self.simulator is not None:
            with contextlib.suppress(Exception):  # a simulator that crashed may also fail to close
                self.simulator.close()
        self.simulator = None


@dataclass(frozen=True)
class _Outcome:
    """How an episode ended."""

    success: bool = False
    mode: str = ""
    error: str = ""
    error_source: str = ""


def _ask(policy: ChunkPolicy, requests: Sequence[Request]) -> list[tuple[Reply, int] | PolicyError]:
    """Ask for all chunks at once; where that fails, one by one, so that only the guilty episode fails."""
    try:
        replies = policy.infer(requests)
        if len(replies) != len(requests):
            raise PolicyError(
                f"policy {policy.name!r} gave {len(replies)} replies to {len(requests)} requests"
            )
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if len(requests) > 1:
            return [_ask(policy, [request])[0] for request in requests]
        key = requests[0].key
        failure = PolicyError(
            f"task {key.task!r} seed {key.episode_seed} chunk {key.chunk}: {type(error).__name__}: {error}"
        )
        failure.__cause__ = error
        return [failure]
    return [(reply, len(requests)) for reply in replies]


class _Rollout:
    """State of one call of :func:`run_episodes`."""

    def __init__(
        self,
        make_sim: Callable[[], Simulator],
        policy: ChunkPolicy,
        run_seed: int,
        execute: int,
        limits: tuple[np.ndarray, np.ndarray] | None,
        record: Collection[Episode],
        film_camera: str,
        film_every: int,
        finish: Callable[[_Slot, _Outcome], None],
    ) -> None:
        self.make_sim, self.policy, self.run_seed, self.execute = make_sim, policy, run_seed, execute
        self.limits, self.record, self.film_camera, self.film_every = limits, record, film_camera, film_every
        self.finish = finish
        self.waiting: deque[tuple[Episode, int]] = deque()

    def start(self, slot: _Slot, episode: Episode, attempt: int) -> None:
        slot.episode, slot.attempt = episode, attempt
        slot.steps = slot.executed = 0
        slot.latencies, slot.batches, slot.frames = [], [], []
        try:
            if slot.simulator is None:
                slot.simulator = self.make_sim()
            slot.simulator.reset(episode.task, episode.seed)
            slot.limit = slot.simulator.step_limit(episode.task)
            self._film(slot)
        except Exception as error:
            self._crashed(slot, error)

    def request(self, slot: _Slot) -> Request | None:
        assert slot.simulator is not None
        assert slot.episode is not None
        try:
            observation = slot.simulator.observe(self.policy.cameras)
        except Exception as error:
            self._crashed(slot, error)
            return None
        key = NoiseKey(self.run_seed, slot.episode.task, slot.episode.seed, len(slot.latencies))
        return Request(
            slot.session,
            observation,
            slot.episode.instruction,
            key,
            reset=not slot.latencies,
            executed=slot.executed,
        )

    def carry_out(self, slot: _Slot, request: Request, answer: tuple[Reply, int] | PolicyError) -> None:
        try:
            if isinstance(answer, PolicyError):
                raise answer
            reply, batch = answer
            actions = check_reply(reply, request, self.policy.horizon)
        except PolicyError as error:
            self._end(slot, _Outcome(error=str(error), error_source="policy"))
            return
        slot.latencies.append(float(reply.seconds))
        slot.batches.append(batch)
        try:
            outcome = self._steps(slot, actions[: self.execute])
        except Exception as error:
            self._crashed(slot, error)
            return
        if outcome is not None:
            self._end(slot, outcome)

    def _steps(self, slot: _Slot, actions: np.ndarray) -> _Outcome | None:
        simulator = slot.simulator
        assert simulator is not None
        if self.limits is not None:
            actions = np.clip(actions, *self.limits)
        slot.executed = 0
        for action in actions:
            try:
                simulator.step(action)
            except (
                ValueError
            ) as error:  # by its interface, a step refuses an action that the robot cannot take
                return _Outcome(error=f"step {slot.steps}: action refused: {error}", error_source="policy")
            slot.steps += 1
            slot.executed += 1
            success = bool(simulator.success())
            last = success or slot.steps >= slot.limit
            if last or slot.steps % self.film_every == 0:
                self._film(slot)
            if last:
                return _Outcome(success=success, mode=simulator.mode() if success else "")
        return None

    def _film(self, slot: _Slot) -> None:
        if slot.episode in self.record:
            assert slot.simulator is not None
            slot.frames.append(np.array(slot.simulator.observe((self.film_camera,)).images[self.film_camera]))

    def _end(self, slot: _Slot, outcome: _Outcome) -> None:
        self.finish(slot, outcome)
        slot.episode = None

    def _crashed(self, slot: _Slot, error: Exception) -> None:
        """Try the episode once more in a fresh simulator; a second crash ends the run."""
        episode = slot.episode
        assert episode is not None
        slot.close()
        message = (
            f"simulator failed on task {episode.task!r} seed {episode.seed} after {slot.steps} steps: "
            f"{type(error).__name__}: {error}"
        )
        if slot.attempt == 1:
            warnings.warn(f"{message}; trying once more in a fresh simulator", stacklevel=4)
            slot.episode = None
            self.waiting.appendleft((episode, 2))
            return
        self._end(slot, _Outcome(error=message, error_source="simulator"))
        raise SimulatorError(message) from error


def _check_arguments(
    policy: ChunkPolicy,
    episodes: Sequence[Episode],
    execute: int | None,
    slots: int,
    record: Collection[Episode],
    film_every: int,
) -> int:
    """Return the number of actions to execute of each chunk."""
    check_policy(policy)
    seen: set[tuple[str, int]] = set()
    for episode in episodes:
        if (episode.task, episode.seed) in seen:
            raise ValueError(f"episode of task {episode.task!r} seed {episode.seed} is listed twice")
        seen.add((episode.task, episode.seed))
    missing = [episode for episode in record if episode not in episodes]
    if missing:
        raise ValueError(f"record names {missing[0]}, which is not among the episodes to run")
    if execute is not None and not 1 <= execute <= policy.horizon:
        raise ValueError(
            f"execute is {execute}, expected 1..{policy.horizon} (horizon of {policy.name!r}) or None"
        )
    for name, value in (("slots", slots), ("film_every", film_every)):
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    return policy.horizon if execute is None else execute


def run_episodes(
    make_sim: Callable[[], Simulator],
    policy: ChunkPolicy,
    episodes: Sequence[Episode],
    *,
    run_seed: int,
    execute: int | None = None,
    slots: int = 8,
    limits: tuple[np.ndarray, np.ndarray] | None = None,
    on_result: Callable[[EpisodeResult], None] | None = None,
    record: Collection[Episode] = (),
    on_film: Callable[[Film], None] | None = None,
    film_camera: str = "cam_high",
    film_every: int = 1,
    checkpoint: str = "",
    versions: Mapping[str, str] | None = None,
) -> list[EpisodeResult]:
    """Run a policy on episodes.

    Every round, each simulator that has an episode is observed, one ``infer`` serves all of them, and each
    carries out its chunk. Cameras are rendered only for the policy, once a chunk, and for films.

    Args:
        make_sim: Makes a simulator; called at most ``slots`` times, and again after a crash.
        policy: The policy. Its exceptions and unusable replies are failed episodes with the error recorded,
            except ``OSError`` and ``MemoryError``, which are raised.
        episodes: Episodes to run, each (task, seed) once.
        run_seed: Seed of the evaluation, part of every noise key.
        execute: Actions to carry out of each chunk before the next is asked for; None for the whole chunk.
        slots: Number of simulators, the largest batch.
        limits: (low, high), (A,) each: actions are clipped to them, as a robot's controller does. Without
            them an action that the simulator refuses (``ValueError`` from its ``step``) is a failure of the
            policy.
        on_result: Called with each result as its episode ends (e.g. ``ResultsLog.append``).
        record: Episodes to film.
        on_film: Called with each film, after its result.
        film_camera: Camera of the films.
        film_every: Control steps from frame to frame; the last step is always filmed.
        checkpoint: Hash of the weights, copied into the results.
        versions: Versions of what takes part, copied into the results.

    Returns:
        The results, in the order of ``episodes``.

    Raises:
        ValueError: An argument is out of range.
        SimulatorError: A simulator failed twice on one episode. That episode is first handed to ``on_result``
            with ``error_source="simulator"``: it is not counted, and a resumed run tries it again.
    """
    executed = _check_arguments(policy, episodes, execute, slots, record, film_every)
    results: dict[Episode, EpisodeResult] = {}

    def finish(slot: _Slot, outcome: _Outcome) -> None:
        episode = slot.episode
        assert episode is not None
        result = EpisodeResult(
            policy=policy.name,
            task=episode.task,
            seed=episode.seed,
            instruction=episode.instruction,
            success=outcome.success,
            steps=slot.steps,
            mode=outcome.mode,
            chunks=len(slot.latencies),
            latencies=tuple(slot.latencies),
            batches=tuple(slot.batches),
            error=outcome.error,
            error_source=outcome.error_source,
            execute=executed,
            run_seed=run_seed,
            checkpoint=checkpoint,
            versions=dict(versions or {}),
        )
        results[episode] = result
        if on_result is not None:
            on_result(result)
        if on_film is not None and slot.frames and result.counted:
            hz = slot.simulator.control_hz / film_every if slot.simulator is not None else 0.0
            on_film(Film(policy.name, episode.task, episode.seed, outcome.success, hz, tuple(slot.frames)))

    rollout = _Rollout(
        make_sim, policy, run_seed, executed, limits, set(record), film_camera, film_every, finish
    )
    rollout.waiting.extend((episode, 1) for episode in episodes)
    pool = [_Slot(session=f"slot-{index}") for index in range(min(slots, len(episodes)))]
    try:
        while rollout.waiting or any(slot.episode is not None for slot in pool):
            _round(rollout, pool)
    finally:
        for slot in pool:
            slot.close()
    return [results[episode] for episode in episodes]


def _round(rollout: _Rollout, pool: Sequence[_Slot]) -> None:
    """Fill idle simulators, ask once for all, carry out a chunk in each."""
    for slot in pool:
        if slot.episode is None and rollout.waiting:
            episode, attempt = rollout.waiting.popleft()
            rollout.start(slot, episode, attempt)
    asking: list[tuple[_Slot, Request]] = []
    for slot in pool:
        if slot.episode is not None and (request := rollout.request(slot)) is not None:
            asking.append((slot, request))
    if not asking:
        return
    answers = _ask(rollout.policy, [request for _, request in asking])
    for (slot, request), answer in zip(asking, answers, strict=True):
        rollout.carry_out(slot, request, answer)
