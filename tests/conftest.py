"""What every test runs under: no network, one thread, an off-screen renderer, caches of its own."""

import os
import shutil
import tempfile

import pytest

# Set before anything imports torch, mujoco or huggingface_hub, which read them once. Workers of
# pytest-xdist inherit them, so that only the first process makes the folder and removes it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["WANDB_MODE"] = "disabled"

_HOME = "OFP_TEST_HOME"
_owner = _HOME not in os.environ
if _owner:
    os.environ[_HOME] = tempfile.mkdtemp(prefix="ofp-tests-")
    os.environ["HF_HOME"] = os.path.join(os.environ[_HOME], "huggingface")
    os.environ["HF_LEROBOT_HOME"] = os.path.join(os.environ[_HOME], "lerobot")


def pytest_unconfigure(config: pytest.Config) -> None:
    if _owner:
        shutil.rmtree(os.environ.pop(_HOME), ignore_errors=True)
