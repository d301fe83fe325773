"""Drifting (arXiv 2602.04770, Alg. 2) on demonstrated chunks, as the LeRobot plugin Drift-VLA does it.

For each observation, draws x_i = eps_i + u(eps_i, 0, 1) and positives y_p; a demonstration gives one. The
draws regress on where a field would carry them, towards positives and away from their siblings x_n:

    || x_i - sg[x_i + V(x_i)] ||^2,   V = sum over tau of V_tau / rms(V_tau)
    V_tau(x_i) = sum_pn a_ip a_in (y_p - x_n)
    a_ij = sqrt(softmax_j(-d_ij / tau) softmax_i(-d_ij / tau)), at least 1e-3

x, y and distances d are in units of the mean distance over the batch. Candidates j are siblings and positives
together; a draw is not its own sibling. If positives and siblings come from one distribution, exchanging them
changes the sign of V: its expectation is 0, whatever the number of positives. Its length is not 0, since each
V_tau is brought to rms 1: the loss need not fall.

Entries matched together form a group with units of its own: one action dimension over the chunk (Drift-VLA's
choice), or the whole chunk. Drift-VLA starts from an expert without training; here it is the host's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ofp_vla.core.field import ActionChunk, IntervalField
from ofp_vla.core.losses import Losses, masked_mean_square
from ofp_vla.core.objectives.jumps import WarmStarts, draw_points, draw_starts, land, spread
from ofp_vla.core.objectives.objective import Objective
from ofp_vla.core.readings import Readings

_LEAST_UNIT = 1e-3
_LEAST_AFFINITY = 1e-3
_LEAST_RMS = 1e-4


@dataclass(frozen=True)
class DriftConfig(WarmStarts):
    """Settings of `Drift`; draws, temperatures and grouping are those that Drift-VLA publishes.

    Attributes:
        draws: one-step chunks of each observation, packed in one pass.
        temperatures: tau, in units of the mean distance; each adds a field of rms 1.
        match: entries that are matched together, one `dimension` of the actions over the chunk or the whole
            `chunk`. By dimension, nothing says which values of two dimensions belong to one mode.
        warm_share: share of the rows whose draws start at `t_w` near the expert's chunk, as for a warm start.
        t_w: warm start level.

    Raises:
        ValueError: for a value out of range; names the field and the value.
    """

    draws: int = 8
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)
    match: Literal["dimension", "chunk"] = "dimension"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(
            "draws", self.draws >= 2, "must be at least 2, since a draw is moved away from its siblings"
        )
        good = len(self.temperatures) > 0 and all(0 < t < float("inf") for t in self.temperatures)
        self._check("temperatures", good, "must be one or more positive numbers")
        self._check("match", self.match in ("dimension", "chunk"), "must be dimension or chunk")


class Drift(Objective[DriftConfig]):
    """The objective: one pass of the student, with a set of draws; no other role."""

    title = "Drifting"
    settings = DriftConfig

    @property
    def passes(self) -> dict[str, int]:
        """One of the student."""
        return {"student": 1}

    def _losses(
        self,
        fields: Mapping[str, IntervalField],
        chunk: ActionChunk,
        progress: float,
        generator: torch.Generator | None,
    ) -> Losses:
        """The single term `drift`."""
        c = self.config
        # Padded entries are not data, and a NaN there would reach the network on warm rows.
        actions = torch.where(chunk.valid, chunk.actions.float(), 0.0)
        start = draw_starts(actions.shape[0], c.warm_share, c.t_w, actions.device, generator)
        drawn = land(fields["student"], draw_points(actions, start, c.draws, generator), start)
        moves, unit = drift(drawn, [actions], chunk.valid, c.temperatures, by=c.match)
        aims = [(x / unit + move).detach() for x, move in zip(drawn, moves, strict=True)]
        rows = [masked_mean_square(x / unit - aim, chunk.valid) for x, aim in zip(drawn, aims, strict=True)]
        term = torch.stack(rows).mean(0)
        centre = torch.stack(drawn).detach().mean(0)
        metrics = {
            "drift": term.detach().mean(),
            "draw_std": spread(drawn, chunk.valid),
            "centre_gap": masked_mean_square(centre - actions, chunk.valid).mean().sqrt(),
        }
        return Losses.weighted({"drift": term}, {"drift": 1.0}, Readings.of(metrics))


@torch.no_grad()
def drift(
    draws: Sequence[Tensor],
    positives: Sequence[Tensor],
    valid: Tensor,
    temperatures: Sequence[float],
    *,
    by: Literal["dimension", "chunk"],
) -> tuple[list[Tensor], Tensor]:
    """The field at each draw, in units of its group.

    Args:
        draws: M >= 2 chunks (B, H, D).
        positives: P >= 1 chunks (B, H, D).
        valid: (B, H, D) bool; other entries take no part and their field is 0.
        temperatures: tau, in units of the mean distance.
        by: what a group is.

    Returns:
        M fields (B, H, D), and the units: (D,) mean distances by dimension, or (1,).
    """

    def grouped(chunks: Tensor) -> Tensor:
        """(N, B, H, D) as groups (G, B, N, S) of S entries."""
        return chunks.permute(3, 1, 0, 2) if by == "dimension" else chunks.transpose(0, 1).flatten(2)[None]

    def mixed(weights: Tensor, chunks: Tensor) -> Tensor:
        """(G, B, M, N) and (G, B, N, S) -> (G, B, M, S), in float32 under autocast too, unlike a product."""
        return (weights[..., None] * chunks[:, :, None]).sum(-2)

    # Nothing depends on the origin; at a positive, what is small stays exact.
    origin = positives[0].float()
    x, y = (
        grouped(torch.stack([torch.where(valid, chunk.float() - origin, 0.0) for chunk in chunks]))
        for chunks in (draws, positives)
    )
    siblings = x.shape[2]
    entries = grouped(valid[None]).sum(dim=(2, 3))  # (G, B)
    square = (x[:, :, :, None] - torch.cat([x, y], dim=2)[:, :, None]).square().sum(-1)
    distance = (square / entries.clamp(min=1)[..., None, None]).sqrt()  # (G, B, M, M + P)
    pairs = (entries > 0).sum(1) * distance.shape[2] * distance.shape[3]
    unit = (distance.sum(dim=(1, 2, 3)) / pairs.clamp(min=1)).clamp(min=_LEAST_UNIT)
    x, y, distance = (value / unit[:, None, None, None] for value in (x, y, distance))

    own = torch.eye(*distance.shape[2:], dtype=torch.bool, device=distance.device)
    field = torch.zeros_like(x)
    for temperature in temperatures:
        logits = (-distance / temperature).masked_fill(own, -torch.inf)
        affinity = (logits.softmax(-1) * logits.softmax(-2)).sqrt().clamp(min=_LEAST_AFFINITY)
        near, wanted = affinity[..., :siblings], affinity[..., siblings:]
        force = near.sum(-1, keepdim=True) * mixed(wanted, y) - wanted.sum(-1, keepdim=True) * mixed(near, x)
        mean_square = force.square().sum(dim=(1, 2, 3)) / (entries.sum(1) * siblings).clamp(min=1)
        field += force / mean_square.sqrt().clamp(min=_LEAST_RMS)[:, None, None, None]

    if by == "dimension":
        return list(field.permute(2, 1, 3, 0)), unit
    return list(field[0].transpose(0, 1).unflatten(2, valid.shape[1:])), unit
