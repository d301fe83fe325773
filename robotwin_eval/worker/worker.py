"""A worker: one simulator in its own process that does one job at a time for the runner.

Jobs come in and events go out as messages of `.pipe`. A job is answered by exactly one event "described",
"checked", "finished" or "failed". Beats before it say what the worker is about to do, so that a watchdog
notices a simulator that hangs, in Python or in C.
"""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import signal
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from robotwin_eval.files import replacing
from robotwin_eval.host import host
from robotwin_eval.policy.client import IncompatibleServer, RemotePolicy, ServerUnreachable
from robotwin_eval.policy.protocol import ChunkPolicy
from robotwin_eval.sim.base import Simulator
from robotwin_eval.sim.factory import SimulatorSpec, make_simulator
from robotwin_eval.worker.episode import (
    EpisodeJob,
    EpisodeOutcome,
    SimulatorFailure,
    StateMismatch,
    run_episode,
)
from robotwin_eval.worker.pipe import PipeClosed, Reader, send

# Beats of one phase are at least this many seconds apart; a new phase is announced at once.
BEAT_SECONDS = 0.2
# Kinds of failures. A wrong setup stops the runner: another attempt would fail as well.
SETUP, SIMULATOR, MACHINE = "setup", "simulator", "machine"
SERVER, UNREACHABLE = "server", "unreachable"

Connect = Callable[[Mapping[str, Any]], ChunkPolicy]


class JobFailed(RuntimeError):
    """A job without a result.

    Args:
        kind: "setup", "simulator" (it raised), "machine" (memory, files, a lost device), "server" (lost while
            it was needed) or "unreachable" (it does not answer).
        message: what happened.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def connect_remote(server: Mapping[str, Any]) -> ChunkPolicy:
    """Connects to the policy server of a job.

    Raises:
        JobFailed: it cannot be reached, or serves something other than when the run began.
    """
    try:
        policy = RemotePolicy(server["url"], token=server["token"], timeout=server["timeout"])
    except IncompatibleServer as error:
        raise JobFailed(SETUP, str(error)) from error
    found = policy.metadata.get("policy", {}).get("fingerprint", "")
    if found != server["fingerprint"]:
        policy.close()
        raise JobFailed(
            SETUP,
            f"{server['url']}: the server has checkpoint {found!r}, this run began with "
            f"{server['fingerprint']!r}: start the server with that checkpoint again and resume",
        )
    return policy


class Worker:
    """Does jobs with one simulator, which the first job describes; `connect` makes an episode's policy.

    `beat` is called with each phase that begins.
    """

    def __init__(self, beat: Callable[[str], None], connect: Connect = connect_remote) -> None:
        self._beat, self._connect = beat, connect
        self._simulator: Simulator | None = None
        self._policy: Any = None
        self._session = uuid.uuid4().hex
        self._jobs = {"describe": self._describe, "check": self._check, "episode": self._episode}

    def do(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Does one job and returns its event.

        Raises:
            JobFailed: there is no result; says why.
        """
        return self._jobs[job["job"]](job)

    def close(self) -> None:
        """Closes simulator and connection; a simulator that cannot close is left behind."""
        self._disconnect()
        if self._simulator is not None:
            with contextlib.suppress(Exception):
                self._simulator.close()
        self._simulator = None

    def _disconnect(self) -> None:
        policy, self._policy = self._policy, None
        if policy is not None:
            with contextlib.suppress(Exception):
                policy.close()

    def _describe(self, job: Mapping[str, Any]) -> dict[str, Any]:
        self._beat("start")
        try:
            self._simulator = make_simulator(SimulatorSpec(job["suite"], job["options"]))
            return describe_simulator(self._simulator)
        except (ValueError, FileNotFoundError, ImportError) as error:
            raise JobFailed(SETUP, str(error)) from error
        except Exception as error:
            raise JobFailed(MACHINE, f"the simulator does not start: {_text(error)}") from error

    def _check(self, job: Mapping[str, Any]) -> dict[str, Any]:
        assert self._simulator is not None
        task, seed = job["task"], job["seed"]
        self._beat("reset")
        began = time.perf_counter()
        try:
            check = self._simulator.expert(task, seed)
        except Exception as error:
            # By its interface, an expert reports that it cannot solve a seed. What it raises says nothing
            # about the seed: memory, a lost graphics card, a missing file.
            kind = MACHINE if isinstance(error, (OSError, MemoryError)) else SIMULATOR
            raise JobFailed(kind, f"expert of task {task!r} seed {seed}: {_text(error)}") from error
        event = {
            "event": "checked",
            "solved": bool(check.solved),
            "reason": str(check.reason),
            "mode": str(check.mode),
            "instruction": "",
            "seconds": time.perf_counter() - began,
        }
        if check.solved:
            try:
                event["instruction"] = self._simulator.instruction(task, seed, job["split"], check.info)
            except ValueError as error:
                raise JobFailed(SETUP, f"instruction of task {task!r} seed {seed}: {error}") from error
        return event

    def _episode(self, job: Mapping[str, Any]) -> dict[str, Any]:
        assert self._simulator is not None
        server = job["server"]
        episode = EpisodeJob(
            task=job["task"],
            seed=job["seed"],
            instruction=job["instruction"],
            execute=job["execute"],
            delay=job.get("delay"),
            noise_seed=job["noise_seed"],
            session=self._session,
            cameras=server["cameras"],
            record=bool(job["record"]),
            state_dim=server["state_dim"],
        )
        if self._policy is not None and not getattr(self._policy, "is_open", True):
            self._disconnect()  # the server ended it while idle: no reason to lose an episode
        try:
            if self._policy is None:
                self._beat("inference")
                self._policy = self._connect(server)
            outcome = run_episode(self._simulator, self._policy, episode, beat=self._beat)
        except (StateMismatch, IncompatibleServer) as error:
            raise JobFailed(SETUP, str(error)) from error
        except SimulatorFailure as error:
            raise JobFailed(MACHINE if error.machine else SIMULATOR, str(error)) from error
        except OSError as error:
            self._disconnect()
            kind = UNREACHABLE if isinstance(error, ServerUnreachable) else SERVER
            raise JobFailed(kind, f"{server['url']}: {_text(error)}") from error
        if job["record"]:
            save_frames(job["record"], outcome, self._simulator.control_hz)
        return finished_event(outcome)


