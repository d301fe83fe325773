"""Compiled layer functions: one graph for all layers of a kind, no breaks, checked against the functions."""

import logging

import pytest
import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK
from torch._dynamo.utils import counters

from ofp_vla.core.draws import normal
from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.fast import compiled as under_test
from ofp_vla.policies.sampling import Sampling
from tests.support.tiny import HORIZON, WIDTH, WORDS, tiny_batch, tiny_policy, train_head

ONE, TEN = Sampling("interval", 1, False), Sampling("interval", 10, False)
DRAWS = Sampling("interval", 1, False, 8)


@pytest.fixture
def compile_by(monkeypatch):
    """Compiles on the CPU by a backend."""

    def use(backend):
        torch._dynamo.reset()
        counters.clear()
        under_test.compiled.cache_clear()
        monkeypatch.setattr(under_test, "COMPILED_ON", {"cpu": backend})
        monkeypatch.setattr("ofp_vla.hosts.fast.fast_path.COMPILED_ON", {"cpu": backend})

    yield use
    torch._dynamo.reset()
    under_test.compiled.cache_clear()


def made(kind):
    policy = tiny_policy(host=kind)
    train_head(policy)
    return policy


def noise(way):
    shape = (1, *([way.draws] if way.draws > 1 else []), HORIZON, WIDTH)
    return normal(shape, torch.device("cpu"), torch.Generator().manual_seed(0))


def draw(policy, length, way, warm=None):
    mask = torch.arange(WORDS)[None] < length
    batch = tiny_batch(1, **{OBS_LANGUAGE_ATTENTION_MASK: mask})
    return policy.draw(batch, noise=noise(way), sampling=way, warm=warm).chunk


def test_one_compilation_serves_all_layers_steps_starts_and_lengths(compile_by):
    policy = made("pi05")
    policy.host.levers = Levers(compile=False)
    warm = noise(ONE)
    ways = [(7, ONE, None), (7, TEN, None), (7, ONE, warm), (7, DRAWS, None), (9, ONE, None), (13, ONE, None)]
    plain = [draw(policy, *way) for way in ways]
    compile_by("eager")
    policy.host.levers = Levers()
    found, graphs = [], []
    for way in ways:
        found.append(draw(policy, *way))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[:3] == [4, 4, 4]
    assert graphs[3] <= 6  # eight draws attend otherwise
    assert graphs[4] == graphs[5]  # any length from the second on
    assert not counters["graph_break"]
    for a, b in zip(found, plain, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_smolvlas_layers_are_compiled_whole_too(compile_by):
    policy = made("smolvla")
    policy.host.levers = Levers(compile=False)
    plain = draw(policy, 7, TEN)
    compile_by("eager")
    policy.host.levers = Levers()
    found = draw(policy, 7, TEN)
    assert counters["stats"]["unique_graphs"] == 5
    assert not counters["graph_break"]
    assert (found - plain).abs().max() <= 1e-5 * plain.abs().max()


def wrong(graph, inputs):
    def run(*given):
        return [1.001 * x if isinstance(x, torch.Tensor) else x for x in graph.forward(*given)]

    return run


def broken(graph, inputs):
    raise RuntimeError("no compiler here")


@pytest.mark.parametrize(
    ("backend", "reason"), [(wrong, "0.001 apart, at most 0.0001 is allowed"), (broken, "no compiler here")]
)
def test_a_compiler_that_fails_or_computes_wrongly_is_left_with_the_reason(
    backend, reason, compile_by, caplog
):
    policy = made("pi05")
    policy.host.levers = Levers(compile=False)
    plain = draw(policy, 7, ONE)
    compile_by(backend)
    policy.host.levers = Levers()
    with caplog.at_level(logging.WARNING):
        assert all(torch.equal(draw(policy, 7, ONE), plain) for _ in range(2))
    assert caplog.text.count("runs uncompiled") == 4
    assert reason in caplog.text
