"""Every recipe is a training configuration that LeRobot's parser accepts, and a policy that can be built."""

import copy
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lerobot.configs import PreTrainedConfig, parser
from typer.testing import CliRunner

from ofp_vla.checkpoints.assets import tiny_base
from ofp_vla.cli import main as cli
from ofp_vla.core.objectives import OFPConfig
from ofp_vla.policies.pi05_ofp.configuration_pi05_ofp import PI05OFPConfig
from ofp_vla.training.command import training_command
from ofp_vla.training.recipe_config import parse_recipe
from ofp_vla.training.recipe_model import build_on_meta
from ofp_vla.training.recipes import RecipeError, recipe_names, recipe_path

ROOT = Path(__file__).resolve().parents[2]
TINY = [name for name in recipe_names() if name.startswith("tiny_")]
FULL = [name for name in recipe_names() if name not in TINY]
BASES = {
    "pi05_ofp": "lerobot/pi05_base",
    "pi0_ofp": "lerobot/pi0_base",
    "smolvla_ofp": "lerobot/smolvla_base",
}
EXPERT = re.compile(r"gemma_expert|lm_expert|time_mlp|action_(in|out|time)|state_proj|interval_head")


def file_of(name: str) -> str:
    return f"--config_path={recipe_path(name)}"


@functools.cache
def shipped(name: str):
    """The configuration of a recipe as it stands; tests that change it copy it."""
    return parse_recipe(name)


# ---- LeRobot's parser


SIZE = (
    "arch",
    "tokenizer_name",
    "tokenizer_max_length",
    "image_resolution",
    "max_state_dim",
    "max_action_dim",
    "chunk_size",
    "n_action_steps",
    "normalization_mapping",
    "paligemma_variant",
    "action_expert_variant",
    "min_period",
    "max_period",
    "use_relative_actions",
)


def settings_of(written: dict, config) -> dict:
    """The settings that a block of YAML names, as `config` has them, in YAML's types."""
    found = {key: getattr(config, key) for key in written}
    return {
        key: settings_of(written[key], value) if isinstance(written[key], dict) else _plain(value)
        for key, value in found.items()
    }


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", TINY)
def test_tiny_recipe_has_its_own_settings_and_the_size_of_the_shipped_base(name: str) -> None:
    written = yaml.safe_load(recipe_path(name).read_text())
    config = shipped(name)
    assert isinstance(config.policy, PI05OFPConfig)
    assert config.policy.pretrained_path == tiny_base()
    policy = {key: value for key, value in written["policy"].items() if key != "pretrained_path"}
    assert settings_of(policy, config.policy) == policy
    assert (config.batch_size, config.steps) == (written["batch_size"], written["steps"])
    assert (config.peft is not None) == ("peft" in written)
    base = PreTrainedConfig.from_pretrained(tiny_base())
    assert {key: getattr(config.policy, key) for key in SIZE} == {key: getattr(base, key) for key in SIZE}


@pytest.mark.parametrize("name", TINY)
def test_setting_of_a_tiny_recipe_can_be_changed_on_lerobots_command_line(name: str, parse) -> None:
    config = parse(
        file_of(name),
        "--policy.objective=flow_matching",
        "--policy.ofp.queries=5",
        "--policy.n_action_steps=3",
    )
    policy = config.policy
    assert (policy.objective, policy.ofp.queries, policy.n_action_steps) == ("flow_matching", 5, 3)
    assert policy.arch == "tiny"


@pytest.mark.parametrize("name", [name for name in FULL if "imle" not in name and "onedp" not in name])
def test_base_that_has_not_learned_the_task_is_no_teacher(name: str) -> None:
    assert shipped(name).policy.ofp == OFPConfig.scratch()


@pytest.mark.parametrize("name", FULL)
def test_full_size_recipe_makes_our_policy_from_the_stock_checkpoint(name: str) -> None:
    config = shipped(name)
    written = yaml.safe_load(recipe_path(name).read_text())
    assert config.policy.pretrained_path.as_posix() == BASES[config.policy.type]
    assert config.policy.arch == "full"
    objective = next((word for word in ("onedp", "imle") if word in name), "ofp")
    assert config.policy.objective == objective
    policy = {key: value for key, value in written["policy"].items() if key != "pretrained_path"}
    assert settings_of(policy, config.policy) == policy
    assert (config.peft is not None) == ("peft" in written)


