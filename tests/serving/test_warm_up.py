"""What a server has made before its first client comes."""

import numpy as np
import pytest

from ofp_vla.policies.checkpoint import load_policy
from ofp_vla.serving.local_policy import LocalPolicy
from ofp_vla.serving.warm_up import warm_up
from robotwin_eval.policy.protocol import NoiseKey, Observation, Request
from tests.support.acting import JOINTS, write_checkpoint
from tests.support.recording import install


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("warm") / "checkpoint")


def test_one_chunk_is_made_where_nothing_is_recorded(checkpoint):
    policy = LocalPolicy(load_policy(checkpoint), "policy")
    assert warm_up(policy, "lift the red bar").startswith("1 chunks of empty scenes in")


def test_the_first_requests_of_an_episode_repeat_what_was_recorded(checkpoint, monkeypatch):
    fake = install(monkeypatch)
    policy = LocalPolicy(load_policy(checkpoint), "policy", warm=True)
    sizes = []
    infer = policy.infer
    monkeypatch.setattr(policy, "infer", lambda requests: sizes.append(len(requests)) or infer(requests))
    said = warm_up(policy, "lift the red bar with both arms", max_batch=8)
    # What is compiled is compiled for one row, for another number, and then for all.
    assert [sizes.count(size) > 0 for size in (1, 2, 3, 4)] == [True, True, True, False]
    assert policy._sessions == {}
    assert f"{fake.recorded} recordings for repetition" in said
    assert fake.recorded >= 2  # cold and warm
    images = {camera: np.full((48, 64, 3), 90, np.uint8) for camera in policy.cameras}
    observation = Observation(images, np.zeros(JOINTS, np.float32))
    before = policy.loaded.policy.host.captures.repeated
    for number, reset in enumerate((True, False)):
        key = NoiseKey(0, "task", 1, number)
        task = "lift the red bar with both arms"
        policy.infer([Request("robot", observation, task, key, reset=reset, executed=8)])
    assert policy.loaded.policy.host.captures.repeated == before + 2


def test_a_policy_whose_recording_fails_is_served_all_the_same(checkpoint, monkeypatch):
    fake = install(monkeypatch)
    fake.failures = [RuntimeError("capture is invalid")] * 20
    said = warm_up(LocalPolicy(load_policy(checkpoint), "policy"), "lift the red bar")
    assert "a chunk runs operator by operator: RuntimeError: capture is invalid" in said
