"""A flow on the diagonal and jumps beside it: what shortcut, SnapFlow, MeanFlow and consistency share.

    flow    ell(|| u(z_t, t, t) - (a - eps) ||^2)
    jump    ell(|| error of u(z_t, t, r) ||^2), each objective its own error and its own intervals

A step asks the student once with gradient, for the rows of both terms. ell is the square unless an objective
says otherwise.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ofp_vla.core.draws import normal, stratified
from ofp_vla.core.field import ActionChunk, IntervalField, Query
from ofp_vla.core.losses import Losses, masked_mean_square
from ofp_vla.core.objectives.jumps import WarmStarts, draw_starts
from ofp_vla.core.objectives.objective import Objective
from ofp_vla.core.objectives.slots import Slot, lay_out
from ofp_vla.core.path import conditional_velocity, interpolate, per_sample
from ofp_vla.core.readings import Readings
from ofp_vla.core.times import NoiseBiased


@dataclass(frozen=True)
class FlowAndJumpConfig(WarmStarts):
    """Settings that these objectives share.

    Attributes:
        queries: intervals asked of the student per sample and step, packed in one pass over a shared prefix.
        jump_share: share of the query rows that train jumps; the others train the flow.
        warm_share: share of the jumps that begin at `t_w`, as a warm start does. None of the papers has it.
        t_w: warm start level.
        flow_time_alpha: 1 - t ~ Beta(alpha, 1) for the flow, openpi's times; 1 is uniform.

    Raises:
        ValueError: for a value out of range; names the field and the value.
    """

    queries: int = 2
    jump_share: float = 0.25
    flow_time_alpha: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("queries", self.queries >= 1, "must be at least 1")
        share = self.jump_share
        self._check("jump_share", 0 < share < 1, "must be in (0, 1): without a flow the field collapses")
        self._check("flow_time_alpha", self.flow_time_alpha > 0, "must be positive")


@dataclass(frozen=True, eq=False)
class Row:
    """One query for every sample of the batch.

    Attributes:
        jumps: (B,) bool, samples that train a jump; the others train the flow and have r = t.
        query: what the student is asked; z lies on the line from its noise to the expert's chunk.
        velocity: (B, H, D) a - eps of that line.
    """

    jumps: Tensor
    query: Query
    velocity: Tensor


class FlowAndJump[S: FlowAndJumpConfig](Objective[S]):
    """An objective of two terms, `flow` and `term`.

    Attributes:
        term: name of the jumps' loss.
    """

    diagonal = True
    term: ClassVar[str]

    def __init__(self, config: S | None = None) -> None:
        super().__init__(config)
        self._slots = lay_out(self._shares, self.config.queries)
        self._flow_times = NoiseBiased(alpha=self.config.flow_time_alpha)

    @property
    def _shares(self) -> dict[str, float]:
        return {self.term: self.config.jump_share, "flow": 1 - self.config.jump_share}

    @property
    def _weights(self) -> dict[str, float]:
        """Term -> weight of its mean; by default every row of a step counts alike."""
        return self._shares

    @abstractmethod
    def _intervals(self, start: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Times (t, r), each (B,), 0 <= t < r <= 1, of jumps on a way that begins at `start` (B,).

        `start` is 0 or, for a warm start, t_w.
        """

    @abstractmethod
    def _errors(
        self, fields: Mapping[str, IntervalField], rows: Sequence[Row], answers: Sequence[Tensor]
    ) -> list[Tensor]:
        """Errors (B, H, D) of the student's answers, with gradient; they count where a row jumps."""

    def _loss(self, square: Tensor, jumps: Tensor) -> Tensor:
        """ell: mean squares (Q, B) of Q rows to losses; `jumps` (Q, B) bool are those of jumps."""
        return square

    def _losses(
        self,
        fields: Mapping[str, IntervalField],
        chunk: ActionChunk,
        progress: float,
        generator: torch.Generator | None,
    ) -> Losses:
        """The terms `flow` and `term`."""
        rows = [self._draw(slot, chunk.actions.float(), generator) for slot in self._slots]
        answers = [u.float() for u in fields["student"]([row.query for row in rows])]
        errors = [u - row.velocity for u, row in zip(answers, rows, strict=True)]
        jumping = [i for i, slot in enumerate(self._slots) if self.term in slot.shares]
        own = self._errors(fields, [rows[i] for i in jumping], [answers[i] for i in jumping])
        for i, error in zip(jumping, own, strict=True):
            errors[i] = torch.where(per_sample(rows[i].jumps, error), error, errors[i])

        jumps = torch.stack([row.jumps for row in rows])
        squares = torch.stack([masked_mean_square(error, chunk.valid) for error in errors])
        losses = self._loss(squares, jumps)
        # divided by the average rows per sample of a term, so that a term is its mean whatever its share
        terms = {
            term: torch.where(mask, losses, 0.0).sum(0) / (self._shares[term] * self.config.queries)
            for term, mask in ((self.term, jumps), ("flow", ~jumps))
        }
        size = torch.stack([masked_mean_square(u.detach(), chunk.valid) for u in answers])
        numbers = {name: value.detach().mean() for name, value in terms.items()}
        gap = torch.where(jumps, squares.detach(), 0.0).sum() / torch.where(jumps, size, 0.0).sum()
        numbers[f"{self.term}_gap"] = gap.nan_to_num(0.0).sqrt()
        return Losses.weighted(terms, self._weights, Readings.of(numbers))

    def _draw(self, slot: Slot, actions: Tensor, generator: torch.Generator | None) -> Row:
        batch, device = actions.shape[0], actions.device
        masks = slot.assign(batch, device, generator)
        t = r = self._flow_times(stratified(batch, device, generator))
        jumps = masks.get(self.term)
        if jumps is None:
            jumps = torch.zeros(batch, dtype=torch.bool, device=device)
        else:
            c = self.config
            start = draw_starts(batch, c.warm_share, c.t_w, device, generator)
            begin, end = self._intervals(start, generator)
            t, r = torch.where(jumps, begin, t), torch.where(jumps, end, r)
        noise = normal(actions.shape, device, generator)
        query = Query(interpolate(noise, actions, t), t, r)
        return Row(jumps, query, conditional_velocity(noise, actions))
