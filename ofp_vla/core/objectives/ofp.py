"""One-Step Flow Policy (arXiv 2603.12480): flow, self-consistency, self-guidance, plus an endpoint term.

    flow          || u(z_t, t, t) - (a - eps) ||^2
    consistency   || u(z_t, t, r) - sg[((m - t) v + (r - m) u_ema(z_m, m, r)) / (r - t)] ||^2,
                  z_m = z_t + (m - t) v
    guidance      || y - sg[y + g] ||^2,  y = u(z_t, t, 1),
                  g = u_ema(z~, t', t' | o) - u_ema(z~, t', t' | null),
                  z~ = (1 - t') eps' + t' (z_t + (1 - t) y)
    endpoint      ell(|| u(z_t, t, 1) - sg[(Phi(z_t) - z_t) / (1 - t)] ||^2),
                  Phi: Euler steps of a role's u(z, t, t); ell: `losses.adaptive`
    anchor        ell(|| u(x, s, s) - sg[v] ||^2),
                  x, s, v: point, time and velocity of that role at a random step of Phi

A step calls the student once, with gradient and all its queries. Before it, without gradient, come
`endpoint_steps` passes for the endpoint, and after it one pass of the EMA for consistency and guidance
together. A first leg v that is not the data line a - eps is asked in the endpoint's first pass if both need
the same role, and in one more pass otherwise. The anchor needs no pass: its velocities are the endpoint's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ofp_vla.core.field import ActionChunk, IntervalField, Query
from ofp_vla.core.losses import Losses, adaptive, masked_mean_square
from ofp_vla.core.objectives.objective import Objective
from ofp_vla.core.objectives.ofp_config import OFPConfig
from ofp_vla.core.objectives.ofp_draw import Draw, Drawer
from ofp_vla.core.objectives.ofp_metrics import measure
from ofp_vla.core.objectives.ofp_path import Paths, follow
from ofp_vla.core.objectives.slots import lay_out
from ofp_vla.core.path import interpolate, joined_velocity, jump, per_sample
from ofp_vla.core.schedules import contraction, linear_ramp

_ADAPTIVE = ("endpoint", "anchor")


class OFP(Objective[OFPConfig]):
    """The objective; `OFP()` has the recommended settings, `OFP(OFPConfig.paper())` the published ones."""

    title = "One-Step Flow Policy"
    settings = OFPConfig
    diagonal = True

    def __init__(self, config: OFPConfig | None = None) -> None:
        super().__init__(config)
        self._slots = lay_out(self.config.shares, self.config.queries)
        self._draw = Drawer(self.config)

    @property
    def passes(self) -> dict[str, int]:
        """Role -> passes of the action expert in one step."""
        c = self.config
        count = Counter({"student": 1})
        if c.consistency_weight > 0 or c.guidance_weight > 0:
            count["ema"] += 1
        if c.endpoint_weight > 0:
            count[c.endpoint_from] += c.endpoint_steps
        if c.consistency_weight > 0 and c.first_leg != "data" and not self._leg_rides:
            count[c.first_leg] += 1
        return dict(count)

    @property
    def _rows(self) -> dict[str, float]:
        """Term -> rows of a step that train it, per sample on average."""
        c = self.config
        rows = {term: share * c.queries for term, share in c.shares.items()}
        if c.anchor > 0:
            rows["anchor"] = rows["endpoint"]
        return rows

    @property
    def _leg_rides(self) -> bool:
        """Whether the first leg's velocity comes with the endpoint's first pass."""
        return self.config.endpoint_weight > 0 and self.config.first_leg == self.config.endpoint_from

    def _losses(
        self,
        fields: Mapping[str, IntervalField],
        chunk: ActionChunk,
        progress: float,
        generator: torch.Generator | None,
    ) -> Losses:
        """One term each for flow, consistency, guidance, endpoint and anchor, if it has weight."""
        c = self.config
        rho = contraction(progress, start=c.rho_start, end=c.rho_end, power=c.rho_power)
        draws = [self._draw(slot, chunk.actions.float(), rho, generator) for slot in self._slots]
        paths = follow(
            draws,
            fields[c.endpoint_from] if c.endpoint_weight > 0 else None,
            fields[c.first_leg] if c.first_leg != "data" and c.consistency_weight > 0 else None,
            steps=c.endpoint_steps,
        )
        slots = [*draws, *paths.anchors]
        answers = [u.float() for u in fields["student"]([slot.query for slot in slots])]
        with torch.no_grad():
            targets = self._targets(fields, draws, answers[: len(draws)], paths)
        targets += [{"anchor": slot.velocity} for slot in paths.anchors]

        terms = {term: torch.zeros_like(draws[0].m) for term in self._rows}
        for slot, answer, target in zip(slots, answers, targets, strict=True):
            row = masked_mean_square(answer - _select(slot.masks, target), chunk.valid)
            for term, mask in slot.masks.items():
                loss = adaptive(row, c.endpoint_power, c.endpoint_floor) if term in _ADAPTIVE else row
                terms[term] = terms[term] + torch.where(mask, loss, 0.0)
        # divided by the average rows per sample of a term: a share changes the variance, not the weight
        terms = {term: value / self._rows[term] for term, value in terms.items()}

        ramp = linear_ramp(progress, *c.guidance_ramp)
        weights = {
            "flow": 1.0,
            "consistency": c.consistency_weight,
            "guidance": c.guidance_weight * ramp,
            "endpoint": c.endpoint_weight,
            "anchor": c.anchor,
        }
        weights = {term: weights[term] for term in terms}
        metrics = measure(slots, answers, targets, terms, chunk.valid)
        if "consistency" in terms:
            metrics |= {"rho": rho}
        if "guidance" in terms:
            metrics |= {"guidance_weight": weights["guidance"]}
        return Losses.weighted(terms, weights, metrics)

    def _targets(
        self, fields: Mapping[str, IntervalField], draws: list[Draw], answers: Sequence[Tensor], paths: Paths
    ) -> list[dict[str, Tensor]]:
        """For each slot, term -> target (B, H, D); a target is meaningful only on the rows of its term."""
        first = [d.velocity if leg is None else leg for leg, d in zip(paths.legs, draws, strict=True)]
        asked = [_ema_queries(d, v, y) for d, v, y in zip(draws, first, answers, strict=True)]
        packed = [query for queries in asked for query in queries]
        replies = iter([u.float() for u in fields["ema"](packed)] if packed else [])

        targets = []
        for draw, leg, end, y, queries in zip(draws, first, paths.ends, answers, asked, strict=True):
            q = draw.query
            reply = [next(replies) for _ in queries]
            target = {}
            for term in draw.masks:
                if term == "flow":
                    target[term] = draw.velocity
                elif term == "consistency":
                    target[term] = self._clip(joined_velocity(leg, reply[0], q.t, draw.m, q.r))
                elif term == "guidance":
                    target[term] = self._clip(y + (reply[0] - reply[1]))
                else:
                    assert end is not None
                    target[term] = self._clip((end - q.z) / per_sample(q.r - q.t, q.z))
            targets.append(target)
        return targets

    def _clip(self, target: Tensor) -> Tensor:
        bound = self.config.target_clip
        return target if bound is None else target.clamp(-bound, bound)


def _ema_queries(draw: Draw, leg: Tensor, answer: Tensor) -> list[Query]:
    """What a slot asks of the EMA: second leg and conditional look share a query, the null look follows.

    Each row belongs to one term, so consistency and guidance rows of a slot fit side by side in one query.
    """
    q, m = draw.query, draw.m
    second_leg = Query(jump(q.z, leg, q.t, m), m, q.r)
    guided = draw.masks.get("guidance")
    if guided is None:
        return [second_leg] if "consistency" in draw.masks else []
    assert draw.fresh is not None
    assert draw.look is not None
    z = interpolate(draw.fresh, jump(q.z, answer, q.t, q.r), draw.look)
    null = Query(z, draw.look, draw.look, torch.ones_like(guided))
    conditional = Query(
        torch.where(per_sample(guided, z), z, second_leg.z),
        torch.where(guided, draw.look, second_leg.t),
        torch.where(guided, draw.look, second_leg.r),
    )
    return [conditional, null]


def _select(masks: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """(B, H, D) target of each row, taken from the term that the row serves."""
    chosen: Tensor | None = None
    for term, target in targets.items():
        chosen = target if chosen is None else torch.where(per_sample(masks[term], target), target, chosen)
    assert chosen is not None
    return chosen
