"""Plain numbers that OFP logs: loss of each term, strength of the guidance, gaps, spread of the draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ofp_vla.core.losses import masked_mean_square
from ofp_vla.core.objectives.ofp_draw import Draw
from ofp_vla.core.path import per_sample
from ofp_vla.core.readings import Readings


@torch.no_grad()
def measure(
    draws: Sequence[Draw],
    answers: Sequence[Tensor],
    targets: Sequence[Mapping[str, Tensor]],
    terms: Mapping[str, Tensor],
    valid: Tensor,
) -> Readings:
    """Numbers of one step.

    Each term's loss under its name; `guidance_norm` = rms g; `guidance_ratio` = rms g / rms y;
    `consistency_gap`, `endpoint_gap` and `anchor_gap` = rms error relative to the rms of the target;
    `draw_std` = standard deviation of one-step chunks of one observation, if at least two of its queries went
    from noise to data. A number without a row to compute it on is 0, so that every step and every rank
    reports the same names.
    """
    ratios: dict[str, tuple[Tensor, Tensor]] = {}
    for term, name in (
        ("guidance", "guidance_ratio"),
        ("consistency", "consistency_gap"),
        ("endpoint", "endpoint_gap"),
        ("anchor", "anchor_gap"),
    ):
        if term not in terms:
            continue
        above, below = valid.new_zeros((), dtype=torch.float32), valid.new_zeros((), dtype=torch.float32)
        for draw, answer, target in zip(draws, answers, targets, strict=True):
            if term in draw.masks:
                base = answer if term == "guidance" else target[term]
                above = above + _sum(draw.masks[term], masked_mean_square(answer - target[term], valid))
                below = below + _sum(draw.masks[term], masked_mean_square(base, valid))
        ratios[name] = (above, below)
        if term == "guidance":
            rows = torch.stack([d.masks[term].float().sum() for d in draws if term in d.masks]).sum()
            ratios["guidance_norm"] = (above, rows)
    ratios["draw_std"] = _draw_variance(draws, answers, valid)

    flat = [term.mean() for term in terms.values()]
    flat += [value for pair in ratios.values() for value in pair]
    values, count = torch.stack(flat), len(terms)
    labels, names = list(terms), list(ratios)  # not the tensors: these readings may be kept for long

    def read() -> dict[str, float]:
        numbers = values.tolist()
        metrics = dict(zip(labels, numbers, strict=False))
        for name, part, whole in zip(names, numbers[count::2], numbers[count + 1 :: 2], strict=True):
            metrics[name] = (part / whole) ** 0.5 if whole else 0.0
        return metrics

    return Readings(read)


def _sum(mask: Tensor, values: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).sum()


def _draw_variance(draws: Sequence[Draw], answers: Sequence[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of chunk variances over the samples with several noise -> data queries, and their number."""
    corner = torch.stack([(d.query.t == 0) & (d.query.r == 1) for d in draws])
    chunks = torch.stack([d.query.z + u for d, u in zip(draws, answers, strict=True)])
    count = corner.sum(0)
    weight = corner.float()[..., None, None]
    mean = (weight * chunks).sum(0) / per_sample(count.clamp(min=1), valid)
    deviation = torch.stack([masked_mean_square(chunk - mean, valid) for chunk in chunks])
    variance = (corner * deviation).sum(0) / (count - 1).clamp(min=1)
    several = count >= 2
    return _sum(several, variance), several.sum().float()
