"""Another LeRobot than the supported one is one line that names both, wherever it is met first."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

import ofp_vla
from ofp_vla.cli import main as cli
from ofp_vla.lerobot_seams import version as lerobot_version
from ofp_vla.lerobot_seams.quiet import quiet_lerobot
from ofp_vla.lerobot_seams.version import SUPPORTED, UnsupportedLeRobot, check_lerobot

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    ["serve", "checkpoint"],
    ["eval", "checkpoint", "--tasks", "press_button"],
    ["train", "tiny_ofp_lora"],
    ["recipes", "validate", "tiny_ofp_lora"],
    ["data", "check", "folder", "--recipe", "tiny_ofp_lora"],
    ["data", "convert", "robotwin", "folder", "--output", "out", "--repo-id", "me/x"],
    ["demos", "press_button", "--output", "out", "--repo-id", "me/x"],
    ["demo"],
    ["study", "smoke"],
    ["compare-open-loop", "checkpoint", "folder"],
    ["bench", "--random-init"],
    ["push", "checkpoint", "me/x"],
    ["pull", "me/x"],
    ["merge", "checkpoint", "--output", "out"],
    ["export", "checkpoint", "--format", "openpi", "--output", "out"],
    ["import", "checkpoint", "out"],
    ["tokenizer", "checkpoint", "words"],
]


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_version.metadata, "version", lambda name: "0.7.0")


def test_supported_version_is_that_of_our_requirements() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert str(Requirement(re.search(r'"(lerobot\[.*?\].*?)"', text)[1]).specifier) == SUPPORTED
    check_lerobot()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.usefixtures("other")
def test_every_command_says_it_in_one_line(words: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    said = r"error: LeRobot 0\.7\.0 is installed; [^;]* supports LeRobot 0\.6\.1: pip install '[^']*'"
    assert re.fullmatch(said, line)
    assert list(tmp_path.iterdir()) == []


def test_every_command_is_among_them() -> None:
    import typer

    named = {words[0] for words in COMMANDS} | {"doctor", "version"}
    assert set(typer.main.get_command(cli.app).commands) == named


@pytest.mark.usefixtures("other")
def test_version_and_the_list_of_commands_answer_all_the_same() -> None:
    assert CliRunner().invoke(cli.app, ["version"]).exit_code == 0
    assert CliRunner().invoke(cli.app, ["--help"]).exit_code == 0


@pytest.mark.usefixtures("other")
def test_patch_in_python_says_it_too() -> None:
    with pytest.raises(UnsupportedLeRobot, match=r"0\.7\.0"):
        ofp_vla.patch  # noqa: B018


def test_missing_lerobot_is_named(monkeypatch) -> None:
    def version(name: str) -> str:
        raise lerobot_version.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(lerobot_version.metadata, "version", version)
    with pytest.raises(UnsupportedLeRobot, match=r"not installed.*pip install 'lerobot==0\.6\.1'"):
        check_lerobot()


def test_changed_lerobot_is_one_line_and_another_packages_fault_is_not_hidden(
    monkeypatch,
) -> None:
    def fails(error: ImportError):
        def run(names: str) -> list[str]:
            raise error

        monkeypatch.setattr(cli, "task_names", run)
        return CliRunner().invoke(cli.app, ["eval", "checkpoint", "--tasks", "x"])

    gone = fails(ImportError("cannot import name 'x' from 'lerobot.y'", name="lerobot.y"))
    assert gone.exit_code == 2
    assert re.match(r"error: cannot import name 'x' .* supports LeRobot 0\.6\.1", gone.stderr)
    assert isinstance(fails(ImportError("No module named 'h5py'", name="h5py")).exception, ImportError)


def run(code: str, tmp_path: Path, version: str, *words: str) -> subprocess.CompletedProcess:
    """Python in a process of its own, whose metadata say that LeRobot is of this version."""
    folder = tmp_path / f"lerobot-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lerobot\nVersion: {version}\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


TRAINER = "from lerobot.scripts.lerobot_train import main; main()"


@pytest.mark.slow
def test_lerobots_trainer_shows_the_line(tmp_path: Path) -> None:
    shown = run(TRAINER, tmp_path, "0.6.2", "--policy.type=pi05_ofp", "--dataset.repo_id=me/x")
    assert shown.returncode != 0
    assert "LeRobot 0.6.2 is installed; this version of ofp_vla supports LeRobot 0.6.1" in shown.stderr


@pytest.mark.slow
def test_run_of_an_evaluation_shows_the_line(tmp_path: Path) -> None:
    words = ["run", "--suite", "aloha", "--tasks", "press_button", "--episodes", "1"]
    words += ["--policy", "checkpoint", "--output", str(tmp_path / "run")]
    shown = run("from robotwin_eval.cli.main import main; main()", tmp_path, "0.6.2", *words)
    assert shown.returncode != 0
    assert "error: LeRobot 0.6.2 is installed" in shown.stdout + shown.stderr


# ---- messages that hid ours


def test_only_the_two_messages_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    quiet_lerobot()
    quiet_lerobot()
    decoder, policies = (
        logging.getLogger(f"lerobot.{n}") for n in ("utils.import_utils", "configs.policies")
    )
    decoder.warning(
        "trace\n'torchcodec' is installed but cannot be loaded. Falling back to 'pyav' as a default decoder."
    )
    policies.warning("Device 'None' is not available. Switching to 'cpu'.")
    assert caplog.records == []
    decoder.error("Could not import third-party plugin")
    policies.warning("Device 'cuda:7' is not available. Switching to 'cpu'.")
    logging.getLogger("lerobot.datasets.video_utils").error("could not decode")
    assert len(caplog.records) == 3


@pytest.mark.slow
def test_lerobots_trainer_shows_our_message_and_no_traces(tmp_path: Path) -> None:
    words = ["--policy.type=pi05_ofp", "--policy.push_to_hub=false", "--dataset.repo_id=me/x"]
    shown = run(TRAINER, tmp_path, "0.6.1", *words, "--policy.warm_start_time=3")
    assert shown.returncode == 1
    assert "policy.warm_start_time: must be in [0, 1), got 3" in shown.stderr
    assert len(shown.stderr.splitlines()) < 8, shown.stderr
