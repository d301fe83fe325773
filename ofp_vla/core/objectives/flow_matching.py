"""Conditional flow matching on the diagonal r = t: || u(z_t, t, t | o) - (a - eps) ||^2 (OFP, Eq. 7).

With `alpha` above openpi's 1.5 it is the noise-biased baseline of "Let It Be Simple" (arXiv 2606.05737).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ofp_vla.core.draws import normal, stratified
from ofp_vla.core.field import ActionChunk, IntervalField, Query
from ofp_vla.core.losses import Losses, masked_mean_square
from ofp_vla.core.objectives.objective import Objective, Settings
from ofp_vla.core.path import conditional_velocity, interpolate
from ofp_vla.core.readings import Readings
from ofp_vla.core.times import NoiseBiased


@dataclass(frozen=True)
class FlowMatchingConfig(Settings):
    """Settings of `FlowMatching`.

    Attributes:
        queries: times asked per sample and step, packed in one pass over a shared prefix.
        alpha: 1 - t ~ Beta(alpha, 1): 1.5 is openpi's, 1 uniform, 4 the noise-biased baseline.
        condition_dropout: share of the rows whose condition is dropped.
    """

    queries: int = 1
    alpha: float = 1.5
    condition_dropout: float = 0.0

    def __post_init__(self) -> None:
        self._check("queries", self.queries >= 1, "must be at least 1")
        self._check("alpha", self.alpha > 0, "must be positive")
        self._check("condition_dropout", 0 <= self.condition_dropout <= 1, "must be in [0, 1]")


class FlowMatching(Objective[FlowMatchingConfig]):
    """The objective the hosts were pretrained with; one pass of the student."""

    title = "plain flow matching"
    settings = FlowMatchingConfig
    jumps = False
    diagonal = True

    def __init__(self, config: FlowMatchingConfig | None = None) -> None:
        super().__init__(config)
        self._times = NoiseBiased(alpha=self.config.alpha)

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
        """The single term `flow`."""
        actions = chunk.actions.float()
        batch, device = actions.shape[0], actions.device
        queries, targets = [], []
        for _ in range(self.config.queries):
            noise = normal(actions.shape, device, generator)
            t = self._times(stratified(batch, device, generator))
            null = stratified(batch, device, generator) < self.config.condition_dropout
            queries.append(Query(interpolate(noise, actions, t), t, t, null))
            targets.append(conditional_velocity(noise, actions))
        velocities = fields["student"](queries)
        rows = [masked_mean_square(u - v, chunk.valid) for u, v in zip(velocities, targets, strict=True)]
        flow = torch.stack(rows).mean(0)
        return Losses.weighted({"flow": flow}, {"flow": 1.0}, Readings.of({"flow": flow.mean()}))
