"""Files that ship inside the package: the tiny base checkpoint and its tokenizer."""

from __future__ import annotations

from pathlib import Path

PACKAGED_TOKENIZER = "ofp_vla/tiny"
_ROOT = Path(__file__).parent / "_assets"


def tiny_base() -> Path:
    """Folder of the tiny π0.5 base checkpoint (LeRobot's layout), trained on the embedded tasks."""
    return _ROOT / "pi05_tiny_base"


def tiny_tokenizer() -> Path:
    """Folder of the tiny base's tokenizer; a configuration names it as `PACKAGED_TOKENIZER`."""
    return _ROOT / "tokenizer"
