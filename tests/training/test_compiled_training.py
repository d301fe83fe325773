"""The student's layers as compiled regions: one for all of a shape, the same numbers, and a way back."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from ofp_vla.core.objectives import OFPConfig
from ofp_vla.hosts.recording import regions
from tests.support.tiny import tiny_batch, tiny_policy


@pytest.fixture
def policy(monkeypatch):
    torch._dynamo.reset()
    counters.clear()
    # Traces as on a GPU, and runs what was traced as it is.
    monkeypatch.setitem(regions.BACKENDS, "cpu", "eager")
    policy = tiny_policy(total_steps=10, ofp=OFPConfig(endpoint_steps=1))
    policy.get_optim_params()
    return policy.train()


def with_lora(policy):
    policy.config.pretrained_path = "base"
    policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    policy.get_optim_params()


def step(policy):
    policy.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    loss, _ = policy(tiny_batch(2))
    loss.backward()
    return torch.cat(
        [loss.detach()[None], *(p.grad.flatten() for p in policy.parameters() if p.grad is not None)]
    )


def test_all_layers_share_a_region_without_breaks_that_gives_the_same_numbers(policy):
    with_lora(policy)
    found = [step(policy), step(policy)]
    assert policy.host.regions.reason == ""
    budget = json.loads((Path(__file__).parents[1] / "budgets.json").read_text())["pi05"]
    assert budget["training step, compiled"] == {
        "graphs of a shape": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
    }
    policy.host.levers = policy.host.levers.of("-compile")
    expected = step(policy)
    assert torch.equal(found[0], found[1])
    assert (found[0] - expected).norm() <= 1e-6 * expected.norm()


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so_once(policy, monkeypatch, caplog):
    def fails(graph, inputs):
        raise RuntimeError("no kernel\nfor it")

    monkeypatch.setitem(regions.BACKENDS, "cpu", fails)
    with caplog.at_level(logging.WARNING):
        found = [step(policy) for _ in range(2)]
    policy.host.levers = policy.host.levers.of("-compile")
    assert all(torch.equal(each, step(policy)) for each in found)
    assert caplog.text.count("run operator by operator, uncompiled") == 1
    assert "no kernel for it" in policy.host.regions.reason


def test_a_layer_whose_gradients_are_others_once_compiled_runs_as_it_is(policy, monkeypatch, caplog):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 1.1

    def wrong(graph, inputs):
        return lambda *given: [Wrong.apply(out) for out in graph(*given)]

    monkeypatch.setitem(regions.BACKENDS, "cpu", wrong)
    with caplog.at_level(logging.WARNING):
        found = step(policy)
    policy.host.levers = policy.host.levers.of("-compile")
    assert torch.equal(found, step(policy))
    assert "a compiled layer is 0.1 of the largest number apart" in caplog.text


def test_neither_acting_nor_passes_without_gradient_are_compiled(policy):
    policy.eval()
    policy.draw(tiny_batch(2))
    assert counters["stats"]["unique_graphs"] == 0
