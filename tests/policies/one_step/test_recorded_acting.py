"""Acting by recordings: the chunks of the path without them, and what happens where they differ."""

import logging
from dataclasses import replace

import pytest
import torch

from ofp_vla.counting import count
from ofp_vla.errors import NonFiniteActionError
from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.roles import EMA, STUDENT, TEACHER
from ofp_vla.policies.one_step import drawing
from ofp_vla.policies.one_step.agreement import agreement
from ofp_vla.policies.sampling import Sampling
from tests.support.recording import install
from tests.support.tiny import ACTIONS, HORIZON, HOSTS, WIDTH, tiny_batch, tiny_policy, train_head

WAYS = {
    "one step": Sampling("interval", 1, False),
    "eight draws": Sampling("interval", 1, False, 8),
    "three steps, warm": Sampling("interval", 3, True),
    "host's sampler": Sampling("host", 4, False),
}


@pytest.fixture
def fake(monkeypatch):
    return install(monkeypatch)


@pytest.fixture(scope="module")
def policies():
    """One of each host, with a trained head."""
    made = {host: tiny_policy(host=host) for host in HOSTS}
    for policy in made.values():
        train_head(policy)
    return made


@pytest.fixture
def policy(policies, request):
    """π0.5, or another host where a test says so, that has recorded nothing."""
    policy = policies[getattr(request, "param", "pi05")]
    policy._host = None
    policy.reset()
    return policy


every_host = pytest.mark.parametrize("policy", HOSTS, indirect=True)


def noise(rows, way, seed=0):
    shape = (rows, *([way.draws] if way.draws > 1 else []), HORIZON, WIDTH)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("policy", "way", "rows"),
    [*(("pi05", way, 3) for way in WAYS), *((host, way, 1) for host in HOSTS for way in list(WAYS)[:3:2])],
    indirect=["policy"],
)
def test_chunks_are_the_same_bits_as_unrecorded(fake, policy, way, rows):
    way = WAYS[way]
    levers = Levers(buckets=False)  # those change rounding
    warm = {}
    if way.warm:
        mixed = None if rows == 1 else torch.tensor([True, False, True])
        warm = {"warm": noise(rows, WAYS["one step"], 9), "warm_rows": mixed}
    for seed in range(3):
        batch, start = tiny_batch(rows, seed), noise(rows, way, seed)
        policy.host.levers = levers
        drawn = policy.draw(batch, noise=start, sampling=way, **warm)
        policy.host.levers = replace(levers, graphs=False)
        expected = policy.draw(batch, noise=start, sampling=way, **warm)
        assert torch.equal(drawn.chunk, expected.chunk)
        assert (drawn.spread is None) == (expected.spread is None)
        assert drawn.spread is None or torch.equal(drawn.spread, expected.spread)
    assert fake.recorded >= 1
    assert policy.host.captures.repeated >= 1


def calls(ask, times=3):
    for _ in range(times):
        ask()


@every_host
def test_every_way_to_act_is_recorded_and_waits_no_more_than_before(fake, policy):
    batch = tiny_batch(1)
    for ask in (policy.predict_action_chunk, policy.generate, policy.select_action):
        policy._host = None
        calls(lambda ask=ask: (policy.reset(), ask(batch)))
        assert policy.host.captures.repeated == 2
        assert policy.host.captures.reasons == {}
    counted = count(lambda: policy.draw(batch, sampling=WAYS["one step"]))
    assert counted.waits == 2


@pytest.mark.parametrize("engine", ["off", "-graphs"])
def test_nothing_is_recorded_without_the_lever(fake, policy, engine):
    policy.host.levers = Levers.of(engine)
    calls(lambda: policy.predict_action_chunk(tiny_batch(1)))
    assert fake.recorded == 0


def test_doubt_is_not_recorded_as_a_whole_and_that_is_said_once(fake, policy, caplog):
    way = Sampling("interval", 1, False, 4, doubt_steps=3, doubt=0.0)
    start = noise(3, way)
    seen = [policy.draw(tiny_batch(3), noise=start, sampling=way).chunk for _ in range(3)]
    assert all(torch.equal(chunk, seen[0]) for chunk in seen)
    assert caplog.text.count("a chunk with doubt is not recorded") == 1
    assert set(policy.host.captures.kept) == {"the prefix"}


def test_guard_counts_and_refuses_as_without_recordings(fake):
    policy = tiny_policy(action_low=[-0.1] * ACTIONS, action_high=[0.1] * ACTIONS)
    train_head(policy)
    batch, way = tiny_batch(2), WAYS["one step"]
    counts = []
    for _ in range(4):
        before = policy.guard.clipped
        policy.draw(batch, noise=noise(2, way), sampling=way)
        counts.append(policy.guard.clipped - before)
    assert counts[0] > 0
    assert counts == counts[:1] * 4
    policy.model.action_out_proj.bias.data.fill_(float("nan"))
    with pytest.raises(NonFiniteActionError, match=r"rows \[0, 1\]"):
        policy.draw(batch, noise=noise(2, way), sampling=way)
    # Limits of a new dataset are no part of what was recorded.
    policy.model.action_out_proj.bias.data.zero_()
    policy.guard.limits = None
    assert policy.draw(batch, noise=noise(2, way), sampling=way).chunk.abs().max() > 0.2


