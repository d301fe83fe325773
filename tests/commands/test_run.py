"""Commands of the documentation that a CPU can run, run: as they stand there, made small by further options.

What is left out needs a GPU, the Hub or RoboTwin, or runs for hours; `test_read` looks at those.
"""

import json
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from lerobot.configs import parser
from lerobot.scripts import lerobot_eval, lerobot_train
from typer.testing import CliRunner

import ofp_vla.embedded.env
import ofp_vla.policies  # noqa: F401  both register what LeRobot's parser chooses from
from ofp_vla.cli import main as cli
from ofp_vla.training.command import training_command
from ofp_vla.training.recipes import recipe_names
from robotwin_eval.cli import main as evaluation
from robotwin_eval.policy.client import RemotePolicy
from tests.commands.reading import ROOT, Command, commands, run_files
from tests.data.robotwin_files import write_native
from tests.support.serving import command_at

pytestmark = pytest.mark.slow

TINY = [name for name in recipe_names() if name.startswith("tiny_")]
SMALL = {"steps": 1, "batch_size": 2, "num_workers": 0, "log_freq": 1, "policy.device": "cpu"}


def command(file: str, start: str, number: int = 0) -> Command:
    """The command of a file that starts with these words."""
    return [c for c in commands(ROOT / file) if c.text.startswith(start)][number]


def header(recipe: str, start: str) -> Command:
    return command(f"recipes/{recipe}.yaml", start)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory):
    """The folder that all commands are given in, one after the other."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(parser, "_config_path_args", {})
        patch.setattr(parser, "_config_yaml_overrides", {})
        yield folder


def ours(told: Command, *more: str, codes: tuple[int, ...] = (0,), **names: object) -> str:
    """Runs a command of ours; what it printed. `names` replaces words of the text."""
    program, *words = [str(names.get(word, word)) for word in told.words]
    app = {"ofp-vla": cli.app, "robotwin-eval": evaluation.app}[program]
    result = CliRunner().invoke(app, [*words, *more])
    assert result.exit_code in codes, f"{told}\n{result.output}\n{result.exception!r}"
    return result.output


def options(**settings: object) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


def trainer(words: list[str]) -> None:
    """LeRobot's trainer with the options of a command line."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lerobot-train", *words])
        lerobot_train.train()


def checkpoint_of(run: str) -> Path:
    return Path("outputs") / "train" / run / "checkpoints" / "last" / "pretrained_model"


@pytest.fixture(scope="module")
def demonstrations(desk: Path) -> Path:
    ours(header("tiny_ofp_lora", "ofp-vla demos"), "--episodes", "2", "--processes", "0")
    return desk / "outputs" / "press_button"


@pytest.fixture(scope="module")
def trained(demonstrations: Path) -> dict[str, Path]:
    """Checkpoints of the tiny recipes by `ofp-vla train`, one step each."""
    for recipe in TINY:
        words = header(recipe, "ofp-vla train").words
        started = training_command(words[2], [*words[3:], *(o[2:] for o in options(**SMALL))])
        assert started[1:3] == ["-m", "lerobot.scripts.lerobot_train"]
        trainer([word for word in started[3:] if not word.startswith("--discover")])
    return {recipe: checkpoint_of(recipe).resolve() for recipe in TINY}


@pytest.fixture(scope="module")
def checkpoint(trained: dict[str, Path]) -> Path:
    return trained["tiny_ofp_lora"]


# ---- the headers of the recipes


def _setting(folder: Path) -> dict:
    saved = json.loads((folder / "train_config.json").read_text())
    return {key: saved[key] for key in saved if key not in ("output_dir", "checkpoint_path")}


@pytest.mark.parametrize("recipe", ["tiny_ofp_lora", "tiny_ofp_expert"])
def test_training_without_our_command_is_the_same_run(trained: dict[str, Path], recipe: str) -> None:
    ours(header(recipe, "ofp-vla recipes cp"))
    words = header(recipe, "lerobot-train").words
    trainer([*words[1:], *options(**SMALL), f"--output_dir=outputs/train/{recipe}_again"])
    assert _setting(checkpoint_of(f"{recipe}_again")) == _setting(trained[recipe])


