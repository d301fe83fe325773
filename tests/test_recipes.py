"""Every recipe is a training configuration that LeRobot's own parser accepts as it stands."""

import re
from pathlib import Path

import pytest
import yaml
from lerobot.configs import parser
from lerobot.configs.train import TrainPipelineConfig

from ofp_vla.assets import tiny_base
from ofp_vla.policies.pi05_ofp.configuration_pi05_ofp import PI05OFPConfig
from ofp_vla.recipes import recipe_names, recipe_path

from .embedded import embedded_config

ROOT = Path(__file__).resolve().parents[1]
TINY = [name for name in recipe_names() if name.startswith("tiny_")]
FULL = [name for name in recipe_names() if name not in TINY]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Parses as `lerobot-train --config_path=<recipe> <arguments>` does, up to the start of training."""
    monkeypatch.chdir(tmp_path)
    # The parser keeps what it found in the last file in module variables.
    monkeypatch.setattr(parser, "_config_path_args", {})
    monkeypatch.setattr(parser, "_config_yaml_overrides", {})

    def run(name: str, *arguments: str) -> TrainPipelineConfig:
        monkeypatch.setattr("sys.argv", ["lerobot-train", f"--config_path={recipe_path(name)}", *arguments])

        @parser.wrap()
        def train(cfg: TrainPipelineConfig) -> TrainPipelineConfig:
            cfg.validate()
            return cfg

        return train()

    return run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Configuration of a tiny base with other training settings than any recipe's."""
    folder = tmp_path / "base"
    config = embedded_config()
    config.optimizer_lr, config.scheduler_decay_steps = 1.0, 7
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", TINY)
def test_tiny_recipe_starts_from_its_base_with_its_own_settings(name: str, base: Path, parse) -> None:
    written = yaml.safe_load(recipe_path(name).read_text())
    config = parse(name, f"--policy.path={base}")
    assert isinstance(config.policy, PI05OFPConfig)
    assert config.policy.arch == "tiny"
    assert config.policy.pretrained_path == base
    settings = {key: value for key, value in written["policy"].items() if key not in ("path", "ofp")}
    assert {key: getattr(config.policy, key) for key in settings} == settings
    objective = written["policy"]["ofp"]
    assert {key: getattr(config.policy.ofp, key) for key in objective} == objective
    assert config.optimizer.lr == written["policy"]["optimizer_lr"]
    assert (config.batch_size, config.steps) == (written["batch_size"], written["steps"])
    assert (config.peft is not None) == ("peft" in written)


@pytest.mark.parametrize("name", TINY)
def test_tiny_recipe_alone_starts_from_the_shipped_base(name: str, parse, tmp_path: Path, base: Path) -> None:
    shipped = tiny_base().relative_to(ROOT)
    (tmp_path / shipped).parent.mkdir(parents=True)
    (tmp_path / shipped).symlink_to(base)
    assert parse(name).policy.pretrained_path == shipped


@pytest.mark.parametrize("name", FULL)
def test_full_size_recipe_makes_our_policy_from_the_stock_checkpoint(name: str, parse) -> None:
    config = parse(name)
    assert isinstance(config.policy, PI05OFPConfig)
    assert config.policy.arch == "full"
    assert config.policy.pretrained_path.as_posix() == "lerobot/pi05_base"
    assert config.policy.dtype == "bfloat16"
    assert config.policy.gradient_checkpointing
    assert config.policy.train_expert_only
    assert (config.peft.method_type, config.peft.r) == ("LORA", 16)


@pytest.mark.parametrize("name", FULL)
def test_setting_of_a_recipe_can_be_changed_on_the_command_line(name: str, parse) -> None:
    config = parse(name, "--policy.optimizer_lr=3e-6", "--steps=12", "--policy.ofp.endpoint_weight=0")
    assert (config.optimizer.lr, config.steps, config.policy.ofp.endpoint_weight) == (3e-6, 12, 0)


@pytest.mark.parametrize("name", recipe_names())
def test_schedule_ends_with_the_run_and_nothing_is_pushed_unasked(name: str) -> None:
    written = yaml.safe_load(recipe_path(name).read_text())
    assert written["policy"]["scheduler_decay_steps"] == written["steps"]
    assert written["policy"]["push_to_hub"] is False
    assert written["output_dir"] == f"outputs/train/{name}"


@pytest.mark.parametrize("name", recipe_names())
def test_header_gives_the_command_and_how_to_evaluate(name: str) -> None:
    header = recipe_path(name).read_text().split("\ndataset:")[0]
    assert f"lerobot-train --config_path=recipes/{name}.yaml" in header
    assert "lerobot-eval --policy.path=outputs/train/" + name in header
    assert re.search(r"Memory and time: ", header)
