"""Where a run starts: an adapter stays the teacher or is refused with the command that helps."""

import json
import re
import shlex
import shutil

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy, make_pre_post_processors
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ofp_vla.cli import main as cli
from ofp_vla.data.checks.check import check_dataset
from ofp_vla.data.checks.needs import needs_of_checkpoint
from ofp_vla.errors import CheckpointError, OFPError
from ofp_vla.hosts.roles import STUDENT, TEACHER
from ofp_vla.policies import load_policy
from ofp_vla.policies.one_step.policy import OneStepPolicy
from tests.support.tiny import HORIZON, HOSTS, WIDTH, random_stats, tiny_batch
from tests.training.conftest import arguments, from_scratch

pytestmark = pytest.mark.slow

OBJECTIVE = {"pi05": "onedp", "pi0": "imle", "smolvla": "ofp"}
STILL = {"policy__optimizer_lr": 1e-12, "policy__scheduler_decay_lr": 1e-12, "steps": 1}


def save_adapter(base, folder, host, seed=0, r=4):
    """An adapter far from its base, with an EMA that is elsewhere again, as the trainer leaves one."""
    policy = HOSTS[host].from_pretrained(base)
    policy.config.pretrained_path = base
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": r})
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in policy.host.roles.tensors(STUDENT).items():
            if "lora_B" in name or "interval_head" in name:
                weight.copy_(torch.randn(weight.shape, generator=g) * 0.3)
    policy.config.total_steps, policy.config.trained_steps = 10, 7
    policy._host.roles.add("ema")
    wrapped.save_pretrained(folder)
    policy.config.save_pretrained(folder)
    for part in make_pre_post_processors(policy.config, dataset_stats=random_stats()):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, host, tmp_path):
    return save_adapter(base, tmp_path / "adapter", host)


def chunk(policy, role=STUDENT):
    """The one-step chunk from one view and noise by the weights of a role, unclipped."""
    policy = next(module for module in policy.modules() if isinstance(module, OneStepPolicy)).eval()
    policy._guard = lambda actions: actions
    noise = torch.randn(3, HORIZON, WIDTH, generator=torch.Generator().manual_seed(2))
    with policy.host.roles.use(role), torch.no_grad():
        return policy.generate(tiny_batch(), noise=noise)


def last(run):
    return run / "checkpoints" / "last" / "pretrained_model"


def test_teacher_of_a_run_from_an_adapter_is_that_adapter_also_when_the_run_is_resumed(
    adapter, base, host, images, tmp_path, train
):
    start, bare = chunk(load_policy(adapter).policy), chunk(load_policy(base).policy)
    assert (start - bare).abs().max() > 1e-2
    run = tmp_path / "run"
    settings = {"policy__path": adapter, "policy__objective": OBJECTIVE[host], "policy__optimizer_lr": 1e-2}
    settings |= {"policy__scheduler_warmup_steps": 0, "steps": 2}
    first = train(arguments(images, run, **settings))
    torch.testing.assert_close(chunk(first, TEACHER), start, rtol=0, atol=1e-5)
    if OBJECTIVE[host] == "onedp":
        moved = first.host.roles.tensors("fake")
        begun = first.host.roles.tensors(TEACHER)
        assert (
            max((moved[k] - begun[k]).abs().max() for k in begun) < 0.5
        )  # it began there, and took two steps
    assert (chunk(first) - start).abs().max() > 1e-3
    assert not any(p.requires_grad for p in first.host.roles.tensors(TEACHER).values())
    assert torch.equal(chunk(load_policy(last(run)).policy), chunk(first))

    resumed = train([f"--config_path={last(run) / 'train_config.json'}", "--resume=true", "--steps=3"])
    torch.testing.assert_close(chunk(resumed, TEACHER), start, rtol=0, atol=1e-5)
    assert resumed.config.trained_steps == 3


def test_teacher_of_a_run_with_a_new_adapter_is_the_base_and_takes_no_file(
    base, host, images, tmp_path, train
):
    settings = {"policy__path": base, "peft__method_type": "LORA", "policy__objective": OBJECTIVE[host]}
    policy = train(arguments(images, tmp_path / "run", steps=1, **settings))
    torch.testing.assert_close(chunk(policy, TEACHER), chunk(load_policy(base).policy), rtol=0, atol=1e-5)
    assert not (last(tmp_path / "run") / "teacher").exists()


def commands(message):
    """What the message says to run."""
    return [shlex.split(found)[1:] for found in re.findall(r"ofp-vla merge [^)]*", message)]


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({"policy__pretrained_path": "ADAPTER", "policy__type": True}, True),
        ({"policy__pretrained_path": "ADAPTER", "policy__type": True, "peft__method_type": "LORA"}, True),
        ({"policy__path": "ADAPTER", "peft__method_type": "LORA", "peft__r": 8}, True),
        ({"policy__path": "ADAPTER", "peft__r": 4, "peft__lora_alpha": 3}, False),
        ({"policy__path": "ADAPTER", "peft__r": 4, "peft__target_modules": ".*gemma_expert.*q_proj"}, False),
    ],
    ids=["pretrained_path", "pretrained_path and peft", "another rank", "another scale", "other layers"],
)
@pytest.mark.parametrize("host", ["pi05"])
def test_start_that_would_lose_the_adapter_is_refused_and_the_command_in_the_message_helps(
    adapter, host, images, settings, taken, tmp_path, train, monkeypatch
):
    """The command is taken once for each way to name the start, with a new adapter and without."""
    monkeypatch.chdir(tmp_path)
    values = {k: adapter if v == "ADAPTER" else v for k, v in settings.items()}
    if values.pop("policy__type", None):
        config = json.loads((adapter / "config.json").read_text())
        kept = ("arch", "image_resolution", "chunk_size", "n_action_steps", "max_action_dim", "max_state_dim")
        kept += ("tokenizer_max_length", "tokenizer_name")
        values |= {f"policy__{k}": json.dumps(config[k]).strip('"') for k in kept}
        values["policy__type"] = f"{host}_ofp"
    with pytest.raises(OFPError, match="LoRA adapter, and this needs whole weights") as refused:
        train(arguments(images, tmp_path / "run", **STILL, **values))
    (command,) = commands(str(refused.value))
    assert command[:3] == ["merge", str(adapter), "--output"]
    if not taken:
        return
    start = chunk(load_policy(adapter).policy)
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    merged = command[-1]
    key = "policy__pretrained_path" if "policy__pretrained_path" in values else "policy__path"
    values |= {key: merged, "policy__objective": "imle"}
    policy = train(arguments(images, tmp_path / "run", **STILL, **values))
    torch.testing.assert_close(chunk(policy, TEACHER), start, rtol=0, atol=1e-3)


