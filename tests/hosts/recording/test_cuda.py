"""CUDA graphs as a recorder, as far as a machine without a card can tell: which calls it makes, and when."""

import gc
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from ofp_vla.hosts.recording.cuda import CaptureFailed, CudaGraphs


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    def replay(self):
        self.replayed = True


@pytest.fixture
def cuda(monkeypatch):
    """What `torch.cuda` was asked for."""
    streams = SimpleNamespace(current=SimpleNamespace(name="main", device_index=0, waits=[]))
    streams.current.wait_stream = lambda other: streams.current.waits.append(other.name)
    seen = SimpleNamespace(pools=[], captures=[], states=[], ended=[], main=streams.current, streams=streams)
    generator = SimpleNamespace(clone_state=lambda: "as new", graphsafe_set_state=seen.states.append)

    @contextmanager
    def captured(graph, pool, stream, capture_error_mode):
        before, streams.current = streams.current, stream
        seen.captures.append((pool, stream, capture_error_mode))
        yield  # as in PyTorch, a capture that fails does not set the stream back
        streams.current = before

    fakes = {
        "device": lambda device: nullcontext(),
        "Stream": lambda: SimpleNamespace(name="side", device_index=0, wait_stream=lambda other: None),
        "current_stream": lambda: streams.current,
        "set_stream": lambda stream: setattr(streams, "current", stream),
        "stream": lambda stream: nullcontext(),
        "graph_pool_handle": lambda: seen.pools.append(len(seen.pools)) or seen.pools[-1],
        "CUDAGraph": Graph,
        "graph": captured,
        "default_generators": (generator,),
        "empty_cache": lambda: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    def end(index, pool):
        seen.ended.append(pool)
        raise RuntimeError("not recording to it")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    return seen


def test_graphs_share_a_stream_and_a_pool_that_ends_with_the_last_of_them(cuda):
    recorder = CudaGraphs(torch.device("cuda", 0))
    with recorder.aside():
        pass
    assert cuda.main.waits == ["side"]
    kept = [recorder.record(lambda number=number: number) for number in range(2)]
    assert [out for _, out in kept] == [0, 1]
    assert [pool for pool, _, _ in cuda.captures] == [0, 0]
    assert len({id(stream) for _, stream, _ in cuda.captures}) == 1
    assert {mode for _, _, mode in cuda.captures} == {"thread_local"}
    del kept
    gc.collect()
    recorder.record(lambda: None)
    assert cuda.captures[-1][0] == 1


def test_a_capture_that_fails_leaves_stream_generator_and_pool_as_they_were(cuda):
    recorder = CudaGraphs(torch.device("cuda", 0))
    kept = recorder.record(lambda: None)

    def fails():
        raise ValueError("it copies from the host")

    with pytest.raises(CaptureFailed) as caught:
        recorder.record(fails)
    assert isinstance(caught.value.__cause__, ValueError)
    assert cuda.streams.current is cuda.main
    assert cuda.states == ["as new"]
    assert cuda.ended == [0]
    recorder.record(lambda: None)
    assert cuda.captures[-1][0] == 1
    del kept
