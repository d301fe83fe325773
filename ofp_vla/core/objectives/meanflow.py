"""MeanFlow (arXiv 2505.13447) and improved MeanFlow (iMF, arXiv 2512.02012).

The mean velocity over [t, r] and the velocity v of the flow satisfy, r being fixed,

    u(z_t, t, r) = v(z_t, t) + (r - t) d/dt u(z_t, t, r),   d/dt = v . grad_z + d_t

    meanflow   ell(|| u(z_t, t, r) - sg[a - eps + (r - t) (w . grad_z u + d_t u)] ||^2),   w = a - eps
    improved   the same with w = u(z_t, t, t), so that what is regressed on the data, u - (r - t) sg[du/dt],
               no longer depends on the line through z_t

ell: `losses.adaptive`, for the flow's rows too. The derivative is exact, by forward-mode differentiation of
one more pass of the student, without a graph: the cached prefix is a constant, and attention takes its plain
form, the only one that has this derivative. Or, with `difference`, it is the slope of u between two points of
the path. Of the papers', guidance by dropped conditions is left out, and iMF's second head for v: its `w` is
the network's own diagonal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ofp_vla.core.draws import stratified
from ofp_vla.core.field import IntervalField, Query
from ofp_vla.core.losses import adaptive
from ofp_vla.core.objectives.flow_and_jump import FlowAndJump, FlowAndJumpConfig, Row
from ofp_vla.core.path import jump, per_sample
from ofp_vla.core.times import LogitNormal


@dataclass(frozen=True)
class MeanFlowConfig(FlowAndJumpConfig):
    """Settings of `MeanFlow`; a quarter of the rows have r > t, as in the paper.

    Attributes:
        improved: iMF's derivative along the network's own velocity, for one more pass without gradient.
        power: of the adaptive weight 1 / (square + floor)^power; .5 is the best of Mean-Flow One-Step VLA
            (arXiv 2603.01469), where 0, the plain square, failed. The paper's images have 1.
        floor: of the adaptive weight, in squared normalised actions.
        time_mean: t and r are the lesser and the greater of two draws of sigmoid(N(time_mean, time_std^2));
            the paper's time runs the other way, so that its mean is -.4.
        time_std: see time_mean.
        difference: if positive, du/dt is u's slope over this much of the path instead of its derivative (or
            over all that is left to r, where that is less). Pretrained hosts embed times with periods down
            to .004: their exact derivative is mostly these waves, and training by it diverges.
    """

    improved: bool = False
    power: float = 0.5
    floor: float = 1e-3
    time_mean: float = 0.4
    time_std: float = 1.0
    difference: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("difference", 0 <= self.difference < 1, "must be in [0, 1)")
        self._check("power", 0 <= self.power <= 1, "must be in [0, 1]")
        for name in ("floor", "time_std"):
            self._check(name, getattr(self, name) > 0, "must be positive")


class MeanFlow(FlowAndJump[MeanFlowConfig]):
    """The objective: one pass of the student with gradient, one with its derivative, one for `improved`."""

    title = "MeanFlow"
    settings = MeanFlowConfig
    term = "meanflow"

    def __init__(self, config: MeanFlowConfig | None = None) -> None:
        super().__init__(config)
        self._times = LogitNormal(self.config.time_mean, self.config.time_std)

    @property
    def passes(self) -> dict[str, int]:
        """Role -> passes of the action expert in one step; that with the derivative counts as one."""
        return {"student": 3 if self.config.improved else 2}

    def _intervals(self, start: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Two times in order; on the rows of a warm start, from there to the data."""
        a, b = (self._times(stratified(len(start), start.device, generator)) for _ in range(2))
        warm = start > 0
        return torch.where(warm, start, torch.minimum(a, b)), torch.where(warm, 1.0, torch.maximum(a, b))

    def _errors(
        self, fields: Mapping[str, IntervalField], rows: Sequence[Row], answers: Sequence[Tensor]
    ) -> list[Tensor]:
        """Against the identity's right side."""
        student, queries = fields["student"], [row.query for row in rows]
        velocities = [row.velocity for row in rows]
        if self.config.improved:
            with torch.no_grad():
                velocities = [v.float() for v in student([Query(q.z, q.t, q.t) for q in queries])]
        if self.config.difference:
            slopes = path_slopes(student, queries, velocities, answers, self.config.difference)
        else:
            slopes = total_derivatives(student, queries, velocities)
        return [
            u - (row.velocity + per_sample(row.query.r - row.query.t, u) * slope)
            for u, row, slope in zip(answers, rows, slopes, strict=True)
        ]

    def _loss(self, square: Tensor, jumps: Tensor) -> Tensor:
        return adaptive(square, self.config.power, self.config.floor)


@torch.no_grad()
def total_derivatives(
    field: IntervalField, queries: Sequence[Query], velocities: Sequence[Tensor]
) -> list[Tensor]:
    """d/dt u(z_t, t, r) where z_t moves with a velocity and r stays, by forward-mode differentiation.

    Args:
        field: asked once, with all queries.
        queries: where the derivatives are taken.
        velocities: dz/dt of each, (B, H, D).

    Returns:
        A float32 derivative (B, H, D) for each query.

    Raises:
        NotImplementedError: by torch, if the field uses an operation without a forward derivative.
        ValueError: if an answer lost its derivative on the way, or never depended on its query.
    """
    with sdpa_kernel(SDPBackend.MATH), forward_ad.dual_level():
        moving = [
            Query(forward_ad.make_dual(q.z, v), forward_ad.make_dual(q.t, torch.ones_like(q.t)), q.r, q.null)
            for q, v in zip(queries, velocities, strict=True)
        ]
        slopes = [forward_ad.unpack_dual(u).tangent for u in field(moving)]
    if any(slope is None for slope in slopes):
        raise ValueError(
            "total_derivatives: an answer of the field carries no forward derivative; MeanFlow needs a field "
            "that is computed from z and t by differentiable operations of torch"
        )
    return [slope.float() for slope in slopes]


@torch.no_grad()
def path_slopes(
    field: IntervalField,
    queries: Sequence[Query],
    velocities: Sequence[Tensor],
    answers: Sequence[Tensor],
    difference: float,
) -> list[Tensor]:
    """Slopes of u(z_t, t, r) where z_t moves with a velocity and r stays, between t and t + difference.

    Args:
        field: asked once, with all queries moved on.
        queries: where the slopes begin; none reaches beyond its r.
        velocities: dz/dt of each, (B, H, D).
        answers: the field's answers to `queries`.
        difference: in time, positive.

    Returns:
        A float32 slope (B, H, D) for each query, 0 where it has no length.
    """
    steps = [(q.r - q.t).clamp(max=difference) for q in queries]
    moved = [
        Query(jump(q.z, v, q.t, q.t + step), q.t + step, q.r, q.null)
        for q, v, step in zip(queries, velocities, steps, strict=True)
    ]
    # a row without length has asked the same twice
    least = torch.finfo(torch.float32).tiny
    return [
        (ahead.float() - u) / per_sample(step.clamp(min=least), u)
        for ahead, u, step in zip(field(moved), answers, steps, strict=True)
    ]
