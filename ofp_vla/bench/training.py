"""A training step: LeRobot's own flow matching, ours over a cached prefix, and each objective."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ofp_vla.bench.groups import Group, Stand
from ofp_vla.bench.settings import BenchSettings
from ofp_vla.bench.subjects import Subject, Trainee, batch_of, stock_forward, trainee
from ofp_vla.bench.timing import Arm
from ofp_vla.core.objectives import OBJECTIVES

PART = "training"
LEROBOT = "LeRobot, flow matching"
FLOW, OFP = "flow_matching", "ofp"
OTHERS = [name for name in OBJECTIVES if name not in (FLOW, OFP)]


def main_steps(settings: BenchSettings) -> list[Group]:
    """OFP, flow matching over a cached prefix, and LeRobot's own, at every batch.

    LeRobot's needs most of a GPU's memory, so that nothing else may lie there while it is measured.
    """
    ofp, flow = (Subject(partial(trainee, settings, name)) for name in (OFP, FLOW))
    lerobot = Subject(partial(trainee, settings, FLOW, engine="off"))
    alone = settings.device.type == "cuda"
    batches = settings.training_batches
    groups, apart = [], []
    for batch in batches:
        ours = [Stand(ofp, {OFP: _step(batch)}), Stand(flow, {FLOW: _step(batch)})]
        theirs = [Stand(lerobot, {LEROBOT: _step(batch, stock=True)})]
        last = batch == batches[-1]
        groups.append(
            Group(
                PART,
                batch,
                ours if alone else ours + theirs,
                weight=2.0,
                drops=[ofp, flow, *([] if alone else [lerobot])] if last else (),
            )
        )
        if alone:
            apart.append(Group(PART, batch, theirs, weight=0.7, drops=[lerobot] if last else (), alone=True))
    return groups + apart


def other_steps(settings: BenchSettings, batch: int) -> list[Group]:
    """Each other objective, one after the other."""
    groups = []
    for name in OTHERS:
        subject = Subject(partial(trainee, settings, name))
        stand = Stand(subject, {name: _step(batch)})
        groups.append(Group(PART, batch, [stand], weight=0.4, drops=[subject], late=True))
    return groups


def _step(batch: int, *, stock: bool = False) -> Callable[[Trainee], Arm]:
    def make(trained: Trainee) -> Arm:
        seen = batch_of(trained.policy, batch)
        forward = stock_forward(trained.policy) if stock else trained.policy.forward
        return Arm(lambda: trained.step(seen, forward), batch)

    return make
