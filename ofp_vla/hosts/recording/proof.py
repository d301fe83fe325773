"""Whether what stands for some work gives what the work itself gives, asked before it is relied on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Largest difference as a share of the largest number: what another order of sums leaves in float32, where
# numbers of 16 bits take part, and where these are rounded at other places too.
EXACT, REDUCED, FUSED = 1e-3, 2e-2, 5e-2


class Unequal(RuntimeError):
    """Other numbers than those of the work itself."""


def check(
    found: Sequence[Any],
    expected: Sequence[Any],
    *,
    reduced: bool,
    what: str = "a repetition",
    loosely: float = REDUCED,
) -> None:
    """Compares outputs with those of the work itself; waits for the device once.

    Whole numbers and truth values are left out: what is counted of rounded numbers may differ.

    Args:
        found: outputs of what stands for the work.
        expected: those of the work.
        reduced: whether numbers of 16 bits take part.
        what: what stands for it, in words.
        loosely: bound where they do.

    Raises:
        Unequal: further apart than rounding leaves, with the number.
    """
    bound = loosely if reduced else EXACT
    gaps = [
        _gap(a.detach().float(), b.detach().float())
        for a, b in zip(found, expected, strict=True)
        if isinstance(b, Tensor) and b.is_floating_point() and b.numel()
    ]
    if not gaps:
        return
    gap = float(torch.stack(gaps).max())
    if not gap <= bound:  # NaN on one side only fails too
        raise Unequal(
            f"{what} is {gap:.2g} of the largest number apart from the work itself, where rounding "
            f"leaves at most {bound:g}"
        )


def _gap(a: Tensor, b: Tensor) -> Tensor:
    same = (a == b) | (a.isnan() & b.isnan())
    size = b.abs().nan_to_num(0.0, 0.0, 0.0).max()
    return torch.where(same, 0.0, (a - b).abs()).max() / size.clamp(min=torch.finfo(torch.float32).tiny)


def change(tensors: Sequence[Any]) -> None:
    """Gives other numbers to inputs that are as valid: halves them; tokens change places."""
    for tensor in tensors:
        if not isinstance(tensor, Tensor) or tensor.dtype == torch.bool:
            continue
        if tensor.is_floating_point():
            tensor.mul_(0.5)
        elif tensor.ndim:
            tensor.copy_(tensor.roll(1, dims=-1))
