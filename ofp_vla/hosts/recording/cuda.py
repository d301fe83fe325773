"""CUDA graphs as a recorder: warmed up and captured on a side stream, all in one pool of memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def has_numbers() -> bool:
    """Whether a tensor made now may be kept: while a graph is recorded nothing is computed."""
    return not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())


class CudaGraphs:
    """Records on one device.

    The graphs share their memory: what each returns is copied out before another one runs. Only this thread
    is kept from what a capture forbids, so that a data loader may go on pinning memory beside it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._pool = torch.cuda.graph_pool_handle()

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
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                out = work()
        return graph.replay, out

    def busy(self) -> bool:
        """Whether the current stream is being captured by somebody else."""
        return torch.cuda.is_current_stream_capturing()

    def clear(self) -> None:
        """Starts a new pool: one in which a capture failed may be in any state."""
        gc.collect()
        with torch.cuda.device(self._device):
            self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.empty_cache()