def test_roles_are_recorded_apart_and_averages_are_seen_as_they_move(fake):
    policy = tiny_policy(total_steps=10)
    train_head(policy)
    policy.config.pretrained_path = "base"
    policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    roles = policy.host.roles
    roles.add(EMA)
    batch, way = tiny_batch(2), WAYS["one step"]
    # Without copies: recordings then read the weights where they lie, whatever writes there.
    levers = policy.host.levers = Levers(packed=False, buckets=False)

    def draw(role):
        return policy.draw(batch, noise=noise(2, way), sampling=way, role=role).chunk

    seen = {}
    for _ in range(3):
        for role, size in ((STUDENT, 0.05), (EMA, 0.02)):
            for number, weight in enumerate(roles.tensors(role).values()):
                weight.data.add_(
                    size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
                )
            found = [draw(role) for _ in range(3)]
            policy.host.levers = replace(levers, graphs=False)
            assert all(torch.equal(chunk, draw(role)) for chunk in found)
            policy.host.levers = levers
            assert (found[0] - seen.get(role, 0)).abs().max() > 1e-4
            seen[role] = found[0]
        seen["teacher"] = draw(TEACHER)
    assert policy.host.captures.dropped == 0
    assert (seen[STUDENT] - seen[EMA]).abs().max() > 1e-4
    assert fake.recorded == 3


def test_copies_of_weights_that_change_end_their_recordings_every_time(fake):
    policy, batch, way = tiny_policy(), tiny_batch(2), WAYS["one step"]
    train_head(policy)
    weight = policy.model.action_out_proj.weight
    for change in range(3):
        with torch.no_grad():
            weight.mul_(1.5)
        found = [policy.draw(batch, noise=noise(2, way), sampling=way).chunk for _ in range(4)]
        policy.host.levers = Levers(graphs=False, buckets=False)
        expected = policy.draw(batch, noise=noise(2, way), sampling=way).chunk
        policy.host.levers = Levers()
        assert all((chunk - expected).abs().max() <= 1e-4 * expected.abs().max() for chunk in found)
        assert policy.host.captures.made == change + 1


def test_a_policy_that_is_sent_elsewhere_gives_its_memory_back_at_once(fake, policy):
    calls(lambda: policy.draw(tiny_batch(1)))
    assert policy.host.captures.kept
    policy.to(torch.float64)
    assert not policy.host.captures.kept
    policy.to(torch.float32)


def test_the_first_real_chunk_is_compared_with_the_path_without_levers_once(
    fake, policy, monkeypatch, caplog
):
    compared = []
    real = drawing.agreement
    monkeypatch.setattr(drawing, "agreement", lambda *a, **k: compared.append(1) or real(*a, **k))
    batch, way = tiny_batch(1), WAYS["eight draws"]
    calls(lambda: policy.draw(batch, sampling=way))  # made up: nobody watches
    assert compared == []
    calls(lambda: policy.draw(batch, sampling=way, watched=None))
    assert len(compared) == 1  # by the recording that is there already
    other = WAYS["one step"]
    calls(lambda: policy.draw(batch, sampling=other, watched=None))
    assert len(compared) == 3  # as it was first, and as it was recorded
    calls(lambda: policy.draw(tiny_batch(3), sampling=other, watched=None))
    assert len(compared) == 3
    assert "engine=off" not in caplog.text


def test_chunks_that_are_not_those_without_levers_end_the_fast_path_with_the_number(fake, caplog):
    policy = tiny_policy()
    train_head(policy)
    batch, way = tiny_batch(2), WAYS["one step"]
    policy.host.levers = Levers.of("off")
    expected = policy.draw(batch, noise=noise(2, way), sampling=way).chunk
    policy.host.levers = Levers()
    calls(lambda: policy.draw(batch, noise=noise(2, way), sampling=way))
    (recording,) = policy.host.captures._recordings.values()
    repeat = recording.repeat
    recording.repeat = lambda: (repeat(), recording.outputs[0].mul_(1.01))  # a kernel that computes wrongly
    with caplog.at_level(logging.WARNING):
        found = [policy.draw(batch, noise=noise(2, way), sampling=way, watched=None).chunk for _ in range(3)]
    assert all(torch.equal(chunk, expected) for chunk in found)
    assert caplog.text.count("engine=off from here on") == 1
    assert "0.01 of the largest action apart, at most 0.001 is allowed" in caplog.text


def test_agreement_in_16_bits_is_of_directions_and_of_the_nearest_draw():
    g = torch.Generator().manual_seed(0)
    chunk = torch.randn(4, HORIZON, ACTIONS, generator=g)
    other = torch.randn(4, HORIZON, ACTIONS, generator=g)
    for tilt, holds in ((0.05, True), (0.2, False)):  # cosines .9988 and .98
        found = agreement(chunk + tilt * other, chunk, reduced=True)
        assert found.holds is holds
        assert found.said.startswith("cosine 0.9")
    draws = torch.stack([other, chunk, -chunk], dim=1)
    assert agreement(chunk, draws, reduced=False).holds
    assert not agreement(chunk + 0.01, draws, reduced=False).holds
