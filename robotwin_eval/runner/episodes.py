"""Runs the episodes of a manifest that have no result yet and records each as it ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robotwin_eval.runner.dispatch import dispatch
from robotwin_eval.runner.planning import episodes_of, shard_of
from robotwin_eval.runner.pool import Outcome, Task, WorkerPool
from robotwin_eval.runner.progress import Board
from robotwin_eval.runner.settings import EarlyStop, RunSettings
from robotwin_eval.runner.worker_process import WorkerFailure
from robotwin_eval.runs.manifest import Manifest, ManifestEpisode
from robotwin_eval.runs.results import EpisodeResult
from robotwin_eval.runs.run_info import CLIPPED
from robotwin_eval.runs.sequential import EpisodeOrder, SequentialTest
from robotwin_eval.runs.store import RunError, RunStore
from robotwin_eval.runs.videos import encode_raw, raw_path

Key = tuple[str, int]
MakeBoard = Callable[[str, dict[str, int]], Board]


def run_pending(
    settings: RunSettings,
    store: RunStore,
    manifest: Manifest,
    pool: WorkerPool,
    videos: Path,
    make_board: MakeBoard,
    reference: Mapping[Key, bool] | None = None,
) -> None:
    """Runs what is left of a run.

    Args:
        settings: the run's.
        store: where results go; episodes that have one are not run.
        manifest: its episodes.
        pool: the workers.
        videos: folder of the films.
        make_board: makes the display.
        reference: (task, seed) -> success of the run that an early stop compares with; None for none.

    Raises:
        RunStopped: an episode failed too often without the policy's fault.
        RunError: something is wrong that another attempt would not change.
    """
    _Pending(settings, store, manifest, pool, videos, reference).run(make_board)


class _Pending:
    def __init__(
        self,
        settings: RunSettings,
        store: RunStore,
        manifest: Manifest,
        pool: WorkerPool,
        videos: Path,
        reference: Mapping[Key, bool] | None,
    ) -> None:
        self.settings, self.store, self.pool, self.videos = settings, store, pool, videos
        self.episodes: dict[Key, ManifestEpisode] = {
            (task, episode.seed): episode
            for task, episode in shard_of(
                episodes_of(manifest, store.info.tasks, settings.episodes), settings.shard
            )
        }
        self.filmed = {
            (task, episode.seed)
            for task in store.info.tasks
            for episode in manifest.tasks[task].accepted[: settings.videos]
        }
        # Results that came before their turn, if the order decides what counts.
        self.held: dict[Key, tuple[EpisodeResult, np.ndarray | None, int]] = {}
        self.early = self._early_stop(manifest, settings.early_stop, reference)
        order = list(self.episodes) if self.early is None else self.early.order
        done = store.done()
        if settings.keep_going:
            done |= {(row.task, row.seed) for row in store.results()}
        self.waiting = iter([key for key in order if key not in done])
        self.turn = iter([key for key in order if key not in done])
        self.due = next(self.turn, None)
        self.server = _server_of(settings, store.info.server)

    def run(self, make_board: MakeBoard) -> None:
        wanted = dict.fromkeys((task for task, _ in self.episodes), 0)
        for task, _ in self.episodes:
            wanted[task] += 1
        with make_board("episodes", wanted) as self.board:
            decided = False
            for result in self._recorded():
                self._show(result)
                decided = self._decided(result)
            if not decided:
                dispatch(
                    self.pool,
                    self._next,
                    self._take,
                    retries=self.settings.retries,
                    failed=self._failed,
                    server_wait=self.settings.server_wait,
                    waiting=self._waiting,
                    give_up=self._give_up if self.settings.keep_going else None,
                )
            if self.early is not None and self.early.test.decision:
                self._stopped(self.early.test)

    def _stopped(self, test: SequentialTest) -> None:
        assert self.settings.early_stop is not None
        stop = {
            **dataclasses.asdict(self.settings.early_stop),
            "decision": test.decision,
            "p_value": test.p_value,
            "stopped_after": test.stopped_after,
            "of": len(self.episodes),
        }
        self.store.stop_early(stop)
        self.board.note(
            f"stopped early after {test.stopped_after} of {len(self.episodes)} episodes: {test.decision}, "
            f"p = {test.p_value:.2g}"
        )

    def _early_stop(
        self, manifest: Manifest, stop: EarlyStop | None, reference: Mapping[Key, bool] | None
    ) -> EpisodeOrder | None:
        if stop is None:
            return None
        tasks = self.store.info.tasks
        test = SequentialTest(stop.null, alpha=stop.alpha, alternative=stop.alternative, tasks=len(tasks))
        seeds = {
            task: [episode.seed for episode in manifest.tasks[task].accepted[: self.settings.episodes]]
            for task in tasks
        }
        try:
            return EpisodeOrder(test, seeds, reference)
        except ValueError as error:
            raise RunError(f"early stop: {error}") from error

    def _recorded(self) -> list[EpisodeResult]:
        rows = [row for row in self.store.results() if row.counted and (row.task, row.seed) in self.episodes]
        if self.early is None:
            return rows
        place = {key: index for index, key in enumerate(self.early.order)}
        return sorted(rows, key=lambda row: place[row.task, row.seed])

    def _next(self) -> Task | None:
        key = next(self.waiting, None)
        if key is None:
            return None
        task, seed = key
        payload = {
            "job": "episode",
            "task": task,
            "seed": seed,
            "instruction": self.episodes[key].instruction,
            "execute": self.settings.execute,
            "delay": self.settings.delay,
            "noise_seed": self.settings.noise_seed,
            "record": str(raw_path(self.videos, task, seed).absolute()) if key in self.filmed else "",
            "server": self.server,
        }
        return Task(payload, key)

    def _take(self, outcome: Outcome) -> bool:
        """Records the result; if an early stop is possible, in the order of the episodes."""
        key, event = outcome.task.key, outcome.event
        self.held[key] = (
            self._result(outcome),
            _picture(event["last_frame"]),
            int(event["clipped"]),
        )
        if self.early is None:
            return self._write(key)
        while self.due in self.held:
            key, self.due = self.due, next(self.turn, None)
            if self._write(key):
                return True
        return False

    def _write(self, key: Key) -> bool:
        """Appends a held result; returns whether the run is decided."""
        result, frame, clipped = self.held.pop(key)
        if clipped:
            # Before the result: once that is recorded, the episode is over for good.
            text = f"{clipped} action values were outside the action space and were clipped"
            self.store.incident(*key, CLIPPED, text, result.attempts)
        self.store.append(result, frame)
        self._show(result)
        if key in self.filmed:
            encode_raw(self.videos, self.board.note)
        return self._decided(result)

    def _show(self, result: EpisodeResult) -> None:
        broken = result.error_source == "policy"
        if broken and result.task not in self.board.broken:
            self.board.note(
                f"{result.task} seed {result.seed}: ended as an error of the policy: {result.error}"
            )
        self.board.add(result.task, result.success, broken=broken)

    def _decided(self, result: EpisodeResult) -> bool:
        return self.early is not None and self.early.add(result.task, result.seed, result.success)

    def _failed(self, task: Task, failure: WorkerFailure) -> None:
        name, seed = task.key
        attempt = self.store.attempt_failed(name, seed, failure.kind, str(failure))
        self.board.note(f"{name} seed {seed}: {failure.kind}, attempt {attempt}: {failure}")

    def _waiting(self, task: Task, failure: WorkerFailure) -> None:
        name, seed = task.key
        self.store.incident(name, seed, failure.kind, str(failure), self._attempt(task))
        self.board.note(f"{name} seed {seed}: {failure.kind}: {failure}")

    def _attempt(self, task: Task) -> int:
        """Which attempt at its episode this is, those before a restart of the runner included."""
        return self.store.failed_attempts(*task.key) + 1

    def _give_up(self, task: Task, failure: WorkerFailure) -> None:
        """Records an episode as not counted."""
        horizon = int(self.store.info.server["horizon"])
        attempts = self.store.failed_attempts(*task.key)
        result = self._row(
            task,
            attempts=attempts,
            success=False,
            steps=0,
            mode="",
            chunks=0,
            latencies=(),
            batches=(),
            error=f"given up after {attempts} attempts (--keep-going): {failure}",
            error_source="simulator",
            execute=horizon if self.settings.execute is None else self.settings.execute,
        )
        self.store.append(result)
        self.board.note(f"{result.task} seed {result.seed}: {result.error}")

    def _result(self, outcome: Outcome) -> EpisodeResult:
        event = outcome.event
        return self._row(
            outcome.task,
            attempts=self._attempt(outcome.task),
            success=event["success"],
            steps=event["steps"],
            mode=event["mode"],
            chunks=len(event["latencies"]),
            latencies=tuple(event["latencies"]),
            batches=tuple(event["batches"]),
            error=event["error"],
            error_source="policy" if event["error"] else "",
            execute=event["execute"],
            seconds=dict(event["seconds"]),
            measures=dict(event["measures"]),
        )

    def _row(self, job: Task, **values: Any) -> EpisodeResult:
        (task, seed), info = job.key, self.store.info
        return EpisodeResult(
            policy=info.policy,
            task=task,
            seed=seed,
            instruction=self.episodes[task, seed].instruction,
            run_seed=info.run_seed,
            checkpoint=info.checkpoint,
            versions=dict(self.store.versions),
            config=info.config,
            **values,
        )


def _server_of(settings: RunSettings, metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "url": settings.policy_url,
        "token": settings.token,
        "timeout": settings.timeouts.inference,
        "fingerprint": str(metadata["policy"].get("fingerprint", "")),
        "cameras": dict(settings.cameras),
        "state_dim": metadata.get("state_dim") or None,
    }


def _picture(sent: Mapping[str, Any] | None) -> np.ndarray | None:
    if sent is None:
        return None
    return np.frombuffer(sent["data"], np.uint8).reshape(sent["shape"])
