"""Training by recordings of the passes without gradient: losses, gradients and averages, bit for bit."""

import pytest
import torch

from ofp_vla.core import field
from ofp_vla.core.objectives import OFPConfig
from ofp_vla.counting import count
from ofp_vla.hosts.recording.captures import _Buffers
from ofp_vla.hosts.roles import EMA, STUDENT, TEACHER
from tests.support.recording import install
from tests.support.tiny import VLM_AND_EXPERT, tiny_batch, tiny_policy

STEPS = 8
ROLES = {
    "LoRA": {"method_type": "LORA", "r": 4},
    "LoRA of the VLM too": {"method_type": "LORA", "r": 4, "target_modules": VLM_AND_EXPERT},
    "whole tensors": None,
}


@pytest.fixture
def fake(monkeypatch):
    return install(monkeypatch)


def trained(host, peft, engine, steps=STEPS, autocast=False):
    """Losses, gradients and averages of a run, and the policy."""
    vlm = peft is not None and "target_modules" in peft
    policy = tiny_policy(
        host=host,
        engine=engine,
        total_steps=steps,
        train_expert_only=not vlm,
        ofp=OFPConfig(endpoint_steps=3, endpoint_from="teacher"),
    )
    if peft is not None:
        policy.config.pretrained_path = "base"
        policy.wrap_with_peft(peft_cli_overrides=peft)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    policy.train()
    torch.manual_seed(0)
    seen = []
    for step in range(steps):
        # Batches of prompts of two lengths, one after the other.
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, log = policy(tiny_batch(2 + step % 2, seed=step))
        loss.backward()
        seen += [loss.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        policy.update()
        seen += [x.detach().clone() for x in policy.host.roles.tensors(EMA).values()]
        assert log["endpoint"] > 0
    return seen, policy


@pytest.mark.parametrize("peft", ROLES)
def test_a_run_has_the_losses_gradients_and_averages_of_one_without_recordings(fake, host, peft):
    on, policy = trained(host, ROLES[peft], "on")
    captures = policy.host.captures
    assert captures.dropped == 0
    assert captures.reasons == {}
    # The prefix, and passes of teacher and average, of both batch sizes.
    assert {"the prefix", "a pass"} == set(captures.kept)
    assert captures.repeated > STEPS
    off, _ = trained(host, ROLES[peft], "-graphs")
    assert len(on) == len(off)
    assert all(torch.equal(a, b) for a, b in zip(on, off, strict=True))


def test_under_autocast_too_where_copies_of_weights_are_kept_while_a_step_lasts(fake, host):
    on, policy = trained(host, ROLES["LoRA"], "on", autocast=True)
    assert policy.host.captures.repeated > STEPS
    off, _ = trained(host, ROLES["LoRA"], "-graphs", autocast=True)
    assert all(torch.equal(a, b) for a, b in zip(on, off, strict=True))


def test_two_forward_passes_before_one_backward_keep_their_own_prefixes(fake, host):
    gradients = {}
    for engine in ("on", "-graphs"):
        _, policy = trained(host, ROLES["LoRA"], engine, steps=4)
        torch.manual_seed(1)
        losses = [policy(tiny_batch(2, seed=seed))[0] for seed in (10, 11)]
        sum(losses).backward()
        gradients[engine] = [p.grad for p in policy.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(*gradients.values(), strict=True))


def test_a_step_copies_its_prefix_once_for_all_passes_and_roles(fake, host, monkeypatch):
    _, policy = trained(host, ROLES["LoRA"], "on", steps=4)
    held = []
    hold = _Buffers.hold
    monkeypatch.setattr(_Buffers, "hold", lambda self, kept: held.append(hold(self, kept)) or held[-1])
    policy(tiny_batch(2))[0].backward()
    passes = 3 + 1  # of the teacher and of the average
    # SmolVLA's roles each have a token of their own at the end of the prefix.
    assert (len(held), sum(held)) == (passes, 2 if host == "smolvla" else 1)


def test_a_step_waits_once_and_its_log_when_it_is_read(fake, host, monkeypatch):
    monkeypatch.setattr(field, "_ordered", lambda t, r: True)  # asked on a CPU only
    _, policy = trained(host, ROLES["LoRA"], "on", steps=4)
    batch = tiny_batch(2)
    found = []

    def step():
        loss, log = policy(batch)
        loss.backward()
        policy.update()
        found.append(log)

    assert count(step).waits == 1  # for what the inputs are like
    assert count(lambda: found[0].items()).waits >= 1
    assert count(lambda: dict(found[0].items())).waits == 0


def test_acting_and_training_share_what_is_recorded_without_harm(fake, host):
    _, policy = trained(host, ROLES["LoRA"], "on", steps=4)
    for role in (STUDENT, EMA, TEACHER):
        for _ in range(3):
            policy.eval()
            chunk = policy.draw(tiny_batch(2), noise=torch.zeros(2, 6, 8), role=role).chunk
        policy.host.levers = policy.config.levers.of("-graphs")
        assert torch.equal(chunk, policy.draw(tiny_batch(2), noise=torch.zeros(2, 6, 8), role=role).chunk)
        policy.host.levers = policy.config.levers
