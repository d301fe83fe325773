"""Synchronised, interleaved timing: arms take turns, so that other load falls on all of them alike."""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

import numpy as np
import torch

WARM_UP = 3
LONG = 2.0  # seconds of a call
FEWEST, MOST = 3, 200  # calls of an arm that are kept
SLICE = 0.1  # seconds of a turn: what is faster is called more often
MOST_A_TURN = 20


class OutOfTime(RuntimeError):
    """What was begun did not finish within what was left of the time budget."""


@dataclass(frozen=True)
class Arm:
    """What is timed.

    Attributes:
        run: one call.
        per_call: chunks or samples of a call.
    """

    run: Callable[[], object]
    per_call: int = 1


@dataclass
class Timed:
    """What was found of an arm.

    Attributes:
        seconds: of its calls.
        peak: bytes of memory that it added at its peak; None where that is not known.
        kept: bytes that it still holds between its calls.
        error: what ended it too early.
    """

    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    kept: int = 0
    error: Exception | None = None

    def milliseconds(self, share: float) -> float:
        """A quantile of the calls, in milliseconds."""
        return 1e3 * float(np.quantile(self.seconds, share))


class Clock:
    """Seconds and memory of calls on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        """Returns when the device has finished what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def __call__(self, work: Callable[[], object]) -> float:
        """Seconds of one call, with the device idle before and after it."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def held(self) -> int:
        """Bytes that are held on the device and in use, those of captured graphs included; 0 if not known."""
        self.free()
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else 0

    def peak(self, work: Callable[[], object]) -> int | None:
        """Bytes that are held on the device at most during a call; None where that is not known."""
        if self.device.type != "cuda":
            work()
            return None
        self.free()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_reserved(self.device)

    def free(self) -> None:
        """Gives memory that nothing uses back to the device."""
        if self.device.type == "cuda":
            with suppress(RuntimeError):  # a broken context is told by the next row
                torch.cuda.empty_cache()


class Budget:
    """A number of seconds, from now on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left, below zero when it is overspent."""
        return self.seconds - self.spent


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends what runs inside after some seconds; in another than the main thread nothing is ended.

    Raises:
        OutOfTime: it took longer.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime("the time budget ended before it was warm")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ended_by(error: Exception, budget: Budget) -> Exception:
    """An error without its frames, which hold tensors; a compiler may have wrapped the end of the time."""
    if budget.left <= 0 and not isinstance(error, OutOfTime):
        return OutOfTime("the time budget ended before it was warm")
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def one_line(error: BaseException) -> str:
    """An error's class and the beginning of its message."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300].rstrip(": ")


def warm_up(arm: Arm, clock: Clock, budget: Budget) -> Timed:
    """Calls an arm until it is warm, and once more for its memory; seconds are not kept."""
    found = Timed()
    before = clock.held()
    try:
        with time_limit(budget.left):
            for _ in range(WARM_UP):
                if clock(arm.run) > LONG and clock.device.type == "cpu":
                    return found  # nothing is compiled there, and minutes are spent
            peak = clock.peak(arm.run)
            found.peak = None if peak is None else peak - before
            found.kept = clock.held() - before
            arm.run()
    except Exception as error:
        found.error = ended_by(error, budget)
        clock.free()
    return found


def interleave(arms: Mapping[str, Arm], clock: Clock, seconds: float, budget: Budget) -> dict[str, Timed]:
    """Times warm arms in turns for about `seconds`, each at least `FEWEST` times while the budget lasts."""
    found = {name: Timed() for name in arms}
    until = time.monotonic() + min(seconds, budget.left)
    running = dict(arms)
    while running:
        for name, arm in list(running.items()):
            times = found[name].seconds
            usual = statistics.median(times) if times else SLICE
            try:
                with time_limit(budget.left):
                    for _ in range(max(1, min(MOST_A_TURN, int(SLICE / max(usual, 1e-9))))):
                        times.append(clock(arm.run))
            except Exception as error:
                if len(times) < FEWEST:
                    found[name].error = ended_by(error, budget)
                    clock.free()
                del running[name]
                continue
            over = time.monotonic() >= until
            if len(times) >= MOST or (over and len(times) >= FEWEST) or budget.left <= 0:
                del running[name]
    return found
