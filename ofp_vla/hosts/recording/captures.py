"""A bounded cache of recorded work: what a host computes without gradient is repeated instead of launched.

A recording reads weights where they lie, so it sees what is written in place: optimiser steps, averages,
loaded values. All are dropped once a weight lies elsewhere (`whereabouts`). What cannot be recorded runs as
it is, and the reason is logged once. The first call of a shape runs as it is, so that a shape that comes once
costs nothing; the second one takes about six times as long as the first, the third about twice.

No recording is relied on unproved: when it is made, by two different inputs, and at its first repetition
after that, its numbers are compared with those of the work itself (`proof`).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ofp_vla.hosts.recording.buffers import Buffers, Kept, buffers, copy, signature
from ofp_vla.hosts.recording.compilers import told
from ofp_vla.hosts.recording.cuda import CaptureFailed, CudaGraphs
from ofp_vla.hosts.recording.proof import Unequal, change, check
from ofp_vla.hosts.recording.rehearsal import rehearse

logger = logging.getLogger(__name__)

# Recordings of one policy: batch sizes, cameras, prompt columns, ways to draw. The one not used longest goes.
BOUND = 32
# Calls of a shape before it is recorded.
CALLS_BEFORE = 1
# Repetitions after which a recording is compared with a call's own work once more.
_TO_PROVE = 2
# How often recordings may be dropped before any of them was repeated twice, until none are made any more.
PATIENCE = 3


class Recorder(Protocol):
    """How a device records work and repeats it."""

    def aside(self) -> AbstractContextManager[object]:
        """Where work is tried before it is recorded."""
        ...

    def record[T](self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """How to repeat `work`, and what it returned: each repetition writes into the same tensors."""
        ...

    def busy(self) -> bool:
        """Whether somebody else is recording, so that nothing can be repeated now."""
        ...

    def clear(self) -> None:
        """Gives back the memory of recordings that failed or were dropped."""
        ...


class Watch(Protocol):
    """Tells whether weights are where they were when it was made."""

    @property
    def reduced(self) -> bool:
        """Whether numbers of 16 bits are among them."""
        ...

    def same(self) -> bool:
        """False once a recording would read something else than a call."""
        ...


# Type of device -> its recorder. On other devices work runs as it is.
RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaGraphs}


@dataclass(eq=False)
class _Recording:
    name: str
    function: Callable[..., Any]  # keeps alive what the key names by its id
    inputs: list[Any]
    kept: Buffers | None
    repeat: Callable[[], None]
    outputs: list[Any]
    shape: TreeSpec
    passes: Counter[str]
    reduced: bool
    times: int = 0


@dataclass(frozen=True)
class _Result:
    result: Any


class Captures:
    """What one host has recorded.

    Args:
        watch: makes a watch over all weights that recorded functions read.
        passes: what functions count; a repetition adds what the recorded run did.
        bound: recordings that are kept.

    Attributes:
        made: recordings that were made.
        repeated: calls that a recording answered.
        dropped: recordings given up because weights had moved.
        reasons: what was not recorded -> why.
    """

    def __init__(
        self, watch: Callable[[], Watch], passes: Counter[str] | None = None, *, bound: int = BOUND
    ) -> None:
        self._make_watch, self._bound = watch, bound
        self._passes = Counter[str]() if passes is None else passes
        self._recorders: dict[torch.device, Recorder] = {}
        self._watch: Watch | None = None
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._calls: OrderedDict[Hashable, int] = OrderedDict()
        self._refused: set[Hashable] = set()
        self._buffers: WeakValueDictionary[Hashable, Buffers] = WeakValueDictionary()
        self._fruitless = 0
        self._stopped = False
        self._lock = threading.RLock()
        self._inside = False
        self.made = self.repeated = self.dropped = 0
        self.reasons: dict[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the host has weights of its own, and records by itself.
        return Captures, (self._make_watch, self._passes)

    def run[T](
        self, name: str, key: Hashable, function: Callable[..., T], *inputs: Any, kept: Kept | None = None
    ) -> T:
        """`function(*inputs)`, or `function(kept's tensors, *inputs)`, by a recording where there is one.

        Args:
            name: what it computes, for the log.
            key: what shapes the computation beside its tensors: of equal keys, functions compute the same
                from the same tensors and weights.
            function: of tensors and weights alone; it draws no numbers and does not wait for the device.
            inputs: tensors, None, tuples and lists of them.
            kept: further tensors, one list, which most calls have in common.

        Returns:
            What the function returns, in tensors that belong to the caller.
        """
        given = inputs if kept is None else (kept.tensors, *inputs)
        recorder = self._recorder_for(given)
        if recorder is None:
            return function(*given)
        tensors, shape = tree_flatten(inputs)
        known = (name, key, signature(tensors), str(shape), kept and kept.signature, _autocast(tensors))
        with self._lock:
            if self._inside or known in self._refused or recorder.busy():
                return function(*given)
            self._inside = True
            try:
                recording = self._recordings.get(known)
                if recording is None:
                    recording = self._new(recorder, name, known, function, inputs, kept)
                found = None if recording is None else self._repeat(known, recording, tensors, kept)
                if recording is None or found is None:
                    return function(*given)
                if recording.times == _TO_PROVE and (
                    other := self._disproved(known, recording, found, given)
                ):
                    return other.result
                return tree_unflatten(found, recording.shape)
            finally:
                self._inside = False

    @property
    def kept(self) -> list[str]:
        """What is recorded now, by name, the one used last at the end."""
        return [recording.name for recording in self._recordings.values()]

    def drop(self) -> None:
        """Forgets all recordings, for weights that move; refusals stay."""
        with self._lock:
            self.dropped += len(self._recordings)
            self._recordings.clear()
            self._watch = None
            for recorder in self._recorders.values():
                recorder.clear()

    def stop(self, reason: str) -> None:
        """Records nothing from here on."""
        self._stopped = True
        self.drop()
        self.refuse("this policy", reason)

    @property
    def stopped(self) -> bool:
        """Whether nothing is recorded any more, whatever comes."""
        return self._stopped

    def refuse(self, name: str, reason: str) -> None:
        """Notes, and logs once, that something runs as it is."""
        if name not in self.reasons:
            self.reasons[name] = reason
            logger.warning("%s is not recorded and runs operator by operator: %s", name, reason)

    def _recorder_for(self, given: Any) -> Recorder | None:
        device = next((x.device for x in tree_flatten(given)[0] if isinstance(x, Tensor)), None)
        if device is None or device.type not in RECORDERS or self._stopped:
            return None
        if device not in self._recorders:
            self._recorders[device] = RECORDERS[device.type](device)
        return self._recorders[device]

    def _repeat(
        self, known: Hashable, recording: _Recording, tensors: Sequence[Any], kept: Kept | None
    ) -> list[Any] | None:
        """The outputs; None if weights have moved, and with them all recordings are gone."""
        with torch.no_grad():
            copy(recording.inputs, tensors)
            others = recording.kept is None or kept is None or recording.kept.hold(kept)
            recording.repeat()
        # Asked while the device works. A recording that is out of date has read tensors that the watch keeps,
        # and what it gave is thrown away.
        if known not in self._recordings or (others and not self._watching().same()):
            self._moved()
            self._calls[known] = CALLS_BEFORE
            return None
        self._recordings.move_to_end(known)
        recording.times += 1
        self.repeated += 1
        self._passes.update(recording.passes)
        return [x.clone() if isinstance(x, Tensor) else x for x in recording.outputs]

    def _disproved(
        self, known: Hashable, recording: _Recording, found: list[Any], given: Any
    ) -> _Result | None:
        """What the work itself gives, if that is something else than a recording gave; it is then refused."""
        try:
            with self._uncounted():
                result = recording.function(*given)
            check(found, tree_flatten(result)[0], reduced=recording.reduced)
        except torch.OutOfMemoryError:
            return None  # it was proved once already
        except Unequal as error:
            self._recordings.pop(known, None)
            self._refused.add(known)
            self.refuse(recording.name, str(error))
            return _Result(result)
        return None

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        before = Counter(self._passes)
        try:
            yield
        finally:
            self._passes.clear()
            self._passes.update(before)

    def _watching(self) -> Watch:
        self._watch = self._watch or self._make_watch()
        return self._watch

    def _moved(self) -> None:
        used = any(recording.times > 1 for recording in self._recordings.values())
        self._fruitless = 0 if used else self._fruitless + 1
        self.drop()
        if self._fruitless >= PATIENCE:
            self.stop("its weights lie elsewhere in every call")

    def _new(
        self,
        recorder: Recorder,
        name: str,
        known: Hashable,
        function: Callable[..., Any],
        inputs: Any,
        kept: Kept | None,
    ) -> _Recording | None:
        """A recording; None if it is not time yet, or impossible."""
        calls = self._calls.pop(known, 0)
        self._calls[known] = calls + 1
        if len(self._calls) > 8 * self._bound:
            self._calls.popitem(last=False)
        if calls < CALLS_BEFORE:
            return None
        if self._watch is not None and not self._watch.same():
            self._moved()
            if self._stopped:
                return None
        while len(self._recordings) >= self._bound:
            self._recordings.popitem(last=False)
        reason = ""
        for last in (False, True):
            try:
                recording = self._recorded(recorder, name, function, inputs, kept)
            except Exception as error:  # whatever it is, the call itself can still be answered
                reason, full = _told(error), _out_of_memory(error)
                if isinstance(error, CaptureFailed):
                    self.drop()
            else:
                # Only now: copies of weights may have been made anew in the first of these runs.
                self._watching()
                self._recordings[known] = recording
                self.made += 1
                return recording
            if full and not last:
                while len(self._recordings) > 1:
                    self._recordings.popitem(last=False)
            recorder.clear()
            if not full:
                break
            reason = f"no memory is left for it, even beside {len(self._recordings)} others ({reason})"
        self._refused.add(known)
        self.refuse(name, reason)
        return None

    def _recorded(
        self, recorder: Recorder, name: str, function: Callable[..., Any], inputs: Any, kept: Kept | None
    ) -> _Recording:
        tensors, shape = tree_flatten(inputs)
        # Ordinary tensors even where the caller is in inference mode: others may write into them later.
        with torch.inference_mode(False), torch.no_grad():
            own = buffers(tensors)
            copy(own, tensors)
            given = list(tree_unflatten(own, shape))
            shared = None
            if kept is not None:
                shared = self._buffers.get(kept.signature) or Buffers(kept.tensors)
                self._buffers[kept.signature] = shared
                shared.hold(kept)
                given = [shared.tensors, *given]

            def work() -> Any:
                # Autocast's copies of weights would otherwise outlive the weights they were made of.
                torch.clear_autocast_cache()
                try:
                    return function(*given)
                finally:
                    torch.clear_autocast_cache()

            with self._uncounted():
                with recorder.aside():
                    # Compiles, and makes what is made at first use.
                    expected = tree_flatten(work())[0]
                    rehearse(work)
                reduced = self._watching().reduced or _autocast(tensors) is not None
                self._passes.clear()
                repeat, out = recorder.record(work)
                passes = Counter(self._passes)
                outputs, form = tree_flatten(out)
                repeat()
                check(outputs, expected, reduced=reduced)
                change([*own, *(shared.tensors if shared else ())])
                if shared is not None:
                    shared.changed()
                expected = tree_flatten(work())[0]
                repeat()
                check(outputs, expected, reduced=reduced)
        return _Recording(name, function, own, shared, repeat, outputs, form, passes, reduced)


def _autocast(tensors: Sequence[Any]) -> Hashable:
    kind = next((x.device.type for x in tensors if isinstance(x, Tensor)), "cpu")
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what it was raised in place of: the end of a failed capture hides why it failed."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _out_of_memory(error: BaseException) -> bool:
    return any(isinstance(each, torch.OutOfMemoryError) for each in _chain(error))


def _told(error: BaseException) -> str:
    return told(_chain(error)[-1], 200)
