"""Copies of what only SmolVLA has: its connector, layers that read the VLM's keys alone, mixed types."""

import logging

import pytest
import torch

from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.fast import smolvla_path
from ofp_vla.policies.sampling import Sampling
from tests.support.tiny import HORIZON, WIDTH, tiny_batch, tiny_policy, train_head

WAY = Sampling("interval", 2, False)
NOISE = torch.randn(2, HORIZON, WIDTH, generator=torch.Generator().manual_seed(0))
VLM, EXPERT = "model.vlm_with_expert.vlm.model.", "model.vlm_with_expert.lm_expert."
READ = (
    "model.state_proj.bias",
    "model.action_time_mlp_in.weight",
    f"{VLM}connector.modality_projection.proj.weight",
    f"{VLM}vision_model.embeddings.position_embedding.weight",
    f"{VLM}text_model.embed_tokens.weight",
    f"{VLM}text_model.layers.3.self_attn.v_proj.weight",
    f"{VLM}text_model.layers.1.post_attention_layernorm.weight",
    f"{EXPERT}layers.0.self_attn.k_proj.weight",
    f"{EXPERT}layers.1.self_attn.k_proj.weight",
    f"{EXPERT}layers.3.self_attn.v_proj.weight",
    f"{EXPERT}norm.weight",
)


def made(**changes):
    policy = tiny_policy(host="smolvla", **changes)
    train_head(policy)
    return policy


def chunk(policy, engine="on"):
    policy.host.levers = Levers.of(engine)
    return policy.draw(tiny_batch(2), noise=NOISE, sampling=WAY).chunk


def test_every_kind_of_weight_acts_in_the_next_call():
    policy = made()
    seen = chunk(policy)
    for name in READ:
        with torch.no_grad():
            policy.get_parameter(name).mul_(1.5).add_(0.1)
        before, seen = seen, chunk(policy)
        assert (seen - before).abs().max() > 1e-4 * before.abs().max(), name
        policy.reset()
        assert torch.equal(chunk(policy), seen), name
    plain = chunk(policy, "off")
    assert (seen - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_layers_that_read_the_vlms_keys_alone_project_these_once_for_all_steps_and_draws(monkeypatch):
    policy, read = made(), []
    project = smolvla_path.read_keys
    monkeypatch.setattr(smolvla_path, "read_keys", lambda *given: read.append(given) or project(*given))
    policy.draw(tiny_batch(1), sampling=Sampling("interval", 10, False, 8))
    assert len(read) == 2


@pytest.mark.parametrize("engine", ["on", "-packed", "off"])
def test_a_bfloat16_model_whose_projections_of_keys_are_float32_acts(engine):
    """As LeRobot builds the published one."""
    policy = made()
    exact = chunk(policy, "off")
    model = policy.model.vlm_with_expert
    model.vlm.model.text_model.bfloat16()
    model.lm_expert.bfloat16()
    for layer in model.lm_expert.layers[1::2]:
        layer.self_attn.k_proj.float()
        layer.self_attn.v_proj.float()
    found = chunk(policy, engine)
    assert (policy.host.fast.reason == "") == (engine == "on")
    assert (found - exact).norm() <= 0.05 * exact.norm()


def test_a_language_model_of_several_types_is_not_copied(caplog):
    policy = made(dtype="bfloat16")
    policy.model.vlm_with_expert.vlm.model.text_model.layers[1].float()
    with caplog.at_level(logging.WARNING):
        assert torch.isfinite(chunk(policy)).all()
    assert "layers of several types: ['torch.bfloat16', 'torch.float32']" in caplog.text