@pytest.mark.parametrize("name", FULL)
def test_setting_of_a_recipe_can_be_changed_on_the_command_line(name: str, parse) -> None:
    config = parse(
        file_of(name), "--policy.optimizer_lr=3e-6", "--steps=12", "--policy.ofp.endpoint_weight=0"
    )
    assert (config.optimizer.lr, config.steps, config.policy.ofp.endpoint_weight) == (3e-6, 12, 0)


@pytest.mark.parametrize("name", recipe_names())
def test_schedule_ends_with_the_run_and_nothing_is_pushed_unasked(name: str) -> None:
    written = yaml.safe_load(recipe_path(name).read_text())
    assert written["policy"]["scheduler_decay_steps"] == written["steps"]
    assert written["policy"]["push_to_hub"] is False
    assert written["output_dir"] == f"outputs/train/{name}"


@pytest.mark.parametrize("name", recipe_names())
def test_header_gives_the_commands_and_what_the_run_costs(name: str) -> None:
    header = recipe_path(name).read_text().split("\ndataset:")[0]
    checkpoint = f"outputs/train/{name}/checkpoints/last/pretrained_model"
    assert f"ofp-vla train {name}" in header
    assert f"ofp-vla recipes cp {name}" in header
    assert f"lerobot-train --config_path={name}.yaml" in header
    assert re.search(rf"(lerobot-eval|lerobot-rollout|ofp-vla serve) (--policy.path=)?{checkpoint}", header)
    assert re.search(r"Memory and time[:,] ", header)
    assert f"ofp-vla push {checkpoint} you/{name}" in header
    assert re.search(
        r"\d GB of memory, " if name in TINY else r"\d+ GB of GPU\s(# )?memory at\s(# )?batch", header
    )
    assert name in TINY or re.search("Memory and time, (measured on an H200|estimates)", header)
    assert name not in TINY or "--episodes 1000" in header


# ---- the policy


def _sizes(model) -> tuple[set[str], set[str]]:
    """Names of the trained tensors of the expert, and of all others."""
    trained = {name for name, parameter in model.policy.named_parameters() if parameter.requires_grad}
    expert = {name for name in trained if EXPERT.search(name)}
    return expert, trained - expert


@pytest.mark.parametrize("name", FULL)
def test_policy_is_built_at_full_size_and_trains_what_the_recipe_says(name: str) -> None:
    config = copy.deepcopy(shipped(name))
    model = build_on_meta(config)
    size = {"pi05_ofp": 4.14e9, "pi0_ofp": 4.03e9, "smolvla_ofp": 0.45e9}[config.policy.type]
    assert model.parameters == pytest.approx(size, rel=0.02)
    assert {parameter.device.type for parameter in model.policy.parameters()} == {"meta"}
    expert, others = _sizes(model)
    assert any("interval_head" in tensor for tensor in expert)
    if config.peft is None:
        assert others == set()
        assert model.trained > 9e7
        return
    assert model.trained < 5e7
    assert all("lora_" in tensor or "interval_head" in tensor for tensor in expert | others)
    layers = {match[0] for tensor in expert if (match := re.search(r"layers\.\d+", tensor))}
    assert len(layers) == 18
    assert bool(others) == (not config.policy.train_expert_only)
    assert all("language_model" in tensor for tensor in others)


@pytest.mark.parametrize("name", TINY)
def test_tiny_recipe_s_policy_can_be_built(name: str) -> None:
    model = build_on_meta(copy.deepcopy(shipped(name)))
    assert model.parameters < 4e6
    assert 0 < model.trained < model.parameters


# ---- our commands


def test_reading_a_recipe_leaves_the_parser_and_the_command_line_as_they_were(monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["mine", "--config_path=elsewhere"])
    before = dict(parser._config_path_args), dict(parser._config_yaml_overrides)
    config = parse_recipe(TINY[0], ["steps=7", "--policy.ofp.queries=3"])
    assert (config.steps, config.policy.ofp.queries) == (7, 3)
    assert sys.argv == ["mine", "--config_path=elsewhere"]
    assert (dict(parser._config_path_args), dict(parser._config_yaml_overrides)) == before


def test_recipe_is_valid_although_its_run_exists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/train" / FULL[0]).mkdir(parents=True)
    assert parse_recipe(FULL[0]).output_dir == Path(f"outputs/train/{FULL[0]}")


