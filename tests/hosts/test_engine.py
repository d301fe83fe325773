"""Each lever of the fast path against the path without it, and that old weights do not act."""

from dataclasses import replace

import pytest
import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK

from ofp_vla.core import Query
from ofp_vla.counting import count
from ofp_vla.hosts.engine import GPUS, Levers
from ofp_vla.hosts.fast import fused_layers
from ofp_vla.hosts.roles import EMA, STUDENT, TEACHER
from ofp_vla.policies.sampling import Sampling
from tests.support.tiny import CAMERAS, HORIZON, WIDTH, tiny_batch, tiny_policy, train_head

WAYS = {
    "one step": Sampling("interval", 1, False),
    "eight draws": Sampling("interval", 1, False, 8),
    "three steps": Sampling("interval", 3, False),
    "host's sampler": Sampling("host", 4, False),
}
BATCHES = {
    "one row": tiny_batch(1),
    "padded prompts": tiny_batch(3),
    "missing camera": tiny_batch(3, **{CAMERAS[1]: None}),
}
# Relative to the largest action. The random tiny models raise rounding by much, pi05's adaptive norms most:
# the spread over seeds was 1e-5.
ROUNDING = 1e-4
# These leave out what changes no bit of what is kept.
SAME_BITS = ("last_layer", "one_wait", "unmasked")


