"""Sessions whose robots move on while the policy thinks: their chunks continue the running ones."""

import dataclasses

import numpy as np
import pytest
import torch

from ofp_vla.core.choosing import distances, spread
from ofp_vla.errors import DataError
from ofp_vla.policies.checkpoint import load_policy
from ofp_vla.serving.local_policy import LocalPolicy
from tests.support.acting import HORIZON, JOINTS, assert_rows_agree, request, write_checkpoint

LATE, DONE = 3, 6


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_policy(write_checkpoint(tmp_path_factory.mktemp("late") / "checkpoint"))


@pytest.fixture(scope="module")
def relative(tmp_path_factory):
    folder = tmp_path_factory.mktemp("late-relative") / "checkpoint"
    return load_policy(write_checkpoint(folder, use_relative_actions=True))


def late(row, chunk, delay=LATE, **changes):
    return dataclasses.replace(request(row, chunk, executed=DONE if chunk else 0), delay=delay, **changes)


def actions(policy, *requests):
    return np.stack([reply.actions for reply in policy.infer(list(requests))])


@pytest.mark.parametrize("sampler", ["interval", "host"])
def test_a_late_chunk_is_that_of_lerobots_real_time_engine(loaded, sampler):
    policy = LocalPolicy(loaded, "a", sampler=sampler, steps=2, warm=True)
    actions(policy, late(0, 0))
    running = policy._sessions["s0"].chunk
    follow = late(0, 1)
    batch = loaded.preprocess(policy._raw([follow]))
    stock = loaded.policy
    stock.real_time_settings()  # what the server takes; LeRobot's engine would have brought its own
    kept = {name: getattr(stock.config, name) for name in ("sampler", "num_inference_steps")}
    stock.config.sampler, stock.config.num_inference_steps = sampler, 2
    try:
        expected = stock.predict_action_chunk(
            batch,
            noise=policy._noise(follow.key)[None],
            inference_delay=LATE,
            prev_chunk_left_over=running[:, DONE:, :JOINTS],
        )
    finally:
        for name, value in kept.items():
            setattr(stock.config, name, value)
    np.testing.assert_allclose(actions(policy, follow)[0], loaded.postprocess(expected)[0].numpy(), atol=1e-5)
    if sampler == "interval":
        frozen = policy._sessions["s0"].chunk[:, :LATE, :JOINTS]
        torch.testing.assert_close(frozen, running[:, DONE : DONE + LATE, :JOINTS], rtol=0, atol=0)


def test_a_robot_that_has_nothing_left_or_a_policy_that_starts_cold_continues_nothing(loaded):
    cold = actions(LocalPolicy(loaded, "cold", warm=False), request(0, 1))
    for way, follow in [
        ({"warm": False}, late(0, 1)),
        ({"warm": True}, dataclasses.replace(late(0, 1), executed=HORIZON)),
        ({"warm": True}, late(0, 1, reset=True)),
    ]:
        policy = LocalPolicy(loaded, "a", **way)
        actions(policy, late(0, 0))
        np.testing.assert_array_equal(actions(policy, follow), cold)


@pytest.mark.parametrize("sampler", ["interval", "host"])
def test_rows_that_continue_something_else_or_nothing_do_not_disturb_each_other(loaded, sampler):
    together, alone = (LocalPolicy(loaded, name, sampler=sampler, steps=2, warm=True) for name in "ab")
    # One that waits for its chunk, two that are late differently, one whose episode begins.
    firsts = [request(0), late(1, 0), late(2, 0)]
    seconds = [request(0, 1), late(1, 1), late(2, 1, delay=40), late(3, 0)]
    for asked in (firsts, seconds):
        separate = np.concatenate([actions(alone, each) for each in asked])
        assert_rows_agree(actions(together, *asked), separate)


def test_relative_actions_that_are_frozen_stay_where_they_were_in_space(relative):
    policy = LocalPolicy(relative, "a", warm=True)
    before = actions(policy, late(0, 0))[0]
    after = actions(policy, late(0, 1))[0]
    np.testing.assert_allclose(after[:LATE], before[DONE : DONE + LATE], atol=1e-4)
    assert np.abs(after[-1] - before[-1]).max() > 1e-2


def test_only_actions_that_will_be_carried_out_count_in_choosing_among_draws(loaded, monkeypatch):
    monkeypatch.setattr(loaded.policy.guard, "limits", None)  # draws are chosen before they are clipped
    policy = LocalPolicy(loaded, "a", draws=3, warm=False)
    asked = [dataclasses.replace(request(row), execute=count) for row, count in enumerate((2, 7))]
    batch = loaded.preprocess(policy._raw(asked))
    noise = torch.stack([policy._noise(each.key) for each in asked])
    way = dataclasses.replace(policy.sampling, draws=1)
    chunks = [loaded.policy.draw(batch, noise=noise[:, k], sampling=way).chunk for k in range(3)]
    apart = distances(torch.stack(chunks, dim=1)[..., :JOINTS], torch.tensor([2, 7]))
    told = [reply.spread for reply in policy.infer(asked)]
    np.testing.assert_allclose(told, spread(apart).numpy(), rtol=1e-4)


def test_the_hosts_sampler_continues_one_draw_only(loaded):
    policy = LocalPolicy(loaded, "a", sampler="host", steps=2, draws=2, warm=True)
    actions(policy, late(0, 0))
    with pytest.raises(DataError, match="draws one chunk, not 2"):
        policy.infer([late(0, 1)])
