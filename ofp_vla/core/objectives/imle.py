"""Set distillation by implicit maximum likelihood (arXiv 2603.09415): the Chamfer distance of two sets.

For each observation, K chunks y_i of the teacher's own flow, and M chunks of the student in one step,
x_j = eps_j + u(eps_j, 0, 1):

    coverage   1/K sum_i min_j d(y_i, x_j)     every teacher sample has a student draw near it
    fidelity   1/M sum_j min_i d(y_i, x_j)     every student draw has a teacher sample near it

with d = ell(mean square over valid entries), ell: `losses.adaptive`. Coverage is the direction of implicit
maximum likelihood; alone, it leaves stray draws unpunished, while fidelity alone is content with one mode.
Each pair of sets belongs to one observation: pooled over a batch, one observation would borrow another's
modes.

The paper prints the square itself. A set of K misses one of two equal modes with probability q = 2^-K, and
then pulls what belongs there over to the other mode. The square weighs this by their distance, so that
draws rest q of the way to the other mode: 6 % with four samples, more than a precise task allows. At power
1 the pull falls with the distance instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ofp_vla.core.field import ActionChunk, IntervalField
from ofp_vla.core.losses import Losses, adaptive, masked_mean_square
from ofp_vla.core.objectives.jumps import WarmStarts, draw_points, draw_starts, land, spread
from ofp_vla.core.objectives.objective import Objective
from ofp_vla.core.readings import Readings
from ofp_vla.core.sampling import integrate


@dataclass(frozen=True)
class IMLEConfig(WarmStarts):
    """Settings of `IMLE`. The paper prints none of these numbers; they are ours.

    Attributes:
        teacher_samples: K, chunks of the teacher for each observation, new ones at every step.
        student_samples: M, one-step chunks of the student for each observation, packed in one pass.
        teacher_steps: Euler steps of the teacher's flow, one pass without gradient each (paper: 50).
        coverage_weight: weight of the direction teacher to student; 0 leaves it out.
        fidelity_weight: weight of the direction student to teacher; 0 leaves it out.
        power: p of the adaptive weight 1 / (square + floor)^p of each nearest pair; 0 is the paper's square.
        floor: floor of the adaptive weight, in squared normalised actions.
        warm_share: share of the rows whose draws start at `t_w`, as a warm start does; both sets then start
            from noisy copies of the expert's chunk.
        t_w: warm start level.

    Raises:
        ValueError: for a value out of range; names the field and the value.
    """

    before: ClassVar[Mapping[str, Any]] = {"power": 0.0}

    teacher_samples: int = 8
    student_samples: int = 8
    teacher_steps: int = 10
    coverage_weight: float = 1.0
    fidelity_weight: float = 1.0
    power: float = 1.0
    floor: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("teacher_samples", "student_samples", "teacher_steps"):
            self._check(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("coverage_weight", "fidelity_weight"):
            self._check(name, getattr(self, name) >= 0, "must not be negative")
        self._check("coverage_weight", bool(self.weights), "must be positive if fidelity_weight is 0")
        self._check("power", 0 <= self.power <= 1, "must be in [0, 1]")
        self._check("floor", self.floor > 0, "must be positive")

    @property
    def weights(self) -> dict[str, float]:
        """Term -> weight, for the terms that have one."""
        both = {"coverage": self.coverage_weight, "fidelity": self.fidelity_weight}
        return {term: weight for term, weight in both.items() if weight > 0}


class IMLE(Objective[IMLEConfig]):
    """The objective: one pass of the student and `teacher_steps` of the teacher, each with a whole set."""

    title = "implicit maximum likelihood estimation"
    settings = IMLEConfig

    @property
    def passes(self) -> dict[str, int]:
        """Role -> passes of the action expert in one step."""
        return {"student": 1, "teacher": self.config.teacher_steps}

    def _losses(
        self,
        fields: Mapping[str, IntervalField],
        chunk: ActionChunk,
        progress: float,
        generator: torch.Generator | None,
    ) -> Losses:
        """The terms `coverage` and `fidelity`, whichever has weight.

        The expert's actions are read on warm rows only; the mask says which entries count on all.
        """
        c = self.config
        # Padded entries are not data, and a NaN there would reach the network on warm rows.
        actions = torch.where(chunk.valid, chunk.actions.float(), 0.0)
        start = draw_starts(actions.shape[0], c.warm_share, c.t_w, actions.device, generator)
        with torch.no_grad():
            points = draw_points(actions, start, c.teacher_samples, generator)
            starts = [start] * len(points)
            wanted = integrate(fields["teacher"], points, starts, steps=c.teacher_steps, diagonal=True)
        drawn = land(fields["student"], draw_points(actions, start, c.student_samples, generator), start)

        distances = adaptive(set_distances(wanted, drawn, chunk.valid), c.power, c.floor)
        terms = {term: value for term, value in chamfer(distances).items() if term in c.weights}
        numbers = {name: value.detach().mean() for name, value in terms.items()}
        numbers["draw_std"] = spread(drawn, chunk.valid)
        numbers["teacher_std"] = spread(wanted, chunk.valid)
        return Losses.weighted(terms, c.weights, Readings.of(numbers))


def set_distances(wanted: Sequence[Tensor], drawn: Sequence[Tensor], valid: Tensor) -> Tensor:
    """Mean squares between each pair of two sets of chunks.

    Args:
        wanted: K chunks (B, H, D).
        drawn: M chunks (B, H, D).
        valid: (B, H, D) bool.

    Returns:
        (K, M, B), 0 for a sample without a valid entry.
    """
    error = torch.stack(list(wanted))[:, None] - torch.stack(list(drawn))[None]
    rows = masked_mean_square(error.flatten(0, 2), valid.expand_as(error).flatten(0, 2))
    return rows.view(error.shape[:3])


def chamfer(distances: Tensor) -> dict[str, Tensor]:
    """The two directions of the Chamfer distance, each (B,), from distances (K, M, B)."""
    return {
        "coverage": distances.min(dim=1).values.mean(dim=0),
        "fidelity": distances.min(dim=0).values.mean(dim=0),
    }
