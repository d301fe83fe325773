"""`lerobot-train` end to end on the tiny policy: whole expert, LoRA, video data, resume."""

import json
import shutil

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType
from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy
from safetensors.torch import load_file

from ofp_vla.core import EmaDecay
from ofp_vla.errors import CheckpointError
from ofp_vla.hosts.roles import EMA, STUDENT
from ofp_vla.policies import load_policy
from tests.support.stock import expert_layers
from tests.support.tiny import HORIZON, PARTS, WIDTH, tiny_batch
from tests.training.conftest import arguments, from_scratch

pytestmark = pytest.mark.slow


def saved(run, step):
    return run / "checkpoints" / f"{step:06d}" / "pretrained_model"


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def assert_follows(before, student, after, step):
    """`after` is the EMA of the update that follows optimiser step `step`, bit for bit but rounding."""
    decay = EmaDecay()(step)
    assert after.keys() <= before.keys()
    for name, tensor in after.items():
        expected = decay * before[name] + (1 - decay) * student[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
    moved = sum(float((after[n] - before[n]).abs().sum()) for n in after)
    assert moved > 0


def chunk(policy):
    noise = torch.randn(3, HORIZON, WIDTH, generator=torch.Generator().manual_seed(0))
    return policy.eval().generate(tiny_batch(), noise=noise)


def test_whole_expert_run_resumes_with_its_ema_its_counter_and_the_new_length(
    host, images, words, tmp_path, train
):
    run = tmp_path / "run"
    first = train(arguments(images, run, steps=3, **from_scratch(words, host)))
    assert (first.config.trained_steps, first.config.total_steps) == (3, 3)
    frozen = {n for n, p in first.named_parameters() if not p.requires_grad}
    assert any(PARTS[host].vision in n for n in frozen)
    ema = load_file(saved(run, 3) / "ema.safetensors")
    assert ema.keys() == {n for n, p in first.named_parameters() if p.requires_grad}
    assert all(torch.equal(v, first.host.roles.tensors(EMA)[k]) for k, v in ema.items())
    assert config_of(saved(run, 2))["trained_steps"] == 2
    # the dataset's own limits travel with the policy
    limits = LeRobotDatasetMetadata("test/images", root=images).stats["action"]
    span = torch.tensor(first.config.action_high) - torch.tensor(first.config.action_low)
    unit = (limits["q99"] - limits["q01"]) / 2 if host == "pi05" else limits["std"]
    expected = (limits["max"] - limits["min"]) / unit
    torch.testing.assert_close(span, torch.as_tensor(expected).float(), rtol=1e-4, atol=1e-4)

    command = [f"--config_path={saved(run, 3) / 'train_config.json'}", "--resume=true", "--steps=5"]
    resumed = train(command)
    assert (resumed.config.trained_steps, resumed.config.total_steps) == (5, 5)
    for step in (3, 4):
        files = [load_file(saved(run, n) / "ema.safetensors") for n in (step, step + 1)]
        assert_follows(files[0], load_file(saved(run, step + 1) / "model.safetensors"), files[1], step)

    kept = config_of(saved(run, 5))
    assert (kept["trained_steps"], kept["total_steps"]) == (5, 5)

    loaded = load_policy(saved(run, 5))
    assert torch.equal(chunk(loaded.policy), chunk(resumed))
    averaged = load_policy(saved(run, 5), inference_role="ema").policy
    resumed.config.inference_role = "ema"
    assert torch.equal(chunk(averaged), chunk(resumed))
    assert not torch.equal(chunk(averaged), chunk(loaded.policy))


# What is kept of a run, and what a new one starts from, are counters and roles, which all hosts share.
@pytest.mark.parametrize("host", ["smolvla"], indirect=True)
def test_new_run_from_a_trained_checkpoint_starts_its_schedules_anew(images, base, tmp_path, train):
    settings = {"policy__path": base, "policy__optimizer_lr": 1e-3}
    train(arguments(images, tmp_path / "one", steps=2, **settings))
    settings["policy__path"] = saved(tmp_path / "one", 2)
    second = train(arguments(images, tmp_path / "two", steps=1, **settings))
    assert (second.config.trained_steps, second.config.total_steps) == (1, 1)
    start = load_file(saved(tmp_path / "one", 2) / "model.safetensors")
    folder = saved(tmp_path / "two", 1)
    # the average starts at the weights that the new run starts from, not at the old run's average
    assert_follows(start, load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors"), 0)


def adapter(folder, role=""):
    return load_file(folder / role / "adapter_model.safetensors")


def test_lora_run_keeps_its_ema_adapter_beside_it_and_resumes_it_exactly(host, images, base, tmp_path, train):
    run = tmp_path / "run"
    settings = {"policy__path": base, "policy__optimizer_lr": 1e-2, "peft__method_type": "LORA", "peft__r": 4}
    policy = train(arguments(images, run, steps=3, **settings))
    folder = saved(run, 3)
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == ["interval_head"]
    assert not (folder / "model.safetensors").exists()
    weights = adapter(folder)
    assert any("interval_head" in k for k in weights)
    assert any("lora_A" in k for k in weights)
    assert not any(".ema" in k or PARTS[host].vlm in k for k in weights)
    assert adapter(folder, EMA).keys() == weights.keys()
    trained = load_file(base / "model.safetensors")
    assert all("interval_head" in k or torch.equal(v, trained[k]) for k, v in _bases(policy).items())

    resumed = train([f"--config_path={folder / 'train_config.json'}", "--resume=true", "--steps=5"])
    assert (resumed.config.trained_steps, resumed.config.total_steps) == (5, 5)
    for step in (3, 4):
        now, then = saved(run, step + 1), saved(run, step)
        assert_follows(adapter(then, EMA), adapter(now), adapter(now, EMA), step)

    for role in (STUDENT, EMA):
        resumed.config.inference_role = role
        loaded = load_policy(saved(run, 5), inference_role=role)
        torch.testing.assert_close(chunk(loaded.policy), chunk(resumed), rtol=0, atol=0)
    assert (chunk(load_policy(saved(run, 5)).policy) - chunk(resumed)).abs().max() > 0

    lost = saved(run, 5)
    shutil.move(base, tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=str(base)):
        load_policy(lost)
    config = PreTrainedConfig.from_pretrained(lost)
    config.pretrained_path = lost
    with pytest.raises(CheckpointError, match=str(base)):
        make_policy(config, ds_meta=LeRobotDatasetMetadata("test/images", root=images))


def _bases(policy):
    """Base weights inside a wrapped policy under their own names."""
    return {
        name.replace(".base_layer", ""): p
        for name, p in policy.state_dict().items()
        if ".lora_" not in name and ".modules_to_save." not in name and ".original_module." not in name
    }


def test_video_dataset_trains(videos, words, tmp_path, train):
    meta = LeRobotDatasetMetadata("test/videos", root=videos)
    assert len(meta.video_keys) == 2
    policy = train(arguments(videos, tmp_path / "run", steps=1, **from_scratch(words)))
    assert policy.config.trained_steps == 1
    assert {f.type for f in policy.config.image_features.values()} == {FeatureType.VISUAL}


def test_bfloat16_with_gradient_checkpointing_trains_keeps_precisions_and_loads(
    host, images, words, tmp_path, train
):
    settings = {"policy__dtype": "bfloat16", "policy__gradient_checkpointing": "true", "steps": 2}
    policy = train(arguments(images, tmp_path / "run", **settings, **from_scratch(words, host)))
    assert policy.config.trained_steps == 2
    assert policy.model.gradient_checkpointing_enabled
    layer = expert_layers(policy)[0]
    # What is trained is float32, what is frozen bfloat16.
    assert layer.mlp.up_proj.weight.dtype == torch.float32
    assert torch.bfloat16 in {p.dtype for p in policy.host.vlm_parameters()}
    assert {p.dtype for p in policy.model.interval_head.parameters()} == {torch.float32}
    assert {t.dtype for t in policy.host.roles.tensors(EMA).values()} == {torch.float32}
    own, loaded = policy.state_dict(), load_policy(saved(tmp_path / "run", 2)).policy.state_dict()
    assert all(torch.equal(own[k].to(v.dtype), v) for k, v in loaded.items())
    assert torch.bfloat16 in {v.dtype for k, v in loaded.items() if k.endswith("up_proj.weight")}
