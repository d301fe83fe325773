"""What an objective returns, and the mean square over valid action entries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Losses:
    """The loss of one step.

    Attributes:
        total: scalar with gradient, sum over terms of weight * mean over samples.
        terms: name -> (B,) loss per sample. A sample that a term did not draw counts 0 there, and those
            drawn are scaled so that the mean over the batch has the expectation of the term whatever its
            share.
        weights: name -> weight of the term in the total.
        metrics: name -> plain number for the log.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]
    metrics: dict[str, float]

    @classmethod
    def weighted(
        cls, terms: Mapping[str, Tensor], weights: Mapping[str, float], metrics: Mapping[str, float]
    ) -> Losses:
        """Builds the losses and their total from terms (B,) and one weight for each."""
        if terms.keys() != weights.keys():
            raise ValueError(f"Losses: terms {sorted(terms)} and weights {sorted(weights)} differ")
        total = torch.stack([weights[name] * term.mean() for name, term in terms.items()]).sum()
        return cls(total, dict(terms), dict(weights), dict(metrics))

    @property
    def per_sample(self) -> Tensor:
        """(B,) weighted sum of the terms; its mean is the total."""
        return torch.stack([self.weights[name] * term for name, term in self.terms.items()]).sum(0)


def masked_mean_square(error: Tensor, valid: Tensor) -> Tensor:
    """Mean of error^2 over the valid entries of each sample: (B, H, D) and bool (B, H, D) -> (B,).

    Invalid entries add nothing to value or gradient even where they are not finite; a sample without a valid
    entry has loss 0.
    """
    error = torch.where(valid, error.float(), 0.0)
    count = valid.flatten(1).sum(1).clamp(min=1)
    return error.square().flatten(1).sum(1) / count