def describe_simulator(simulator: Simulator) -> dict[str, Any]:
    """What the runner has to know about a simulator before the first episode."""
    space = simulator.action_space()
    return {
        "event": "described",
        "control_hz": float(simulator.control_hz),
        "tasks": list(simulator.tasks()),
        "cameras": list(simulator.cameras()),
        "actions": list(space.names),
        "state_dim": simulator.state_dim,
        "state_names": None if simulator.state_names is None else list(simulator.state_names),
        "official_split": str(simulator.resolve_split("official")),
        "provenance": dict(simulator.provenance()),
        "versions": {"simulator's python": platform.python_version(), "simulator's numpy": np.__version__},
        "host": host(),
    }


def finished_event(outcome: EpisodeOutcome) -> dict[str, Any]:
    """An outcome as an event, without its film."""
    frame = outcome.last_frame
    return {
        "event": "finished",
        "success": outcome.success,
        "steps": outcome.steps,
        "mode": outcome.mode,
        "latencies": outcome.latencies,
        "batches": outcome.batches,
        "execute": outcome.execute,
        "clipped": outcome.clipped,
        "error": outcome.error,
        "seconds": outcome.seconds,
        "measures": outcome.measures,
        "last_frame": None if frame is None else {"shape": list(frame.shape), "data": frame.tobytes()},
    }


def save_frames(path: str, outcome: EpisodeOutcome, hz: float) -> None:
    """Writes an episode's frames for the runner to encode: `frames` (T, H, W, 3) uint8 and `hz`.

    Raises:
        JobFailed: they cannot be written.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, frames=np.stack(outcome.frames), hz=hz, success=outcome.success)
    except OSError as error:
        raise JobFailed(SETUP, f"the film of the episode cannot be written: {error}") from error


def serve(jobs: int, events: int) -> None:
    """Does the jobs that come from one file descriptor and writes events to another, until the end.

    The process ends when the runner closes the pipe or dies, even in the middle of a job.
    """
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs, waiting), daemon=True).start()
    worker = Worker(_Pulse(events))
    send(events, {"event": "ready", "pid": os.getpid()})
    while True:
        job = waiting.get()
        if job["job"] == "stop":
            worker.close()
            return
        try:
            event = worker.do(job)
        except JobFailed as error:
            traceback.print_exc()
            event = {"event": "failed", "kind": error.kind, "message": str(error)}
        except Exception as error:
            traceback.print_exc()
            event = {
                "event": "failed",
                "kind": SIMULATOR,
                "message": f"defect in the worker: {_text(error)}",
            }
        sys.stdout.flush()
        send(events, event)


class _Pulse:
    """Sends beats: a new phase at once, the same one again every `BEAT_SECONDS`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._phase, self._sent = descriptor, "", 0.0

    def __call__(self, phase: str) -> None:
        now = time.monotonic()
        if phase == self._phase and now - self._sent < BEAT_SECONDS:
            return
        self._phase, self._sent = phase, now
        send(self._descriptor, {"event": "beat", "phase": phase})


def _read_jobs(descriptor: int, waiting: queue.SimpleQueue[dict[str, Any]]) -> None:
    reader = Reader(descriptor)
    while True:
        try:
            waiting.put(reader.receive())
        except PipeClosed:
            # The runner is gone. Nobody needs the episode, and the simulator's child processes end with it.
            if os.getpgrp() == os.getpid():
                os.killpg(os.getpid(), signal.SIGKILL)
            os._exit(1)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
