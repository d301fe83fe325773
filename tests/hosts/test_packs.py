"""Copies of weights: what makes them untrue is noticed, what cannot be copied says so, what roles share."""

import copy
import logging

import pytest
import torch
from torch import nn

from ofp_vla.hosts.fast.freshness import Sources, Watch
from ofp_vla.hosts.roles import EMA, STUDENT, TEACHER
from ofp_vla.policies.sampling import Sampling
from tests.support.recording import install
from tests.support.tiny import HORIZON, PARTS, VLM_AND_EXPERT, WIDTH, tiny_batch, tiny_policy, train_head

WAY = Sampling("interval", 2, False)
NOISE = torch.randn(2, HORIZON, WIDTH, generator=torch.Generator().manual_seed(0))
ROUNDING = 1e-4


def layer(policy):
    """Name of a layer of the expert; that of SmolVLA reads the VLM's keys alone."""
    return f"model.{PARTS[policy.name.removesuffix('_ofp')].expert_layers}.1"


def made(host, *, lora=False, **changes):
    policy = tiny_policy(host=host, total_steps=10, **changes)
    train_head(policy)
    if lora:
        policy.config.pretrained_path = "base"
        targets = {} if policy.config.train_expert_only else {"target_modules": VLM_AND_EXPERT}
        policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4, **targets})
        stir(policy.host.roles.tensors(STUDENT).values())
    return policy.eval()


@torch.no_grad()
def stir(weights, seed=0):
    g = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.add_(0.05 * torch.randn(weight.shape, generator=g).to(weight))


def chunk(policy, role=STUDENT):
    return policy.draw(tiny_batch(2), noise=NOISE, sampling=WAY, role=role).chunk


def plain(policy, role=STUDENT):
    host, levers = policy.host, policy.host.levers
    host.levers = type(levers).of("off")
    try:
        return chunk(policy, role)
    finally:
        host.levers = levers


def close(a, b):
    return bool((a - b).abs().max() <= ROUNDING * b.abs().max())


def packs(policy, role=STUDENT):
    with torch.no_grad():
        return policy.host.pack(role)


def by_version(policy):
    stir([policy.get_parameter(f"{layer(policy)}.mlp.up_proj.weight")])


def by_optimiser(policy):
    weight = policy.get_parameter(f"{layer(policy)}.self_attn.q_proj.weight")
    optimiser = torch.optim.AdamW([weight], lr=0.1, foreach=True)
    weight.grad = torch.ones_like(weight)
    optimiser.step()


def by_loading(policy):
    policy.load_state_dict({name: 1.1 * value for name, value in policy.state_dict().items()})


def by_another_parameter(policy):
    down = policy.get_submodule(f"{layer(policy)}.mlp.down_proj")
    down.weight = nn.Parameter(1.5 * down.weight.detach())


def by_other_data(policy):
    weight = policy.get_parameter(f"{layer(policy)}.mlp.gate_proj.weight")
    weight.data = 1.5 * weight.data


def by_time(policy):
    stir(policy.model.interval_head.parameters())


def by_vision(policy):
    stir([next(p for n, p in policy.named_parameters() if n.endswith("fc1.weight"))])


def by_another_module(policy):
    layers = policy.get_submodule(layer(policy).rpartition(".")[0])
    layers[1] = copy.deepcopy(layers[1])
    stir(layers[1].parameters())


def by_writing(policy):
    """As averages of weights are often put in place: nothing but the numbers changes, all of them."""
    for weight in policy.get_submodule(layer(policy)).parameters():
        weight.data.copy_(1.5 * weight.data)


CHANGES = [by_version, by_optimiser, by_loading, by_another_parameter, by_other_data, by_time, by_vision]
CHANGES += [by_another_module, by_writing]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_that_autograd_or_a_module_sees_acts_in_the_next_call(host, change):
    policy = made(host)
    before = chunk(policy)
    assert packs(policy) == packs(policy)
    change(policy)
    after = chunk(policy)
    assert not close(after, before)
    assert close(after, plain(policy))


