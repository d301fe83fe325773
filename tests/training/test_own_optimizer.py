"""An optimizer of the user's own trains all that the policy trains, at its shares of the rate, in float32."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ofp_vla.hosts.roles import EMA, FAKE
from tests.training.conftest import arguments, from_scratch

pytestmark = pytest.mark.slow

RATE = 2e-2
OWN = {
    "use_policy_training_preset": "false",
    "optimizer.type": "adam",
    "optimizer.lr": RATE,
    "scheduler.type": "cosine_decay_with_warmup",
    "scheduler.num_warmup_steps": 0,
    "scheduler.num_decay_steps": 10,
    "scheduler.peak_lr": RATE,
    "scheduler.decay_lr": RATE,
    "policy.interval_lr_scale": 0.25,
}


def saved(run, step):
    return run / "checkpoints" / f"{step:06d}"


def rates(run, step):
    groups = json.loads((saved(run, step) / "training_state" / "optimizer_param_groups.json").read_text())
    return [group["initial_lr"] for group in groups]


@pytest.mark.parametrize("host", ["pi0"], indirect=True)  # groups follow from roles, which all hosts share
def test_fake_network_and_interval_head_are_in_it(host, images, base, tmp_path, train):
    run = tmp_path / "run"
    settings = OWN | {"policy.path": base, "policy.objective": "onedp", "policy.onedp.fake_lr_scale": 3.0}
    settings |= {"peft.method_type": "LORA", "peft.r": 4, "steps": 2}
    policy = train(arguments(images, run, **settings))
    assert policy.config.optimizer_lr == RATE
    assert rates(run, 2) == pytest.approx([RATE, 0.25 * RATE, 3 * RATE])
    fakes = [
        load_file(saved(run, step) / "pretrained_model" / FAKE / "adapter_model.safetensors")
        for step in (1, 2)
    ]
    still = [k for k in fakes[0] if "lora_B" in k and torch.equal(fakes[0][k], fakes[1][k])]
    assert not still
    resumed = train(
        [
            f"--config_path={saved(run, 2) / 'pretrained_model/train_config.json'}",
            "--resume=true",
            "--steps=3",
        ]
    )
    assert (resumed.config.trained_steps, resumed.config.total_steps) == (3, 3)
    assert rates(run, 3) == pytest.approx([RATE, 0.25 * RATE, 3 * RATE])


def test_whole_tensors_are_trained_in_float32(host, images, words, tmp_path, train):
    settings = OWN | from_scratch(words, host) | {"policy__dtype": "bfloat16", "steps": 1}
    policy = train(arguments(images, tmp_path / "run", **settings))
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert {t.dtype for t in policy.host.roles.tensors(EMA).values()} == {torch.float32}
    assert rates(tmp_path / "run", 1) == pytest.approx([RATE, 0.25 * RATE])
