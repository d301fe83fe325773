"""A training step: LeRobot's own flow matching, ours over a cached prefix, and each objective."""

from __future__ import annotations

from collections.abc import Callable

from ofp_vla.bench.groups import Group, Stand
from ofp_vla.bench.settings import BenchSettings
from ofp_vla.bench.subjects import Subject, Trainee, batch_of, stock_forward, trainee
from ofp_vla.bench.timing import Arm
from ofp_vla.core.objectives import OBJECTIVES

PART = "training"
LEROBOT = "LeRobot, flow matching"
FLOW, OFP = "flow_matching", "ofp"
OTHERS = [name for name in OBJECTIVES if name not in (FLOW, OFP)]


def main_steps(batch: int, subjects: dict[str, Subject], last: bool) -> Group:
    """OFP, flow matching over a cached prefix, and LeRobot's own forward on the same model as the latter."""
    stands = [
        Stand(subjects[OFP], {OFP: _step(batch)}),
        Stand(subjects[FLOW], {FLOW: _step(batch), LEROBOT: _step(batch, stock=True)}),
    ]
    return Group(PART, batch, stands, weight=2.0, drops=tuple(subjects.values()) if last else ())


def other_steps(settings: BenchSettings, batch: int) -> list[Group]:
    """Each other objective, one after the other."""
    groups = []
    for name in OTHERS:
        subject = trained_by(settings, name)
        stand = Stand(subject, {name: _step(batch)})
        groups.append(Group(PART, batch, [stand], weight=0.4, drops=[subject], late=True))
    return groups


def trained_by(settings: BenchSettings, objective: str) -> Subject:
    """A policy that an objective trains."""
    return Subject(lambda: trainee(settings, objective))


def _step(batch: int, *, stock: bool = False) -> Callable[[Trainee], Arm]:
    def make(trained: Trainee) -> Arm:
        seen = batch_of(trained.policy, batch)
        forward = stock_forward(trained.policy) if stock else trained.policy.forward
        return Arm(lambda: trained.step(seen, forward), batch)

    return make