def noise(rows, way, seed=0):
    shape = (rows, *([way.draws] if way.draws > 1 else []), HORIZON, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_engine(policy, engine):
    policy.config.change(engine=engine)
    policy._host = None
    return policy


def drawn(policy, engine, batch, way, **given):
    rows = len(batch[OBS_LANGUAGE_ATTENTION_MASK])
    if policy.config.engine != engine:
        with_engine(policy, engine)
    return policy.draw(batch, noise=noise(rows, way), sampling=way, **given).chunk


def drawn_every_way(policy, engine):
    """Name of a batch and of a way -> the chunks that are drawn."""
    return {(b, w): drawn(policy, engine, BATCHES[b], WAYS[w]) for b in BATCHES for w in WAYS}


@pytest.fixture(scope="module")
def acting(host):
    policy = tiny_policy(host=host, allow_missing_cameras=True)
    train_head(policy)
    return policy


@pytest.fixture(scope="module")
def fast(acting):
    return drawn_every_way(acting, "on")


def test_chunks_are_those_without_the_fast_path(acting, fast):
    for kind, off in drawn_every_way(acting, "off").items():
        assert (fast[kind] - off).abs().max() <= ROUNDING * off.abs().max(), kind


@pytest.mark.parametrize("batch", BATCHES)
def test_chunks_by_the_kernels_and_sizes_of_a_gpu_are_those_of_a_cpu(host, batch):
    policy = tiny_policy(host=host, allow_missing_cameras=True)
    train_head(policy)
    for way in (WAYS["one step"], WAYS["eight draws"]):
        off = drawn(policy, "off", BATCHES[batch], way)
        GPUS.add("cpu")
        try:
            on = drawn(policy, "on", BATCHES[batch], way)
        finally:
            GPUS.remove("cpu")
        assert (on - off).abs().max() <= ROUNDING * off.abs().max()


@pytest.mark.parametrize("lever", Levers.names())
def test_each_lever_alone_changes_no_more_than_rounding(acting, fast, lever):
    for kind, without in drawn_every_way(acting, f"-{lever}").items():
        on = fast[kind]
        if lever in SAME_BITS:
            assert torch.equal(on, without), kind
        assert (on - without).abs().max() <= ROUNDING * on.abs().max(), kind


@pytest.mark.parametrize("draws", [1, 8])
def test_rows_that_start_warm_have_the_same_numbers_beside_rows_that_do_not(acting, draws):
    batch, way = BATCHES["padded prompts"], Sampling("interval", 3, True, draws)
    start = noise(3, WAYS["one step"], seed=5)
    rows = torch.tensor([True, False, True])
    cold, warm = drawn(acting, "on", batch, way), drawn(acting, "on", batch, way, warm=start)
    mixed = drawn(acting, "on", batch, way, warm=start, warm_rows=rows)
    bound = ROUNDING * cold.abs().max()
    assert (mixed[rows] - warm[rows]).abs().max() <= bound
    assert (mixed[~rows] - cold[~rows]).abs().max() <= bound
    assert (drawn(acting, "off", batch, way, warm=start, warm_rows=rows) - mixed).abs().max() <= bound


def test_no_lever_remembers_weights_adapters_or_roles_from_before_a_reset(host):
    policy = tiny_policy(host=host, total_steps=10)
    train_head(policy)
    policy.config.pretrained_path = "base"
    policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    roles = policy.host.roles
    roles.add(EMA)
    batch, way = BATCHES["padded prompts"], WAYS["three steps"]
    start = noise(3, way)
    g = torch.Generator().manual_seed(0)

    def on(role):
        policy.host.levers = Levers()
        return policy.draw(batch, noise=start, sampling=way, role=role).chunk

    def off(role):
        policy.host.levers = Levers.of("off")
        return policy.draw(batch, noise=start, sampling=way, role=role).chunk

    def agree(role):
        assert (on(role) - off(role)).abs().max() <= ROUNDING * off(role).abs().max()

    seen = {}
    for role in (STUDENT, EMA, TEACHER, STUDENT):
        agree(role)
        seen[role] = on(role)
    for weight in roles.tensors(STUDENT).values():
        # Behind autograd's back: no counter of versions sees it, so copies are compared at a reset.
        weight.data.add_(0.05 * torch.randn(weight.shape, generator=g))
    policy.reset()
    assert (on(STUDENT) - seen[STUDENT]).abs().max() > 1e-2
    assert torch.equal(on(TEACHER), seen[TEACHER])
    agree(STUDENT)
    for name, weight in policy.model.named_parameters():
        if "time_mlp" in name and "lora" not in name:
            weight.data.mul_(1.5)
    policy.reset()
    assert (on(TEACHER) - seen[TEACHER]).abs().max() > 1e-2
    agree(TEACHER)


def test_training_has_the_losses_and_gradients_of_the_path_without_levers(host):
    found = {}
    for engine in ("on", "off"):
        policy = tiny_policy(host=host, engine=engine, total_steps=10).train()
        torch.manual_seed(0)
        loss, _ = policy(tiny_batch())
        loss.backward()
        gradients = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        found[engine] = loss.detach(), torch.cat(gradients)
    torch.testing.assert_close(*(loss for loss, _ in found.values()), rtol=1e-5, atol=1e-5)
    on, off = (gradient for _, gradient in found.values())
    assert (on - off).norm() <= 1e-4 * off.norm()


@pytest.mark.parametrize("engine", ["on", "-packed"])
def test_full_prompts_need_no_mask_and_padding_or_a_null_query_does(host, engine, monkeypatch):
    policy = tiny_policy(host=host, engine=engine)
    seen = []
    packed = engine == "on"
    where, name = (fused_layers, "fast_attention") if packed else (policy.host, "_attend")
    attend = getattr(where, name)

    def watched(*given):
        # The vision tower's heads share no keys, and never have a mask.
        if not packed or given[2].shape[1] < given[1].shape[2]:
            seen.append(given[4 if packed else -1] is None)
        return attend(*given)

    monkeypatch.setattr(where, name, watched)

    def masked(batch, null=None):
        seen.clear()
        rows = len(batch[OBS_LANGUAGE_ATTENTION_MASK])
        z, t = torch.zeros(rows, HORIZON, WIDTH), torch.zeros(rows)
        with torch.no_grad():
            policy.host.bind(policy._observation(batch))([Query(z, t, t + 1, null)])
        return not any(seen)

    assert not masked(tiny_batch(1))
    assert masked(tiny_batch(3))
    if host == "pi05":
        assert all(seen) is False
        masked(tiny_batch(1))
        assert all(seen)
        masked(tiny_batch(1), torch.tensor([True]))
        assert not all(seen)


@pytest.mark.parametrize("way", WAYS)
def test_a_chunk_waits_once_for_its_inputs_and_once_for_its_result(acting, way):
    batch, way = BATCHES["padded prompts"], WAYS[way]
    with_engine(acting, "on").predict_action_chunk(batch)  # the first one says what must be known
    assert count(lambda: acting.draw(batch, sampling=way)).waits == 2
    acting.reset()
    assert count(lambda: acting.predict_action_chunk(batch)).waits == 2


def test_the_fast_path_of_a_bfloat16_policy_adds_no_error_of_its_own(host):
    """Against float32 with the same (rounded) weights, over draws of weights."""
    errors = {"on": [], "-vision": [], "-packed": [], "off": []}
    way = WAYS["one step"]
    for seed in range(4):
        policy = tiny_policy(seed=seed, host=host, dtype="bfloat16")
        train_head(policy)
        batch, start = tiny_batch(3, seed), noise(3, way, seed)
        chunks = {}
        for engine in errors:
            policy.host.levers = Levers.of(engine)
            chunks[engine] = policy.draw(batch, noise=start, sampling=way).chunk
        policy.model.float()
        exact = policy.draw(batch, noise=start, sampling=way).chunk
        for engine, chunk in chunks.items():
            errors[engine].append(float((chunk - exact).norm() / exact.norm()))
    assert all(sum(found) <= 1.5 * sum(errors["off"]) for found in errors.values())
    assert max(errors["on"]) < 0.1


@pytest.mark.parametrize("engine", ["fast", "unmasked", "-masks", "on,-times", "+times", "-fp8", ""])
def test_an_unknown_lever_is_refused_by_name(engine):
    with pytest.raises(ValueError, match=r"policy\.engine: must be 'on', 'off', or levers"):
        tiny_policy(engine=engine)


def test_levers_are_read_from_one_word():
    assert Levers.of("on") == Levers()
    every = [*Levers.names(), *Levers.options()]
    assert not any(getattr(Levers.of("off"), name) for name in every)
    left = Levers.of("-times, -trim")
    assert {name for name in Levers.names() if not getattr(left, name)} == {"times", "trim"}
    assert not left.fp8
    assert Levers.of("+fp8,-trim") == replace(Levers.of("-trim"), fp8=True)
