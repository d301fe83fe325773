"""CUDA graphs as a recorder: warmed up and captured on a side stream, all in one pool of memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import torch


def has_numbers() -> bool:
    """Whether a tensor made now may be kept: while a graph is recorded nothing is computed."""
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


class CaptureFailed(RuntimeError):
    """A capture that failed, for its cause; graphs that were captured before must not run any more."""


class CudaGraphs:
    """Records on one device.

    The graphs share their memory: what each returns is copied out before another one runs. Only this thread
    is kept from what a capture forbids, so that a data loader may go on pinning memory beside it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
        self._pool: Any = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Runs on the stream that will be captured: what libraries make for a stream is made then."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                current.wait_stream(self._stream)

    def record[T](self, work: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """See `Recorder.record`."""
        with torch.cuda.device(self._device):
            if not self._graphs:
                # A pool ends with the last of its graphs, and cannot be begun again.
                self._pool = torch.cuda.graph_pool_handle()
            graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            try:
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    out = work()
            except Exception as error:
                self._mend(current)
                raise CaptureFailed("a CUDA graph could not be captured") from error
        self._graphs.add(graph)
        return graph.replay, out

    def _mend(self, current: torch.cuda.Stream) -> None:
        """Undoes what a capture that fails leaves behind in PyTorch 2.11.

        The stream that was captured stays current, the generator of random numbers refuses to draw outside a
        capture, and the allocator goes on to serve the pool.
        """
        torch.cuda.set_stream(current)
        index = current.device_index
        generator = torch.cuda.default_generators[index]
        generator.graphsafe_set_state(generator.clone_state())
        with suppress(RuntimeError):  # it has ended, if the capture itself did
            torch._C._cuda_endAllocateToPool(index, self._pool)
        self._graphs.clear()

    def busy(self) -> bool:
        """Whether the current stream is being captured by somebody else."""
        return torch.cuda.is_current_stream_capturing()

    def clear(self) -> None:
        """Leaves the pool, in which a capture may have failed, and gives back what nobody holds."""
        gc.collect()
        self._graphs.clear()
        with torch.cuda.device(self._device):
            torch.cuda.empty_cache()