@pytest.mark.parametrize("host", ["smolvla"])
def test_start_that_says_adapter_and_is_none_is_refused(base, images, tmp_path, train):
    with pytest.raises(CheckpointError, match=r"use_peft=true.*no adapter_config.json"):
        train(arguments(images, tmp_path / "run", policy__path=base, policy__use_peft="true", **STILL))


@pytest.mark.parametrize("host", ["pi0"])
def test_start_without_processors_is_refused_and_takes_those_of_the_message(
    base, host, images, words, tmp_path, train
):
    for path in base.glob("policy_p*"):
        path.unlink()
    (found,) = [f for f in check_dataset(str(images), needs_of_checkpoint(str(base))) if f.check == "prompts"]
    assert "no policy_preprocessor.json" in found.found
    chosen = {**from_scratch(words, host), "policy__pretrained_path": base}
    with pytest.raises(CheckpointError, match=r"no policy_preprocessor\.json.*make_pre_post_processors"):
        train(arguments(images, tmp_path / "run", steps=1, **chosen))
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    made = make_pre_post_processors(PreTrainedConfig.from_pretrained(base), dataset_stats=random_stats())
    for part in made:
        part.save_pretrained(base)
    assert train(arguments(images, tmp_path / "run", steps=1, **chosen)).config.trained_steps == 1


@pytest.mark.parametrize("host", ["pi0"])
def test_adapter_whose_base_is_an_adapter_is_refused_by_name(adapter, base, host, tmp_path):
    second = save_adapter(base, tmp_path / "second", host, seed=1)
    path = second / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(adapter)}))
    with pytest.raises(
        CheckpointError, match=rf"the base of {second} is another adapter; {adapter} is a LoRA"
    ):
        load_policy(second)


@pytest.mark.parametrize("host", ["pi05"])
def test_moving_average_of_another_rank_is_one_line_that_names_it(adapter, base, host, tmp_path):
    other = save_adapter(base, tmp_path / "other", host, r=2)
    save_file(load_file(other / "ema/adapter_model.safetensors"), adapter / "ema/adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"ema/adapter_model.safetensors.*another rank.*is \(2, "):
        chunk(load_policy(adapter, inference_role="ema").policy)


@pytest.mark.parametrize("host", ["smolvla"])
def test_policy_with_an_adapter_inside_saves_what_loads(adapter, tmp_path):
    loaded = load_policy(adapter, inference_role="ema")
    before = chunk(loaded.policy)
    for part in (loaded.policy, loaded.preprocess, loaded.postprocess):
        part.save_pretrained(tmp_path / "again")
    again = load_policy(tmp_path / "again").policy
    assert torch.equal(chunk(again), before)
    assert load_file(tmp_path / "again/adapter_model.safetensors").keys() == (
        load_file(adapter / "adapter_model.safetensors").keys()
    )


@pytest.mark.parametrize("host", ["pi05"])
def test_whole_checkpoint_that_acts_by_its_average_teaches_a_new_run_as_it_is_and_not_as_it_was_taught(
    base, images, tmp_path, train
):
    first = {"policy__path": base, "policy__optimizer_lr": 1e-2, "policy__inference_role": "ema", "steps": 2}
    train(arguments(images, tmp_path / "one", policy__ofp__first_leg="teacher", **first))
    start = chunk(load_policy(last(tmp_path / "one"), inference_role="student").policy)
    second = train(arguments(images, tmp_path / "two", policy__path=last(tmp_path / "one"), **STILL))
    second.config.inference_role = "student"
    torch.testing.assert_close(chunk(second, TEACHER), start, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["base", "ada/base"])
@pytest.mark.parametrize("host", ["pi0"])
def test_base_in_a_folder_is_found_from_another_one_and_never_taken_for_a_hub_name(
    base, host, images, tmp_path, name, train, monkeypatch
):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / name).parent.mkdir(parents=True)
    elsewhere.mkdir()
    base.rename(home / name)
    monkeypatch.chdir(home)
    policy = train(arguments(images, home / "run", policy__path=name, peft__method_type="LORA", **STILL))
    saved = last(home / "run")
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        home / name
    )
    assert json.loads((saved / "train_config.json").read_text())["policy"]["pretrained_path"] == str(
        home / name
    )
    monkeypatch.chdir(elsewhere)
    assert torch.equal(chunk(load_policy(saved).policy), chunk(policy))
    config = policy.config
    config.pretrained_path = saved
    make_policy(config, ds_meta=LeRobotDatasetMetadata("test/images", root=images))