def by_scale(policy):
    for module in policy.host.roles._routed:
        if hasattr(module, "set_scale"):
            module.set_scale("default", 3.0)


def by_disabling(policy):
    for module in policy.host.roles._routed:
        module._disable_adapters = True


def by_adapter(policy):
    stir(list(policy.host.roles.tensors(STUDENT).values())[-4:], seed=5)


@pytest.mark.parametrize("change", [by_scale, by_disabling, by_adapter], ids=lambda change: change.__name__)
@pytest.mark.parametrize("everywhere", [False, True], ids=["expert", "with the VLM"])
def test_a_change_of_adapters_acts_in_the_next_call(host, change, everywhere):
    policy = made(host, lora=True, train_expert_only=not everywhere)
    before = chunk(policy)
    assert close(before, plain(policy))
    change(policy)
    assert not close(chunk(policy), before)
    assert close(chunk(policy), plain(policy))


@pytest.mark.parametrize("boundary", ["reset", "training mode", "another type and back"])
def test_what_nothing_counts_acts_from_the_next_episode_or_training_on(host, boundary):
    policy = made(host)
    before = chunk(policy)
    for name in ("self_attn.o_proj", "mlp.up_proj"):
        policy.get_parameter(f"{layer(policy)}.{name}.weight").data[0] *= 30
    if boundary == "reset":
        policy.reset()
    elif boundary == "training mode":
        policy.train()
        policy.eval()
    else:
        policy.double().float()
    after = chunk(policy)
    assert not close(after, before)
    assert close(after, plain(policy))


def test_a_reset_without_a_change_keeps_the_copies(host):
    policy = made(host)
    chunk(policy)
    before = packs(policy)
    policy.reset()
    assert packs(policy) == before


def test_the_checksum_sees_one_bit_of_any_tensor():
    module = nn.Linear(5, 3).requires_grad_(False)
    for dtype in (torch.float32, torch.bfloat16):
        module = module.to(dtype)
        sources = Sources()
        sources.read_all(module)
        watch = Watch(sources)
        assert not watch.changed()
        for weight in (module.weight, module.bias):
            old = weight.clone()
            weight.data[..., -1] = torch.nextafter(old[..., -1], old[..., -1] + 1)
            assert not watch.stale()
            assert watch.changed()
            weight.data.copy_(old)
            assert not watch.changed()


def test_an_address_that_was_given_away_and_came_back_is_not_taken_for_the_old_tensor():
    module = nn.Linear(64, 64).requires_grad_(False)
    sources = Sources()
    sources.read_all(module)
    watch = Watch(sources)
    for _ in range(50):
        module.weight.data = torch.randn(64, 64)
        assert watch.stale()


def test_recordings_end_with_the_copies_that_they_read(host, monkeypatch):
    fake = install(monkeypatch)
    policy = made(host, lora=True)
    for number, end in enumerate((lambda: None, policy.reset, policy.train, policy.reset)):
        weight = policy.get_parameter(f"{layer(policy)}.self_attn.q_proj.lora_B.default.weight")
        (weight.data if number else weight.detach()).mul_(1.5)
        end()
        policy.eval()
        found = [chunk(policy) for _ in range(3)]
        assert fake.recorded == number + 1
        assert all(close(each, plain(policy)) for each in found)
    assert policy.host.captures.dropped == 3


def test_copies_given_up_in_the_middle_of_a_training_take_their_recordings_along(monkeypatch):
    install(monkeypatch)
    policy = made("pi05")
    policy.host.fast.in_training = False
    for _ in range(3):
        chunk(policy)
    assert policy.host.captures.kept
    policy.model.train()  # not the policy, which would drop them itself
    with torch.no_grad():
        assert policy.host.pack() is None
    assert not policy.host.captures.kept


