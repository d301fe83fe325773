import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot.utils.constants import ACTION, OBS_STATE

from ofp_vla.core import shift_and_pad
from ofp_vla.errors import DataError, NonFiniteActionError
from ofp_vla.policies.checkpoint import load_policy
from ofp_vla.policies.one_step.warm_start import rebase
from ofp_vla.policies.sampling import Sampling
from ofp_vla.serving.local_policy import LocalPolicy
from robotwin_eval.policy.protocol import ChunkPolicy, PolicyError, check_reply
from robotwin_eval.sim.aloha.robot import ACTION_HIGH, ACTION_LOW, ACTION_NAMES
from tests.support.acting import HORIZON, JOINTS, assert_rows_agree, request, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("local") / "checkpoint")


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_policy(checkpoint)


@pytest.fixture(scope="module")
def relative(tmp_path_factory):
    folder = tmp_path_factory.mktemp("relative") / "checkpoint"
    return load_policy(write_checkpoint(folder, use_relative_actions=True))


def chunk(policy, *requests):
    return np.stack([reply.actions for reply in policy.infer(list(requests))])


def test_it_is_a_policy_the_evaluation_accepts(loaded):
    policy = LocalPolicy(loaded, "ofp@1")
    assert isinstance(policy, ChunkPolicy)
    assert (policy.cameras, policy.horizon, policy.sampling.steps) == (("cam_high",), HORIZON, 1)
    assert LocalPolicy(loaded, "base", sampler="host").sampling.steps == 10
    asked = [request(0), request(1)]
    for reply, wanted in zip(policy.infer(asked), asked, strict=True):
        actions = check_reply(reply, wanted, HORIZON)
        assert actions.shape == (HORIZON, JOINTS)
        assert reply.seconds > 0


def test_a_row_does_not_depend_on_the_rows_beside_it(loaded):
    for sampler in ("interval", "host"):
        together = LocalPolicy(loaded, "a", sampler=sampler, steps=2)
        alone = LocalPolicy(loaded, "b", sampler=sampler, steps=2)
        for step in (0, 1):  # the second chunk starts warm
            asked = [request(row, step) for row in range(3)]
            separate = np.concatenate([chunk(alone, each) for each in asked])
            assert_rows_agree(chunk(together, *asked), separate)


def test_draws_have_their_own_noise_and_a_row_depends_on_nothing_beside_it(loaded):
    one, first = LocalPolicy(loaded, "one"), LocalPolicy(loaded, "first", draws=4, choose="first")
    dense = [LocalPolicy(loaded, name, draws=4) for name in ("together", "alone")]
    for step in (0, 1):
        asked = [request(row, step) for row in range(3)]
        # The first draw is the draw of a policy that takes one.
        assert_rows_agree(chunk(first, *asked), chunk(one, *asked))
        separate = np.concatenate([chunk(dense[1], each) for each in asked])
        assert_rows_agree(chunk(dense[0], *asked), separate)
    key = request(0).key
    assert len({key.seed(draw) for draw in range(4)}) == 4
    replies = dense[0].infer([request(0), request(1)])
    assert all(reply.spread > 0 for reply in replies)
    assert one.infer([request(0)])[0].spread is None
    assert {dense[0].describe()["policy"][name] for name in ("draws", "choose")} == {4, "dense"}
    assert dense[0].describe()["policy"]["fingerprint"].endswith("-interval1-warm-dense4")


def test_a_row_in_doubt_depends_on_nothing_beside_it(loaded):
    asked = [request(row) for row in range(3)]
    apart = sorted(reply.spread for reply in LocalPolicy(loaded, "apart", draws=4).infer(asked))
    way = {"draws": 4, "doubt_steps": 3, "doubt": (apart[0] + apart[1]) / 2}
    together, alone = (LocalPolicy(loaded, name, **way) for name in ("together", "alone"))
    replies = together.infer(asked)
    assert sorted(reply.doubted for reply in replies) == [False, True, True]
    separate = [alone.infer([each])[0] for each in asked]
    assert [reply.doubted for reply in separate] == [reply.doubted for reply in replies]
    assert_rows_agree(*(np.stack([reply.actions for reply in each]) for each in (replies, separate)))
    assert together.describe()["policy"]["fingerprint"].endswith(f"-dense4-doubt3@{way['doubt']:g}")


