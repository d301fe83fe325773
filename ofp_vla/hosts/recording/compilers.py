"""What compiled layers share, in acting and in training: whether a compiler just worked, why it failed."""

from __future__ import annotations

from torch._dynamo.utils import counters


def graphs_made() -> int:
    """How many graphs were compiled so far: a call that raises it has compiled something."""
    return int(counters["stats"]["unique_graphs"])


def told(error: BaseException, length: int) -> str:
    """An error's class and so many characters of its message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:length]}"
