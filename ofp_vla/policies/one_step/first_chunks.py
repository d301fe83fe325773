"""The first real chunks of a way to act, compared with those of slower paths before a fast one is trusted."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from ofp_vla.hosts.engine import Levers
from ofp_vla.hosts.observation import Observation
from ofp_vla.policies.one_step.drawing import Drawing, Drawn, Start
from ofp_vla.policies.one_step.guard import ActionGuard, Looked

logger = logging.getLogger(__name__)

# First chunks of a role's weights, of real observations, that are compared with bfloat16's.
FP8_TRIES = 2


def draw_compared(
    drawing: Drawing, observation: Observation, start: Start, guard: ActionGuard, *, real: bool
) -> tuple[Drawn, Looked]:
    """Draws chunks within the guard's limits, by whatever levers hold what they promise.

    If asked for, those in float8 are compared with those without; then, where work is recorded, the first of
    a role and way, as it is and recorded, with the path without levers. What differs too much is given up
    for this policy, with the number in the log, and the chunks are drawn again.

    Args:
        drawing: how.
        observation: B observations.
        start: their noise, and where warm starts begin.
        guard: whose limits; what it has seen is returned, to be judged.
        real: whether a robot or a simulator sent them: others are not compared.
    """
    host = drawing.host

    # A recording keeps the limits, so that their key stays theirs.
    def within(chunk: Tensor, limits: object = guard.limits) -> tuple[Tensor, Looked]:
        own, padding = chunk.tensor_split([drawing.actions], dim=-1)
        inside, looked = guard.look(own)
        return torch.cat([inside, padding], dim=-1), looked

    def draw() -> tuple[Drawn, Looked]:
        return drawing(observation, start, within, guard.key)

    def differs(drawn: Drawn, levers: Levers, given_up: str) -> bool:
        """Whether they are not those by other levers, which then hold from here on."""
        found = drawing.agreement(observation, start, drawn, within, levers)
        if found is None or found.holds:
            return False
        logger.warning(
            "%s from here on: the first chunk (%s, weights of %r) is not that without: %s",
            given_up,
            drawing.way,
            drawing.role,
            found.said,
        )
        host.levers = levers
        host.forget_packs()  # and the memory of copies that nobody reads now
        return True

    repeated = host.captures.repeated
    drawn = draw()
    if real and host.levers.fp8 and host.fp8_tried[drawing.role] < FP8_TRIES:
        host.fp8_tried[drawing.role] += 1
        if differs(drawn[0], replace(host.levers, fp8=False), "no fp8"):
            drawn = draw()
    if not real or not host.repeats:
        return drawn
    compared = (drawing.role, drawing.way, host.captures.repeated > repeated)
    if compared in host.compared:
        return drawn
    host.compared.add(compared)
    return draw() if differs(drawn[0], Levers.of("off"), "engine=off") else drawn