def test_it_tells_the_names_of_its_dimensions_where_the_checkpoint_has_one_for_each(loaded, monkeypatch):
    assert "dimension_names" not in LocalPolicy(loaded, "unnamed").describe()["policy"]
    names = {OBS_STATE: list(ACTION_NAMES[::-1]), ACTION: list(ACTION_NAMES)}
    monkeypatch.setattr(loaded.policy.config, "dimension_names", names)
    told = {"state": names[OBS_STATE], "action": names[ACTION]}
    assert LocalPolicy(loaded, "named").describe()["policy"]["dimension_names"] == told
    monkeypatch.setattr(loaded.policy.config, "dimension_names", {**names, ACTION: ["waist"]})
    assert LocalPolicy(loaded, "a").describe()["policy"]["dimension_names"] == {"state": told["state"]}


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize(("key", "name"), [("observation.image", "image"), ("observation.top", "top")])
def test_cameras_outside_lerobots_images_are_seen_under_their_names(loaded, monkeypatch, key, name, allowed):
    # As in lerobot/pusht and the xarm datasets; allowed to be missing, one under a wrong key would be masked.
    asked = request(0)
    wanted = chunk(LocalPolicy(loaded, "a"), asked)
    config = loaded.policy.config
    features = {k.replace("observation.images.cam_high", key): v for k, v in config.input_features.items()}
    monkeypatch.setattr(config, "input_features", features)
    monkeypatch.setattr(config, "allow_missing_cameras", allowed)
    policy = LocalPolicy(loaded, "a")
    assert policy.cameras == (name,)
    seen = replace(asked.observation, images={name: asked.observation.images["cam_high"]})
    np.testing.assert_array_equal(chunk(policy, replace(asked, observation=seen)), wanted)


def test_two_cameras_of_one_last_name_stay_two(loaded, monkeypatch):
    features = dict(loaded.policy.config.input_features)
    features |= dict.fromkeys(("observation.cam_high", "observation.image"), next(iter(features.values())))
    monkeypatch.setattr(loaded.policy.config, "input_features", features)
    assert LocalPolicy(loaded, "a").cameras == ("cam_high", "observation.cam_high", "image")


def test_noise_follows_the_key_alone(loaded):
    policy = LocalPolicy(loaded, "a", warm=False)
    first = chunk(policy, request(0))
    chunk(policy, request(1))
    np.testing.assert_array_equal(chunk(policy, request(0)), first)
    other = request(0, 1)
    seen = request(0).observation
    moved = type(other)(other.session, seen, other.instruction, other.key, reset=True, executed=0)
    assert np.abs(chunk(policy, moved) - first).max() > 1e-3


def test_policies_that_share_weights_sample_each_in_its_own_way(loaded):
    before = copy.deepcopy(vars(loaded.policy.config))
    one, ten = LocalPolicy(loaded, "a", warm=False), LocalPolicy(loaded, "b", sampler="host", warm=False)
    first = chunk(one, request(0))
    assert np.abs(chunk(ten, request(0)) - first).max() > 1e-3
    np.testing.assert_array_equal(chunk(one, request(0)), first)
    assert vars(loaded.policy.config) == before


