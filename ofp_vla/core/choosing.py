"""Which of several chunks drawn for one observation is carried out: one where the draws lie densely.

A jump from noise sometimes lands between two ways to do a task; other draws of the same view do not. Choosing
among draws of one packed pass sharpens towards likely ways when acting, as OFP's self-guidance
(arXiv 2603.12480) does in training. Related: OpenTau executes the medoid of N draws, KeyStone (Drift-VLA) the
centre of a cluster.
"""

from __future__ import annotations

import torch
from torch import Tensor

RULES = ("dense", "walk", "first")


def distances(chunks: Tensor, executed: int | Tensor | None = None) -> Tensor:
    """Root mean square differences (B, K, K) between the K draws of each observation.

    Args:
        chunks: (B, K, H, A) draws, normalised, dimensions of the robot only.
        executed: actions of a chunk that will be carried out, from its start; the others do not count. All of
            them if None; (B,) if observations differ in it.
    """
    if isinstance(executed, Tensor):
        counts = torch.arange(chunks.shape[2], device=chunks.device) < executed[:, None]
        apart = (chunks[:, :, None] - chunks[:, None]).square().mean(dim=-1) * counts[:, None, None]
        return (apart.sum(dim=-1) / executed[:, None, None]).sqrt()
    kept = chunks if executed is None else chunks[:, :, :executed]
    # Entry by entry, so that a row's numbers do not depend on the number of rows.
    return (kept[:, :, None] - kept[:, None]).square().mean(dim=(-2, -1)).sqrt()


def choose(distance: Tensor, rule: str) -> Tensor:
    """Index (B,) of the draw to carry out.

    "dense" takes the draw with the smallest mean distance to its nearest third of the others: it leans to the
    likelier way. "walk" goes from the first draw to the densest of its neighbours until it stops, which keeps
    each way as likely as the noise draws it. "first" takes the first draw.

    Args:
        distance: (B, K, K) from `distances`.
        rule: one of `RULES`.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"choose: rule is {rule!r}, expected one of {list(RULES)}")
    rows, draws = distance.shape[:2]
    first = torch.zeros(rows, dtype=torch.long, device=distance.device)
    if rule == "first" or draws == 1:
        return first
    near = min(draws - 1, max(2, draws // 3))
    # Each draw is its own nearest, at distance 0.
    nearest = distance.topk(near + 1, dim=-1, largest=False)
    sparse = nearest.values.sum(dim=-1) / near
    if rule == "dense":
        return sparse.argmin(dim=-1)
    at = torch.arange(rows, device=distance.device)
    current = first
    for _ in range(draws):  # each move is to a denser draw, so it stops in the end
        neighbours = nearest.indices[at, current]
        best = neighbours.gather(1, sparse.gather(1, neighbours).argmin(dim=-1, keepdim=True))[:, 0]
        current = torch.where(sparse[at, best] < sparse[at, current], best, current)
    return current


def spread(distance: Tensor) -> Tensor:
    """Mean distance (B,) between two draws: how far the draws disagree, in normalised units."""
    draws = distance.shape[-1]
    return distance.sum(dim=(-2, -1)) / max(draws * (draws - 1), 1)
