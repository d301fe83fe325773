"""Score distillation of a flow into one step, after One-Step Diffusion Policy (OneDP, arXiv 2410.21257).

The student's chunk a = eps + u(eps, 0, 1) is noised to a_t = (1 - t) eps' + t a. On this path a velocity
v(z, t) determines the score of its marginal: E[eps | z] = z - t v, and so

    s(z, t) = -E[eps | z] / (1 - t) = (t v(z, t) - z) / (1 - t)
    s_fake - s_teacher = t / (1 - t) (v_fake - v_teacher)

The gradient of KL(student || teacher) at t with respect to a is t (s_fake - s_teacher)(a_t, t), where t is
d a_t / d a; it is weighted by w(t). The `fake` network carries the score of the student's own chunks. It
learns it in the same step by flow matching, at the very points a_t where the scores are compared:

    distill    1/2 || a - sg[a - w t (s_fake - s_teacher)] ||^2    gradient for the student alone
    fake       || v_fake(a_t, t) - (sg[a] - eps') ||^2             gradient for the fake network alone

What share of the draws takes which mode is told only by the scores at those t where the noised modes still
overlap: for two modes a distance D apart, up to t / (1 - t) of about 10 / D, and D grows with the root of the
number of entries. At greater t the gap tells what a mode looks like, and of their shares nothing but the fake
network's error, which w(t) t weighs most: it carries draws over to one mode until the other is lost. So times
end at `time_high`.

OneDP-D (`stochastic=False`) takes each chunk for a point mass, whose velocity is a - eps' exactly: no fake
network, and nothing that keeps draws apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ofp_vla.core.draws import normal, stratified
from ofp_vla.core.field import ActionChunk, IntervalField, Query
from ofp_vla.core.losses import Losses, masked_mean_square
from ofp_vla.core.objectives.jumps import WarmStarts, draw_points, draw_starts, land, spread
from ofp_vla.core.objectives.objective import Objective
from ofp_vla.core.path import conditional_velocity, interpolate, jump, per_sample
from ofp_vla.core.readings import Readings
from ofp_vla.core.schedules import linear_ramp
from ofp_vla.core.times import Uniform


@dataclass(frozen=True)
class OneDPConfig(WarmStarts):
    """Settings of `OneDP`; the paper's values are named where it prints them.

    Attributes:
        stochastic: OneDP-S with a fake network; False is OneDP-D without.
        draws: chunks of the student for each observation, packed in one pass, each compared at one time.
        weighting: w(t). "variance" is the paper's sigma^2 = (1 - t)^2; "data" measures the gap in predicted
            chunks and divides by the teacher's own error, as DMD does (arXiv 2311.18828). On two modes in one
            dimension "data" was unsteady: it takes large steps where the teacher's error is small.
        time_low: least t at which scores are compared.
        time_high: greatest t, for chunks of some hundred entries; the nearer modes of a few numbers need .98.
            (The paper compares at steps 2 to 95 of 100.)
        distill_ramp: progress at which the student's loss leaves 0 and reaches its weight. Until then only
            the fake network learns: its score says nothing before it knows the student's chunks.
        distill_weight: weight of the student's loss.
        fake_weight: weight of the fake network's loss. Adam is blind to it, but the clipping of the joint
            gradient norm is not.
        fake_lr_scale: learning rate of the fake network relative to the student's (paper: 20).
        warm_share: share of the rows whose draws start at `t_w` near the expert's chunk, as for a warm start.
        t_w: warm start level.

    Raises:
        ValueError: for a value out of range; names the field and the value.
    """

    stochastic: bool = True
    draws: int = 4
    weighting: Literal["variance", "data"] = "variance"
    time_low: float = 0.02
    time_high: float = 0.5
    distill_ramp: tuple[float, float] = (0.05, 0.1)
    distill_weight: float = 1.0
    fake_weight: float = 1.0
    fake_lr_scale: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("draws", self.draws >= 1, "must be at least 1")
        self._check("weighting", self.weighting in ("variance", "data"), "must be variance or data")
        self._check("time_low", 0 < self.time_low < self.time_high, "must be in (0, time_high)")
        self._check("time_high", self.time_high < 1, "must be below 1, where the score has no bound")
        for name in ("distill_weight", "fake_weight", "fake_lr_scale"):
            self._check(name, getattr(self, name) > 0, "must be positive")
        ramp = self.distill_ramp
        good = len(ramp) == 2 and 0 <= ramp[0] <= ramp[1] < 1
        self._check("distill_ramp", good, "must be 0 <= start <= end < 1")


class OneDP(Objective[OneDPConfig]):
    """The objective: one pass each of student and fake with gradient, one of the teacher without."""

    title = "One-Step Diffusion Policy"
    settings = OneDPConfig
    instead: ClassVar[Mapping[str, tuple[str, ...]]] = {"fake": ("onedp.stochastic=false", "objective=imle")}

    def __init__(self, config: OneDPConfig | None = None) -> None:
        super().__init__(config)
        self._times = Uniform(self.config.time_low, self.config.time_high)

    @property
    def passes(self) -> dict[str, int]:
        """Role -> passes of the action expert in one step."""
        roles = ("student", "teacher", "fake") if self.config.stochastic else ("student", "teacher")
        return dict.fromkeys(roles, 1)

    @property
    def learning_rates(self) -> dict[str, float]:
        """The fake network's, which has to keep up with the student."""
        return {"fake": self.config.fake_lr_scale}

    def _losses(
        self,
        fields: Mapping[str, IntervalField],
        chunk: ActionChunk,
        progress: float,
        generator: torch.Generator | None,
    ) -> Losses:
        """The term `distill`, and `fake` in the stochastic variant.

        The expert's actions are read on warm rows only; the mask says which entries count on all.
        """
        c = self.config
        weight = c.distill_weight * linear_ramp(progress, *c.distill_ramp)
        # Padded entries are not data, and a NaN there would reach the network on warm rows.
        actions = torch.where(chunk.valid, chunk.actions.float(), 0.0)
        batch, device = actions.shape[0], actions.device
        start = draw_starts(batch, c.warm_share, c.t_w, device, generator)
        chunks = land(fields["student"], draw_points(actions, start, c.draws, generator), start)

        looks, lines = [], []
        for drawn in chunks:
            noise = normal(actions.shape, device, generator)
            t = self._times(stratified(batch, device, generator))
            looks.append(Query(interpolate(noise, drawn.detach(), t), t, t))
            lines.append(conditional_velocity(noise, drawn.detach()))
        with torch.no_grad():
            wanted = [v.float() for v in fields["teacher"](looks)]
        own = [v.float() for v in fields["fake"](looks)] if c.stochastic else lines

        terms = {"distill": self._distill(chunks, looks, own, wanted, chunk.valid)}
        weights = {"distill": weight}
        if c.stochastic:
            terms["fake"] = _mean([v - line for v, line in zip(own, lines, strict=True)], chunk.valid)
            weights["fake"] = c.fake_weight
        numbers = {name: value.detach().mean() for name, value in terms.items()}
        gap = _mean([v.detach() - w for v, w in zip(own, wanted, strict=True)], chunk.valid).mean()
        numbers["score_gap"] = (gap / _mean(wanted, chunk.valid).mean().clamp(min=1e-12)).sqrt()
        numbers["draw_std"] = spread(chunks, chunk.valid)
        return Losses.weighted(terms, weights, Readings.of(numbers) | {"distill_weight": weight})

    def _distill(
        self,
        chunks: Sequence[Tensor],
        looks: Sequence[Query],
        own: Sequence[Tensor],
        wanted: Sequence[Tensor],
        valid: Tensor,
    ) -> Tensor:
        """(B,) losses whose gradient with respect to a chunk is the weighted gap between the scores."""
        rows = []
        for drawn, look, fake, teacher in zip(chunks, looks, own, wanted, strict=True):
            gap = fake.detach() - teacher
            if self.config.weighting == "variance":
                step = per_sample(look.t**2 * (1 - look.t), gap) * gap
            else:
                aim = jump(look.z, teacher, look.t, torch.ones_like(look.t))
                step = per_sample(1 - look.t, gap) * gap / _error(drawn.detach() - aim, valid)
            rows.append(masked_mean_square(drawn - (drawn - step).detach(), valid) / 2)
        return torch.stack(rows).mean(0)


def _mean(errors: Sequence[Tensor], valid: Tensor) -> Tensor:
    """(B,) mean squares, averaged over the draws."""
    return torch.stack([masked_mean_square(error, valid) for error in errors]).mean(0)


def _error(error: Tensor, valid: Tensor) -> Tensor:
    """(B, 1, 1) mean absolute error over valid entries, kept away from 0."""
    count = valid.flatten(1).sum(1).clamp(min=1)
    total = torch.where(valid, error.abs(), 0.0).flatten(1).sum(1)
    return per_sample((total / count).clamp(min=1e-3), error)
