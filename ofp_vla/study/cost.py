"""What a step of an objective costs in passes of the action expert, counted by running it.

The unit is one chunk of one observation, once forward through the expert. A chunk that is differentiated
counts three: its backward is twice a forward, once for what went in and once for the weights. Where the
gradient only passes through weights that are not trained, to the chunk's points, it counts two. The prefix,
encoded once a step by all, is not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ofp_vla.core.field import ActionChunk, Query
from ofp_vla.core.objectives import Objective
from ofp_vla.hosts.roles import TRAINED

_BATCH, _HORIZON, _WIDTH = 16, 4, 2
# A term's weight or number of queries may follow the progress of the run.
_MOMENTS = 5


@dataclass(frozen=True)
class Cost:
    """Chunks that one observation sends through the expert in one step, the mean over a run.

    Attributes:
        with_gradient: by weights that are differentiated.
        without: without a gradient.
        through: by weights that are not trained, but pass a gradient on.
    """

    with_gradient: float
    without: float
    through: float = 0.0

    @property
    def passes(self) -> float:
        """Forward passes of a chunk, with the backward ones in the same unit."""
        return 3 * self.with_gradient + 2 * self.through + self.without


class _Counting:
    """A role's field that answers with a scaled copy of its points and counts the chunks it was asked for."""

    def __init__(self, counts: Counter[str], *, trained: bool) -> None:
        self._counts = counts
        self._scale = torch.full((), 0.5, requires_grad=trained)

    def __call__(self, queries: Sequence[Query]) -> list[Tensor]:
        answers = [self._scale * query.z.float() for query in queries]
        for answer in answers:
            by_weights = "with_gradient" if self._scale.requires_grad else "through"
            self._counts[by_weights if answer.requires_grad else "without"] += 1
        return answers


def step_cost(objective: Objective[Any]) -> Cost:
    """The cost of one step of `objective`, on average over the progress of a run."""
    counts: Counter[str] = Counter()
    generator = torch.Generator().manual_seed(0)
    chunk = ActionChunk.full(torch.randn(_BATCH, _HORIZON, _WIDTH, generator=generator))
    for moment in range(_MOMENTS):
        asked = {role: _Counting(counts, trained=role in TRAINED) for role in objective.roles}
        with torch.enable_grad():
            objective(asked, chunk, progress=moment / (_MOMENTS - 1), generator=generator)
    return Cost(**{field.name: counts[field.name] / _MOMENTS for field in fields(Cost)})


def steps_for(budget: float, cost: Cost) -> int:
    """Gradient steps that spend `budget` passes for each observation of a batch, at least one."""
    return max(1, math.floor(budget / cost.passes + 0.5))
