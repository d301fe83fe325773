"""What every test runs under: no network, one thread, an off-screen renderer, caches of its own."""

import functools
import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest
from draccus.wrappers import docstring, field_wrapper
from uv import find_uv_bin

ROOT = Path(__file__).resolve().parents[1]
OURS = (
    "ofp_vla",
    "robotwin_eval",
    "lerobot_policy_ofp",
    "_lerobot_policy_ofp",
    "__editable__.lerobot_policy_ofp",
)

# Set before anything imports torch, mujoco or huggingface_hub, which read them once. Workers of
# pytest-xdist inherit them, so that only the first process makes the folder and removes it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "disabled"

_SCHEDULING = os.sched_getscheduler(0), os.sched_getparam(0)
_HOME = "OFP_TEST_HOME"
_owner = _HOME not in os.environ
if _owner:
    os.environ[_HOME] = tempfile.mkdtemp(prefix="ofp-tests-")
    os.environ["HF_HOME"] = os.path.join(os.environ[_HOME], "huggingface")
    os.environ["HF_LEROBOT_HOME"] = os.path.join(os.environ[_HOME], "lerobot")

# For each of 2,000 options, and at every parse, LeRobot's parser reads a class's source and a signature.
docstring.get_attribute_docstring = functools.cache(docstring.get_attribute_docstring)
field_wrapper.inspect = SimpleNamespace(getfullargspec=functools.cache(inspect.getfullargspec))


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # pytest-xdist would put files of one long test last


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that workers which take whole files end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_call() -> None:
    # LeRobot's encoder makes a real-time thread of this one if the user is root; a hung worker of a test that
    # comes later would inherit that, and its watchdog would get no processor.
    os.sched_setscheduler(0, *_SCHEDULING)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-budgets", action="store_true", help="write tests/budgets.json anew")


def pytest_unconfigure(config: pytest.Config) -> None:
    if _owner:
        shutil.rmtree(os.environ.pop(_HOME), ignore_errors=True)


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The configuration that `lerobot-train` makes of its options, in an empty folder."""
    import ofp_vla.policies  # noqa: F401  registers the policy types
    from ofp_vla.lerobot_seams.parsing import parse_training

    monkeypatch.chdir(tmp_path)
    return lambda *options: parse_training([str(option) for option in options])


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, which borrows the dependencies here but nothing of this project."""
    folder = tmp_path_factory.mktemp("env")
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        # No .pth either: another project's editable install is no dependency of ours.
        if not entry.name.startswith(OURS) and entry.suffix != ".pth":
            (dependencies / entry.name).symlink_to(entry)
    # Without pip of its own, whose unpacking takes longer than all the rest.
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    install = [find_uv_bin(), "pip", "install", "-q", "--python", python, "--no-cache", "--compile-bytecode"]
    subprocess.run([*install, "--no-deps", "--no-index", wheel], check=True, capture_output=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    return python