def test_evaluation_of_the_header_runs(checkpoint: Path) -> None:
    told = header("tiny_ofp_lora", "ofp-vla eval")
    ours(told, "--episodes", "1", "--output", "outputs/eval")
    assert (Path("outputs") / "eval" / "report.html").is_file()


def test_lerobots_evaluation_of_the_header_runs(checkpoint: Path) -> None:
    words = header("tiny_ofp_lora", "lerobot-eval").words[1:]
    small = [
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        "--eval.use_async_envs=false",
        "--output_dir=outputs/le",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lerobot-eval", *words, *small])
        lerobot_eval.eval_main()
    assert json.loads(Path("outputs/le/eval_info.json").read_text())["overall"]["n_episodes"] == 1


# ---- README and the documentation


def test_commands_around_recipes_run(demonstrations: Path) -> None:
    assert TINY[0] in ours(command("README.md", "ofp-vla recipes ls"))
    ours(command("README.md", "ofp-vla recipes cp"))
    assert Path("pi05_ofp_lora.yaml").is_file()
    told = command("README.md", "ofp-vla data check")
    ours(told, codes=(0, 1), DATASET=demonstrations, RECIPE="tiny_ofp_lora")


def test_installation_is_looked_at() -> None:
    assert "LeRobot policies" in ours(command("README.md", "ofp-vla doctor"))


@pytest.mark.parametrize("file", ["README.md", "docs/robotwin.md"])
def test_recordings_are_converted(desk: Path, tmp_path: Path, file: str) -> None:
    write_native(tmp_path / "recorded" / "beat_block_hammer" / "demo_clean")
    names = dict.fromkeys(("SOURCE", "~/RoboTwin/data"), tmp_path / "recorded")
    names |= dict.fromkeys(("FOLDER", "--output=FOLDER"), tmp_path / "converted")
    told = command(file, "ofp-vla data convert")
    if "--output=FOLDER" in told.words:
        names["--output=FOLDER"] = f"--output={tmp_path / 'converted'}"
    ours(told, "--images", "--workers", "1", **names)
    assert (tmp_path / "converted" / "meta" / "info.json").is_file()


def test_checkpoint_is_exported(checkpoint: Path) -> None:
    ours(command("README.md", "ofp-vla export"), CHECKPOINT=checkpoint, FOLDER="exported")
    assert (Path("exported") / "model.safetensors").is_file()


def test_evaluation_runs_and_is_reported_and_compared(checkpoint: Path, tmp_path: Path) -> None:
    """The first run with a server of ours in this process, the second with one that it starts itself."""
    small = ("--tasks", "press_button", "--episodes", "2", "--workers", "1")
    told = command("README.md", "robotwin-eval run --suite aloha")
    with command_at(checkpoint, tmp_path) as (url, _):
        ours(told, *small, "--name", "one", "--option", "image_size=64", **{"you/one_step": url})
    file = run_files(ROOT / "docs" / "evaluation.md")["run.yaml"].replace("outputs/one_step", str(checkpoint))
    Path("run.yaml").write_text(file)
    told = command("docs/evaluation.md", "robotwin-eval run run.yaml")
    ours(told, *small, "--name", "two", "--output", "runs/first", "--", "--no-warm")
    ours(command("docs/evaluation.md", "robotwin-eval report runs/first"))
    assert (Path("runs") / "first" / "report" / "report.html").is_file()
    pair = {"RUN2": "runs/first", "runs/pi05": "RUN", "runs/ofp": "runs/first"}
    ours(command("README.md", "robotwin-eval report"), **pair)
    ours(command("docs/evaluation.md", "robotwin-eval compare"), **pair)
    assert json.loads(Path("difference.json").read_text())


def test_checkpoint_is_served_until_it_is_told_to_stop(checkpoint: Path, tmp_path: Path) -> None:
    """As a process: tests/serving/test_serve_command.py."""
    told = command("docs/serving.md", "ofp-vla serve CHECKPOINT --host 0.0.0.0")
    (tmp_path / "token").write_text("s3cret\n")
    names = {"token": str(tmp_path / "token"), "8000": "0"}
    words = [names.get(word, word) for word in told.words[3:]]
    with (
        command_at(checkpoint, tmp_path, *words) as (url, printed),
        RemotePolicy(url, token="s3cret") as remote,
    ):
        assert remote.metadata["policy"]["checkpoint"] == str(checkpoint)
    assert printed[-1] == "stopped"
