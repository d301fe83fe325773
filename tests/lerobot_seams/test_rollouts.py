"""`lerobot-rollout` on a robot with policies of this package, in its synchronous and its real-time engine."""

import shutil
import signal
import sys
import time

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.rollout.inference import rtc
from lerobot.scripts import lerobot_rollout

from ofp_vla.errors import NonFiniteActionError
from ofp_vla.policies.one_step.statistics import adopt_statistics
from ofp_vla.policies.pi05_ofp.modeling_pi05_ofp import PI05OFPPolicy
from ofp_vla.policies.rollouts import RolloutError
from tests.support.fakerobot import JOINTS, FakeRobot
from tests.support.tiny import (
    HORIZON,
    HOSTS,
    SENTENCES,
    random_stats,
    tiny_policy,
    train_head,
    write_tokenizer,
)

RTC = ("--inference.type=rtc", "--inference.rtc.execution_horizon=4")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Writes a checkpoint whose actions have the robot's names, once for equal settings."""
    written = {}

    def write(host="pi05", **changes):
        if (host, str(changes)) in written:
            return written[host, str(changes)]
        folder = tmp_path_factory.mktemp("policy")
        words = write_tokenizer(folder / "words")
        policy = tiny_policy(host=host, tokenizer_name=str(words), action_feature_names=JOINTS, **changes)
        train_head(policy)
        adopt_statistics(policy.config, random_stats())
        policy.save_pretrained(folder / "policy")
        for pipeline in make_pre_post_processors(policy.config, dataset_stats=random_stats()):
            pipeline.save_pretrained(folder / "policy")
        written[host, str(changes)] = folder / "policy"
        return folder / "policy"

    return write


@pytest.fixture
def rollout(monkeypatch, tmp_path):
    """Runs the command in this process and gives the robot."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lerobot_rollout, "init_logging", lambda: None)
    monkeypatch.setattr(FakeRobot, "made", [])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(checkpoint, *options, duration=120, enough=lambda robot: len(robot.sent) > 7):
        monkeypatch.setattr(FakeRobot, "enough", staticmethod(enough))
        command = ["lerobot-rollout", f"--policy.path={checkpoint}", "--robot.type=fake_robot"]
        command += [f"--task={SENTENCES[0]}", "--fps=20", f"--duration={duration}", "--play_sounds=false"]
        monkeypatch.setattr(sys, "argv", [*command, "--return_to_initial_position=false", *options])
        lerobot_rollout.rollout()
        (robot,) = FakeRobot.made
        assert not robot.connected
        return robot

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


def assert_acted(robot):
    assert len(robot.sent) > 1
    sent = torch.tensor([[action[name] for name in JOINTS] for action in robot.sent])
    assert sent.isfinite().all()
    assert sent.diff(dim=0).abs().max() > 1e-4


@pytest.mark.parametrize("host", HOSTS)
def test_synchronous_engine_sends_actions(checkpoint, rollout, host):
    assert_acted(rollout(checkpoint(host, n_action_steps=3)))


@pytest.mark.parametrize(
    ("host", "changes"),
    [*((host, {}) for host in HOSTS), ("pi05", {"draws": 4}), ("pi05", {"sampler": "host"})],
)
def test_real_time_engine_sends_actions_and_each_chunk_keeps_those_of_the_delay(
    checkpoint, rollout, monkeypatch, host, changes
):
    asked = []
    predict = PI05OFPPolicy.predict_action_chunk

    def watched(self, batch, **given):
        chunk = predict(self, batch, **given)
        asked.append((given, chunk))
        return chunk

    monkeypatch.setattr(HOSTS[host], "predict_action_chunk", watched)
    checkpoint = checkpoint(host, **changes)
    assert_acted(rollout(checkpoint, *RTC, enough=lambda robot: len(robot.sent) > 7 and len(asked) > 2))
    assert asked[0][0] == {"inference_delay": 0, "prev_chunk_left_over": None}
    delays = [given["inference_delay"] for given, _ in asked[1:]]
    assert max(delays) > 0
    for given, chunk in asked[1:]:
        left = given["prev_chunk_left_over"]
        there = int(left.ne(0).any(dim=1).sum())
        kept = min(given["inference_delay"], there)
        assert chunk.shape[1] == HORIZON
        if changes.get("sampler") != "host":
            assert torch.equal(chunk[0, :kept], left[:kept])


def test_relative_actions_reach_the_robot_by_the_real_time_engine_and_are_refused_before_it_by_the_other(
    checkpoint, rollout, capsys
):
    relative = checkpoint(use_relative_actions=True)
    with pytest.raises(SystemExit):
        rollout(relative)
    assert "use --inference.type=rtc" in capsys.readouterr().err
    assert FakeRobot.made == []
    assert_acted(rollout(relative, *RTC))


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ((*RTC, "--policy.sampler=host", "--policy.draws=4"), "guided sampler draws one chunk"),
        ((*RTC[:1], "--inference.rtc.execution_horizon=0"), "execution_horizon=0: expected the number"),
        (("--use_torch_compile=true",), "use_torch_compile=true"),
        (("--policy.draws=0",), "policy.draws"),
    ],
)
def test_what_the_policy_cannot_do_is_refused_before_the_robot_is_connected(
    checkpoint, rollout, options, wrong, capsys
):
    with pytest.raises(SystemExit):
        rollout(checkpoint(), *options)
    assert wrong in capsys.readouterr().err
    assert FakeRobot.made == []


@pytest.mark.parametrize(("duration", "wrong"), [(120, "failed so often"), (0.3, "got no action in 0.3 s")])
def test_policy_that_fails_is_no_success_of_the_command(checkpoint, rollout, monkeypatch, duration, wrong):
    def fail(self, batch, **given):
        raise NonFiniteActionError("not a number")

    monkeypatch.setattr(PI05OFPPolicy, "predict_action_chunk", fail)
    monkeypatch.setattr(rtc, "_RTC_ERROR_RETRY_DELAY_S", 0.01 if duration > 1 else 0.2)
    with pytest.raises(RolloutError, match=wrong):
        rollout(checkpoint(), *RTC, duration=duration)
    (robot,) = FakeRobot.made
    assert not robot.connected
    assert robot.sent == []


def test_policy_whose_chunks_all_come_too_late_is_no_success_of_the_command(checkpoint, rollout, monkeypatch):
    predict = PI05OFPPolicy.predict_action_chunk

    def slow(self, batch, **given):
        time.sleep(2 * HORIZON / 100)
        return predict(self, batch, **given)

    monkeypatch.setattr(PI05OFPPolicy, "predict_action_chunk", slow)
    with pytest.raises(RolloutError, match=f"later than its {HORIZON} actions last at --fps=100"):
        rollout(checkpoint(), *RTC, "--fps=100", duration=0.8)
    (robot,) = FakeRobot.made
    assert robot.sent == []


def test_adapter_acts_in_both_engines(checkpoint, rollout, tmp_path, monkeypatch):
    base, adapter = checkpoint(), tmp_path / "adapter"
    policy = PI05OFPPolicy.from_pretrained(base)
    policy.config.pretrained_path = base
    policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
    policy.save_pretrained(adapter)
    for file in base.glob("policy_*processor*"):
        shutil.copy(file, adapter)
    for options in ((), RTC):
        monkeypatch.setattr(FakeRobot, "made", [])
        assert_acted(rollout(adapter, *options))
