"""What a result rests on besides its inputs: versions, the commit of the source and the machine."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from ofp_vla._version import __version__
from robotwin_eval.host import host

PACKAGES = ("lerobot", "torch", "transformers", "peft", "mujoco", "gym-aloha", "numpy")


@cache
def versions() -> dict[str, str]:
    """Versions of this package and of what it builds on; absent packages are left out."""
    found = {"ofp_vla": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Commit of the checkout that this runs from, with "+changes" if files differ.

    Of a copy without its history, what the environment variable OFP_COMMIT says; "" if it says nothing.
    """
    root = Path(__file__).resolve().parent.parent
    said = os.environ.get("OFP_COMMIT", "")
    if not (root / ".git").exists():
        return said
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return said


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def machine() -> dict[str, str]:
    """Processor, number of cores that this process may use, system and graphics cards."""
    return {name.capitalize(): found for name, found in host().items()}
