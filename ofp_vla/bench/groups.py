"""Groups of rows that are measured in turns, and how one group is run within the time budget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ofp_vla.bench.rows import FAILED, MEASURED, SKIPPED, Results, Row
from ofp_vla.bench.subjects import Subject
from ofp_vla.bench.timing import Arm, Budget, Clock, ended_by, interleave, one_line, time_limit, warm_up

logger = logging.getLogger(__name__)


class Unavailable(RuntimeError):
    """What a row would measure does not exist here; its message says why."""


@dataclass(frozen=True)
class Stand:
    """Rows that are measured on one subject.

    Attributes:
        subject: what they are measured on.
        arms: name of a row -> what makes its arm of the subject.
    """

    subject: Subject
    arms: Mapping[str, Callable[[Any], Arm]]


@dataclass(frozen=True)
class Group:
    """Rows whose arms take turns.

    Attributes:
        part: see `Row`.
        batch: see `Row`.
        stands: subjects with their rows.
        weight: share of the time, in proportion to the other groups' weights.
        drops: subjects that no later group needs.
        late: whether all else comes before it: it takes long, and less depends on it.
        alone: whether nothing else may lie on the device meanwhile.
        derived: name of a row -> its milliseconds from the medians of the other rows, by name.
        compare: cosines of the rows' chunks with those of the path without the engine in float32, by name.
    """

    part: str
    batch: int
    stands: Sequence[Stand]
    weight: float = 1.0
    drops: Sequence[Subject] = ()
    late: bool = False
    alone: bool = False
    derived: Mapping[str, Callable[[Mapping[str, float]], float]] = field(default_factory=dict)
    compare: Callable[[Clock], Mapping[str, float]] | None = None

    def keep(self, wanted: Callable[[str], bool]) -> Group:
        """The group with the wanted rows alone."""
        stands = [
            Stand(stand.subject, {name: make for name, make in stand.arms.items() if wanted(name)})
            for stand in self.stands
        ]
        derived = {name: make for name, make in self.derived.items() if wanted(name)}
        return replace(self, stands=stands, derived=derived)

    def rows(self, results: Results, dtype: str) -> list[tuple[Stand, Row]]:
        """The rows with their subjects, listed in the results before any is measured."""
        return [
            (stand, results.row(self.part, name, self.batch, dtype))
            for stand in self.stands
            for name in stand.arms
        ]


def run_group(
    group: Group, rows: Sequence[tuple[Stand, Row]], clock: Clock, seconds: float, budget: Budget
) -> None:
    """Measures the rows of a group; each that fails keeps its reason, and the others go on."""
    arms: dict[str, Arm] = {}
    found: dict[str, Row] = {}
    began = budget.spent
    for stand, row in rows:
        with _notes(row):
            arm = _warm(stand, row, clock, budget)
        if arm is not None:
            arms[row.name], found[row.name] = arm, row
    # Making and warming up is part of the group's share, but not all of it, and something is left to compare.
    rest = max(0.9 * seconds - (budget.spent - began), 0.3 * seconds)
    for name, timed in interleave(arms, clock, rest, budget).items():
        found[name].take(timed, arms[name].per_call)
    if group.compare is not None and any(finished(row) for row in found.values()):
        try:
            with time_limit(budget.left):
                for name, cosine in group.compare(clock).items():
                    if name in found:
                        found[name].cosine = cosine
        except Exception as error:
            logger.warning("chunks were not compared: %s", one_line(error))
            clock.free()


def _warm(stand: Stand, row: Row, clock: Clock, budget: Budget) -> Arm | None:
    """The warm arm of a row; None if there is none, which the row then tells."""
    subject = stand.subject
    row.reason = ""
    if budget.left <= 0:
        row.status, row.reason = SKIPPED, f"the time budget of {budget.seconds:.0f} s was spent"
        return None
    try:
        with time_limit(budget.left):
            thing = subject.get(clock)
            arm = stand.arms[row.name](thing)
    except Unavailable as error:
        row.status, row.reason = SKIPPED, str(error)
        return None
    except Exception as error:
        row.fail(ended_by(error, budget))
        clock.free()
        return None
    timed = warm_up(arm, clock, budget)
    row.take(timed, arm.per_call, subject.resident)
    subject.resident += timed.kept
    return None if timed.error else arm


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


@contextmanager
def _notes(row: Row) -> Iterator[None]:
    """What is warned of while a row is made and warmed up, such as a fallback, becomes its reason."""
    kept, ours = _Kept(), logging.getLogger("ofp_vla")
    ours.addHandler(kept)
    try:
        yield
    finally:
        ours.removeHandler(kept)
    if kept.lines and row.status != FAILED:
        row.reason = "; ".join(dict.fromkeys([*([row.reason] if row.reason else []), *kept.lines]))[:400]


def derive(group: Group, results: Results, dtype: str) -> None:
    """Fills the rows of a group that are worked out of others, where those are measured."""
    known = {
        row.name: row.p50_ms for row in results.of(group.part) if row.batch == group.batch and row.p50_ms
    }
    for name, milliseconds in group.derived.items():
        row = results.row(group.part, name, group.batch, dtype)
        try:
            row.p50_ms, row.status, row.reason = max(milliseconds(known), 0.0), MEASURED, ""
        except KeyError as missing:
            row.status, row.reason = SKIPPED, f"worked out of {missing}, which was not measured"


def finished(row: Row) -> bool:
    """Whether a row needs no second try."""
    return row.status == MEASURED