def test_roles_have_experts_of_their_own_and_share_a_frozen_prefix(host):
    policy = made(host, lora=True)
    policy.host.roles.add(EMA)
    stir(policy.host.roles.tensors(EMA).values(), seed=7)
    found = {}
    for role in (STUDENT, EMA, TEACHER):
        assert close(chunk(policy, role), plain(policy, role))
        found[role] = packs(policy, role)
    assert len({id(pack.prefix) for pack in found.values()}) == 1
    assert len({id(pack.expert) for pack in found.values()}) == 3
    assert found == {role: packs(policy, role) for role in found}


def test_a_role_of_whole_tensors_is_packed_from_where_it_is_kept():
    policy = made("pi05", dtype="bfloat16")
    roles = policy.host.roles
    roles.add(EMA)
    stir(roles.tensors(EMA).values())
    first = chunk(policy, EMA)
    pack = packs(policy, EMA)
    assert pack == packs(policy, EMA) != packs(policy)
    stir(roles.tensors(EMA).values(), seed=3)
    assert packs(policy, EMA) != pack
    assert not close(chunk(policy, EMA), first)
    kept = {name: 0.9 * value for name, value in roles.tensors(EMA).items()}
    pack = packs(policy, EMA)
    roles.load(EMA, kept)
    assert packs(policy, EMA) != pack
    roles.forget()
    policy.reset()
    assert packs(policy) is not None


def test_a_copy_of_a_policy_acts_by_its_own_weights(host):
    policy = made(host)
    before = chunk(policy)
    other = copy.deepcopy(policy)
    by_version(other)
    assert not close(chunk(other), before)
    assert close(chunk(other), plain(other))
    assert torch.equal(chunk(policy), before)


def test_where_a_gradient_is_wanted_or_weights_are_trained_there_is_no_copy():
    policy = made("pi05", lora=True)
    fast = policy.host.fast
    assert policy.host.pack() is None
    assert "gradient" in fast.reason
    policy.train()
    with torch.no_grad():
        assert policy.host.pack(TEACHER) is None
        assert "trained" in fast.reason
        fast.in_training = True
        student, teacher = policy.host.pack(), policy.host.pack(TEACHER)
        assert student.expert is None
        assert teacher.expert is not None
        assert student.prefix is teacher.prefix is not None
    policy.host.attention = "eager"
    assert packs(policy, TEACHER) is None


def hooked(policy):
    policy.get_submodule(f"{layer(policy)}.mlp").register_forward_hook(lambda *_: None)


def replaced(policy):
    class Other(nn.Linear):
        pass

    policy.get_submodule(f"{layer(policy)}.mlp.down_proj").__class__ = Other


def merged(policy):
    policy.config.pretrained_path = "base"
    policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    stir(policy.host.roles.tensors(STUDENT).values())
    policy.get_submodule(f"{layer(policy)}.mlp.down_proj").merge()
    policy.eval()


def computed(policy):
    norm = policy.model.paligemma_with_expert.paligemma.model.language_model.layers[1].input_layernorm
    nn.utils.parametrize.register_parametrization(norm, "weight", nn.Tanh())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (hooked, "a hook"),
        (replaced, "Other"),
        (merged, "merged into its base"),
        (computed, "weight is no parameter"),
    ],
)
def test_what_cannot_be_copied_runs_by_its_modules_and_says_why_once(change, reason, caplog):
    policy = made("pi05")
    change(policy)
    with caplog.at_level(logging.WARNING):
        first = chunk(policy)
        chunk(policy)
    assert close(first, plain(policy))
    told = [r.getMessage() for r in caplog.records if "no packed weights" in r.getMessage()]
    assert len(told) == 1
    assert reason in told[0]


def test_times_are_computed_once_and_kept_within_a_bound(host, monkeypatch):
    policy = made(host)
    asked = []
    times = type(policy.host).times
    monkeypatch.setattr(type(policy.host), "times", lambda *a: asked.append(len(a[2])) or times(*a))
    chunk(policy)
    chunk(policy)
    assert asked == [2]
    for steps in (20, 21, 22, 23):
        policy.draw(tiny_batch(2), noise=NOISE, sampling=Sampling("interval", steps, False))
    assert 40 <= len(packs(policy).expert.times) <= 64
