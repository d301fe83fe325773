"""Training by recordings of the passes without gradient: losses, gradients and averages, bit for bit."""

import pytest
import torch

from ofp_vla.core import field
from ofp_vla.core.objectives import OFPConfig
from ofp_vla.counting import count
from ofp_vla.hosts.recording.buffers import Buffers
from ofp_vla.hosts.roles import EMA, TEACHER
from tests.support.recording import install
from tests.support.tiny import VLM_AND_EXPERT, tiny_batch, tiny_policy

STEPS = 3
# Prompts padded to few lengths change rounding, and so do packed weights: compared by themselves below.
EXACT = "-buckets,-packed"
ROLES = {
    "LoRA": {"method_type": "LORA", "r": 4},
    "LoRA of the VLM too": {"method_type": "LORA", "r": 4, "target_modules": VLM_AND_EXPERT},
    "whole tensors": None,
}


@pytest.fixture
def fake(monkeypatch):
    return install(monkeypatch)


@pytest.fixture(scope="module", params=["pi05", "smolvla"])
def run(request):
    """What a run by all levers saw, its policy and host."""
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        yield *trained(request.param, ROLES["LoRA"], "on"), request.param


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
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss, log = policy(tiny_batch(2, seed=step))
        loss.backward()
        seen += [loss.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        policy.update()
        seen += [x.detach().clone() for x in policy.host.roles.tensors(EMA).values()]
        assert log["endpoint"] > 0
    return seen, policy


@pytest.mark.parametrize(
    ("host", "peft", "autocast"),
    [
        # Under autocast copies of weights are kept while a step lasts.
        ("smolvla", "LoRA", True),
        ("pi05", "LoRA", True),
        ("pi05", "LoRA of the VLM too", False),
        ("pi05", "whole tensors", False),
    ],
)
def test_a_run_has_the_losses_gradients_and_averages_of_one_without_recordings(fake, host, peft, autocast):
    on, policy = trained(host, ROLES[peft], EXACT, autocast=autocast)
    captures = policy.host.captures
    assert captures.dropped == 0
    assert captures.reasons == {}
    # The prefix, and passes of teacher and average.
    assert {"the prefix", "a pass"} == set(captures.kept)
    assert captures.repeated >= 2 * STEPS
    off, _ = trained(host, ROLES[peft], f"{EXACT},-graphs", autocast=autocast)
    assert len(on) == len(off)
    assert all(torch.equal(a, b) for a, b in zip(on, off, strict=True))


def test_two_forward_passes_before_one_backward_keep_their_own_prefixes(run):
    _, policy, _ = run

    def gradients(together):
        policy.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        losses = []
        for seed in (10, 11):
            losses.append(policy(tiny_batch(2, seed=seed))[0])
            if not together:
                losses.pop().backward()
        if together:
            sum(losses).backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])

    expected = gradients(together=False)
    assert (gradients(together=True) - expected).norm() <= 1e-5 * expected.norm()


def test_a_step_copies_its_prefix_once_for_all_passes_and_roles(run, monkeypatch):
    _, policy, host = run
    held = []
    hold = Buffers.hold
    monkeypatch.setattr(Buffers, "hold", lambda self, kept: held.append(hold(self, kept)) or held[-1])
    policy(tiny_batch(2))[0].backward()
    passes = 3 + 1  # of the teacher and of the average
    # SmolVLA's roles each have a token of their own at the end of the prefix.
    assert (len(held), sum(held)) == (passes, 2 if host == "smolvla" else 1)


def test_a_step_waits_once_and_its_log_when_it_is_read(run, monkeypatch):
    monkeypatch.setattr(field, "_ordered", lambda t, r: True)  # asked on a CPU only
    _, policy, _ = run
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


def test_frozen_weights_are_packed_once_for_a_run_and_prompts_have_few_lengths(run):
    on, policy, host = run
    off, other = trained(host, ROLES["LoRA"], "off")
    assert policy.host.captures.dropped == 0
    losses = [[seen[i] for i in range(0, len(seen), len(seen) // STEPS)] for seen in (on, off)]
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(*losses, strict=True))
    assert policy.host.fast._experts.keys() == {TEACHER}
    (prefix,) = (r for r in policy.host.captures._recordings.values() if r.name == "the prefix")
    # Of prompts of up to 12 tokens, and of one of 7.
    with torch.no_grad():
        shorter = policy.host.encode_shared(policy._observation(tiny_batch(1)))
    assert prefix.outputs[1].shape[1] == shorter.mask.shape[1]
    assert not other.host.captures.made
