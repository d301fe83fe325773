"""Whether a fast path's chunks are those of the path without it, on an observation at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Largest difference in float32, as a share of the largest action: what summing in another order leaves.
LARGEST_DIFFERENCE = 1e-3
# Smallest cosine of an observation's chunk where something is multiplied in 16 bits.
LEAST_COSINE = 0.995


@dataclass(frozen=True)
class Agreement:
    """How close two sets of chunks are.

    Attributes:
        holds: whether they are close enough.
        said: the number and its bound, in words.
    """

    holds: bool
    said: str


def agreement(
    chunk: Tensor, reference: Tensor, *, reduced: bool, least_cosine: float = LEAST_COSINE
) -> Agreement:
    """Compares chunks with those of a reference; waits for the device once.

    Args:
        chunk: (B, H, A).
        reference: (B, H, A); or (B, K, H, A), of which the nearest counts: rounding may choose another draw.
        reduced: whether numbers of 16 bits take part, so that directions are compared instead of numbers.
        least_cosine: bound of the former.
    """
    chunk, reference = chunk.double(), reference.double()
    if reference.ndim == 4:
        nearest = (reference - chunk[:, None]).square().flatten(2).sum(dim=2).argmin(dim=1)
        reference = reference[torch.arange(len(chunk), device=chunk.device), nearest]
    if reduced:
        cosine = torch.cosine_similarity(chunk.flatten(1), reference.flatten(1)).min()
        number = float(cosine)
        return Agreement(number >= least_cosine, f"cosine {number:.4f}, at least {least_cosine:g} is allowed")
    number = float((chunk - reference).abs().max() / reference.abs().max().clamp(min=1e-12))
    return Agreement(
        number <= LARGEST_DIFFERENCE,
        f"{number:.2g} of the largest action apart, at most {LARGEST_DIFFERENCE:g} is allowed",
    )
