"""What an objective returns, the mean square over valid action entries, and a loss that follows the mode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ofp_vla.core.readings import Readings


@dataclass(frozen=True, eq=False)
class Losses:
    """The loss of one step.

    Attributes:
        total: scalar with gradient, sum over terms of weight * mean over samples.
        terms: name -> (B,) loss per sample. A sample that a term did not draw counts as 0, and those drawn
            are scaled so that the batch mean has the term's expectation, whatever its share.
        weights: name -> weight of the term in the total.
        metrics: name -> plain number for the log, read from the device when somebody looks.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]
    metrics: Readings

    @classmethod
    def weighted(cls, terms: Mapping[str, Tensor], weights: Mapping[str, float], metrics: Readings) -> Losses:
        """Builds the losses and their total from terms (B,) and one weight for each."""
        if terms.keys() != weights.keys():
            raise ValueError(f"Losses: terms {sorted(terms)} and weights {sorted(weights)} differ")
        total = torch.stack([weights[name] * term.mean() for name, term in terms.items()]).sum()
        return cls(total, dict(terms), dict(weights), metrics)

    @property
    def per_sample(self) -> Tensor:
        """(B,) weighted sum of the terms; its mean is the total."""
        return torch.stack([self.weights[name] * term for name, term in self.terms.items()]).sum(0)


def masked_mean_square(error: Tensor, valid: Tensor) -> Tensor:
    """Mean of error^2 over the valid entries of each sample: (B, H, D) and bool (B, H, D) -> (B,).

    Invalid entries add nothing to value or gradient, even if they are not finite; a sample without a valid
    entry has loss 0.
    """
    error = torch.where(valid, error.float(), 0.0)
    count = valid.flatten(1).sum(1).clamp(min=1)
    return error.square().flatten(1).sum(1) / count


def adaptive(square: Tensor, power: float, floor: float) -> Tensor:
    """The loss whose gradient is that of `square` weighted by (square + floor)^-power.

    It is the integral of (x + floor)^-power from 0 to `square`: the square itself at power 0, a pseudo-Huber
    loss at 1/2, log(1 + square / floor) at 1. MeanFlow (arXiv 2505.13447, 4.3) weights its loss this way. If
    a sample's target may be either of two chunks, the minimiser of the square is their average, which is
    neither; from power 1/2 on the minimiser is the likelier of the two.

    Args:
        square: mean squares of any shape, not negative.
        power: in [0, 1].
        floor: positive; squares well below it are weighted alike.

    Returns:
        Losses of that shape.
    """
    if power == 0:
        return square
    if power == 1:
        return torch.log1p(square / floor)
    rest = 1 - power
    return ((square + floor) ** rest - floor**rest) / rest