def test_recipe_of_an_installed_wheel_finds_the_shipped_base(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_recipe(TINY[0]).policy.pretrained_path == tiny_base()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"stepz": 3}, "stepz"),
        ({"steps": "many"}, "steps"),
        ({"policy": {"type": "pi07_ofp"}}, "pi07_ofp"),
        (
            {"policy": {"type": "pi05_ofp", "push_to_hub": False, "arch": "huge"}},
            "policy.arch: must be one of",
        ),
    ],
)
def test_mistake_in_a_recipe_is_one_line_that_names_it(tmp_path: Path, change, complaint: str) -> None:
    written = yaml.safe_load(recipe_path(FULL[0]).read_text()) | change
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(written))
    with pytest.raises(RecipeError, match=re.escape(complaint)) as caught:
        parse_recipe(str(path))
    assert str(path) in str(caught.value)


def test_file_that_is_not_yaml_and_a_setting_without_value_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("policy: [")
    with pytest.raises(RecipeError, match="not YAML"):
        parse_recipe(str(path))
    with pytest.raises(RecipeError, match="expected key=value"):
        training_command(FULL[0], ["steps"])


def test_train_command_is_lerobot_s_trainer_with_the_overrides(tmp_path: Path) -> None:
    command = training_command("pi05_ofp_lora", ["steps=3", "--policy.dtype=float32"])
    assert command == [
        sys.executable,
        "-m",
        "lerobot.scripts.lerobot_train",
        "--discover_packages_path=lerobot_policy_ofp",
        f"--config_path={recipe_path('pi05_ofp_lora')}",
        "--steps=3",
        "--policy.dtype=float32",
    ]
    several = training_command("pi05_ofp_lora", [], gpus=4)
    assert several[1:5] == ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=4"]
    assert several[-3:] == command[2:5]


def test_resume_goes_on_from_the_run_s_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        training_command("pi05_ofp_lora", [f"output_dir={tmp_path}"], resume=True)
    config = tmp_path / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    command = training_command("pi05_ofp_lora", [f"output_dir={tmp_path}"], resume=True)
    assert f"--config_path={config}" in command
    assert command[-1] == "--resume=true"


def test_resume_of_a_recipe_without_a_folder_asks_for_it_and_the_advice_helps(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"policy": {"type": "pi05_ofp"}, "steps": 3}))
    with pytest.raises(RecipeError, match=r"has no output_dir.* output_dir=FOLDER"):
        training_command(str(path), [], resume=True)
    config = tmp_path / "dated" / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    command = training_command(str(path), [f"output_dir={tmp_path / 'dated'}"], resume=True)
    assert f"--config_path={config}" in command


def test_recipes_are_listed_shown_and_copied(tmp_path: Path) -> None:
    listed = CliRunner().invoke(cli.app, ["recipes", "ls"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == recipe_names()
    shown = CliRunner().invoke(cli.app, ["recipes", "show", "smolvla_ofp"]).stdout
    assert shown == recipe_path("smolvla_ofp").read_text()
    assert CliRunner().invoke(cli.app, ["recipes", "cp", "smolvla_ofp", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "smolvla_ofp.yaml").read_text() == shown
    again = CliRunner().invoke(cli.app, ["recipes", "cp", "smolvla_ofp", str(tmp_path)])
    assert (again.exit_code, "--force" in again.stderr) == (2, True)
    with pytest.raises(RecipeError):
        recipe_path("no_such_recipe")


def test_validate_reports_each_recipe_and_fails_when_one_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: [")
    result = CliRunner().invoke(cli.app, ["recipes", "validate", TINY[0], str(path)])
    assert result.exit_code == 1
    assert re.search(
        rf"ok +{TINY[0]}: pi05_ofp, \d+ steps of batch \d+, [12]\.\d M parameters", result.stdout
    )
    assert f"failed  {path}" in result.stdout


@pytest.mark.slow
def test_train_runs_lerobot_s_trainer_and_hands_its_exit_status_on(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ofp_vla.cli.main", "train", TINY[0], "dataset.root=nowhere", "steps=1"]
    command += ["dataset.repo_id=test/nothing", "--policy.device=cpu"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "lerobot_train" in run.stderr
    assert "test/nothing" in run.stderr