def test_a_warm_start_continues_its_own_session_by_what_was_executed(loaded):
    policy = LocalPolicy(loaded, "a")
    cold = LocalPolicy(loaded, "b", warm=False)
    chunk(policy, request(0), request(1))
    kept = {name: last.chunk for name, last in policy._sessions.items()}
    follow = request(0, 1, executed=5)
    batch = loaded.preprocess(policy._raw([follow]))
    expected = loaded.policy.generate(
        batch,
        noise=policy._noise(follow.key)[None],
        sampling=Sampling("interval", 1, True),
        warm=torch.cat([kept["s0"][:, 5:], kept["s0"][:, -1:].expand(1, 5, -1)], dim=1),
    )
    warm = chunk(policy, follow)
    np.testing.assert_allclose(warm[0], loaded.postprocess(expected[..., :JOINTS])[0].numpy(), atol=1e-5)
    assert np.abs(warm - chunk(cold, follow)).max() > 1e-3
    torch.testing.assert_close(policy._sessions["s1"].chunk, kept["s1"])


def test_a_reset_forgets_the_session(loaded):
    policy, fresh = LocalPolicy(loaded, "a"), LocalPolicy(loaded, "b")
    chunk(policy, request(0))
    again = request(0, 1, reset=True)
    np.testing.assert_array_equal(chunk(policy, again), chunk(fresh, again))


def test_relative_actions_start_warm_from_the_same_place_in_space(relative):
    policy = LocalPolicy(relative, "a")
    chunk(policy, request(0))
    last = policy._sessions["s0"]
    follow = request(0, 1, executed=HORIZON // 2)
    batch = relative.preprocess(policy._raw([follow]))
    warm = policy._previous([follow], batch)[0][None]
    expected = rebase(
        shift_and_pad(last.chunk, 8), last.state, batch["observation.state"], relative.policy.relative_scale()
    )
    torch.testing.assert_close(warm, expected)
    # Robot joints of the aligned chunk: relative to the new state they are where the old chunk put them.
    now = relative.postprocess(warm[..., :JOINTS])
    relative.preprocess(policy._raw([request(0)]))
    then = relative.postprocess(shift_and_pad(last.chunk, 8)[..., :JOINTS])
    torch.testing.assert_close(now, then, atol=1e-4, rtol=0)


def test_actions_stay_within_the_robots_limits_and_clips_are_counted(loaded):
    low, high = ACTION_LOW * 0.01, ACTION_HIGH * 0.01
    policy = LocalPolicy(loaded, "a", limits=(low, high), warm=False)
    free = chunk(LocalPolicy(loaded, "b", limits=None, warm=False), request(0))
    actions = chunk(policy, request(0))
    np.testing.assert_array_equal(actions, np.clip(free, low, high))
    assert policy.clipped == int((free != actions).sum()) > 0


def test_clients_may_tell_the_delay_where_a_late_chunk_can_be_continued(loaded):
    ways = [("interval", 1), ("interval", 4), ("host", 1), ("host", 4)]
    told = [LocalPolicy(loaded, "a", sampler=s, draws=k).describe()["understands"] for s, k in ways]
    assert told == [["execute", "delay"]] * 3 + [["execute"]]


def test_a_failed_call_leaves_the_sessions_alone(loaded):
    policy = LocalPolicy(loaded, "a")
    chunk(policy, request(0))
    kept = dict(policy._sessions)
    blind = request(1)
    blind.observation.images.clear()
    with pytest.raises(PolicyError, match="needs camera 'cam_high'"):
        policy.infer([request(0, 1), blind])
    with pytest.raises(DataError, match="ask twice"):
        policy.infer([request(0, 1), request(0, 1)])
    assert policy._sessions == kept


def test_nan_weights_raise_and_never_reach_the_robot(tmp_path):
    policy = LocalPolicy(load_policy(write_checkpoint(tmp_path / "broken", broken=True)), "broken")
    with pytest.raises(NonFiniteActionError, match=r"rows \[0\]"):
        policy.infer([request(0)])
    assert policy._sessions == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "euler"}, "sampler is 'euler'"),
        ({"steps": 0}, "steps is 0"),
        ({"limits": (np.zeros(3), np.ones(3))}, r"gives actions of 14 values, and the robot here takes 3"),
    ],
)
def test_bad_arguments_are_named(loaded, changes, message):
    with pytest.raises(ValueError, match=message):
        LocalPolicy(loaded, "a", **changes)
