"""Compares two runs episode by episode, as text and as JSON values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from robotwin_eval.report.data import ALL_TASKS, PairData, p_value, percent, points, points_range
from robotwin_eval.report.measures import MeasureDifference, measure_differences
from robotwin_eval.report.run_data import anytime_rate
from robotwin_eval.report.runs import run_labels
from robotwin_eval.runs.loading import Run
from robotwin_eval.runs.medians import MEDIAN_METHOD
from robotwin_eval.runs.rates import DIFFERENCE_METHOD, TEST_METHOD
from robotwin_eval.runs.results import policy_failure
from robotwin_eval.runs.run_info import info_differences

# What must agree for an episode of one run to be the same episode in the other.
EPISODES = ("suite", "config", "split", "simulator", "manifest")
# What may differ, since it is what is compared, but belongs beside the numbers.
MENTIONED = ("policy", "checkpoint", "execute", "delay", "run_seed", "server.engine", "server.device")

# Headings of the terminal's table, in two lines to stay within 80 columns.
HEAD = (
    ("", "", "ref.", "new", "diff.", "95 %", "p two-", "p a", "detec-"),
    ("task", "pairs", "(%)", "(%)", "(pts)", "interval", "sided", "loss", "table"),
)
NAME_WIDTH = 18  # a longer task name gets its own line


class ComparisonError(ValueError):
    """Two runs were not made on the same episodes."""


@dataclass(frozen=True)
class RunComparison:
    """A new run against a reference.

    Attributes:
        reference: label of the reference.
        new: label of the new run.
        rows: all tasks first if there are several, then each task.
        differences: (name, reference's value, new run's value) of what else differs.
        unpaired: episodes that only one of the runs has.
        warnings: differences despite which the comparison was forced, and runs that stopped early.
        measures: paired differences of what both runs measured beside success.
    """

    reference: str
    new: str
    rows: tuple[PairData, ...]
    differences: tuple[tuple[str, Any, Any], ...]
    unpaired: int
    warnings: tuple[str, ...]
    measures: tuple[MeasureDifference, ...] = ()

    def numbers(self) -> dict[str, Any]:
        """Returns all of it as JSON values."""
        return {
            "reference": self.reference,
            "new": self.new,
            "unpaired": self.unpaired,
            "warnings": list(self.warnings),
            "differences": [{"name": n, "reference": a, "new": b} for n, a, b in self.differences],
            "methods": [TEST_METHOD, DIFFERENCE_METHOD],
            "tasks": [_row_numbers(row) for row in self.rows],
            "measures": [row.numbers() for row in self.measures],
        }

    def text(self) -> str:
        """Returns a table for a terminal."""
        every = f"all {len(self.rows) - 1} tasks"
        cells = [*HEAD, *(_row_text(row, row.task or every) for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(HEAD[0]))]
        widths[0] = min(widths[0], NAME_WIDTH)
        lines = [f"warning: {warning}" for warning in self.warnings]
        lines += [f"reference: {self.reference}", f"new:       {self.new}", ""]
        for row in cells:
            if len(row[0]) > NAME_WIDTH:
                lines.append(row[0])
                row = ("", *row[1:])
            lines.append(
                " ".join(
                    v.ljust(w) if i == 0 else v.rjust(w)
                    for i, (v, w) in enumerate(zip(row, widths, strict=True))
                )
            )
        lines += ["", "difference = new - reference, in percentage points, on the episodes that both ran"]
        lines.append(
            f"{DIFFERENCE_METHOD}; {TEST_METHOD}, two-sided and for a loss; "
            "detectable: difference found with 80 % power"
        )
        if self.measures:
            lines += ["", f"reference / new, difference with 95 % interval by {MEDIAN_METHOD}:"]
            lines += map(str, self.measures)
        if self.unpaired:
            lines.append(f"{self.unpaired} episodes that only one of the runs has were left out")
        lines += [f"{name}: {a!r} / {b!r}" for name, a, b in self.differences]
        return "\n".join(lines) + "\n"


def _row_text(row: PairData, name: str) -> tuple[str, ...]:
    test, difference = row.comparison.test, row.comparison.difference
    return (
        name,
        str(row.comparison.pairs),
        f"{100 * row.reference_rate:.1f}",
        f"{100 * row.new_rate:.1f}",
        points(difference.estimate),
        points_range(difference),
        p_value(test.two_sided).replace("< 0", "<"),
        p_value(test.worse).replace("< 0", "<"),
        "–" if row.detectable is None else f"{100 * row.detectable:.1f}",
    )


def _row_numbers(row: PairData) -> dict[str, Any]:
    test, difference = row.comparison.test, row.comparison.difference
    return {
        "task": row.task,
        "pairs": row.comparison.pairs,
        "both": row.comparison.both,
        "only_new": test.gains,
        "only_reference": test.losses,
        "neither": row.comparison.neither,
        "reference_rate": row.reference_rate,
        "new_rate": row.new_rate,
        "difference": difference.estimate,
        "low": difference.low,
        "high": difference.high,
        "p_two_sided": test.two_sided,
        "p_worse": test.worse,
        "p_better": test.better,
        "detectable": row.detectable,
    }


def compare_runs(a: Run, b: Run, *, force: bool = False) -> RunComparison:
    """Compares run `b` (new) with run `a` (reference) on their common episodes.

    `force` compares even if simulator, configuration or manifest differ; what differs becomes a warning.

    Raises:
        ComparisonError: the runs were not made on the same episodes (and `force` is not set), or have no
            episode in common.
    """
    ignored = [name for name in a.info.__dataclass_fields__ if name not in EPISODES]
    apart = info_differences(a.info, b.info, ignored)
    warnings = [f"{name} is {one!r} in {a.folder} and {other!r} in {b.folder}" for name, one, other in apart]
    if warnings and not force:
        raise ComparisonError(
            f"{'; '.join(warnings)}: these runs did not meet the same episodes. Run both with one manifest, "
            "or force the comparison"
        )
    warnings += [_stopped(run) for run in (a, b) if run.early_stop is not None]
    warnings += [
        f"{run.folder}: every episode ended as an error of the policy, so that its rate says nothing; the "
        f"first: {error}"
        for run in (a, b)
        if (error := policy_failure(run.results))
    ]
    reference, new = run_labels((a, b))
    theirs, ours = ({(r.task, r.seed): r.measures for r in run.results if r.counted} for run in (a, b))
    outcomes = {
        label: {(r.task, r.seed): r.success for r in run.results if r.counted}
        for label, run in ((reference, a), (new, b))
    }
    common = outcomes[reference].keys() & outcomes[new].keys()
    if not common:
        raise ComparisonError(f"{a.folder} and {b.folder} have no episode in common: nothing is paired")
    tasks = [task for task in a.info.tasks if any(key[0] == task for key in common)]
    shown = [ALL_TASKS, *tasks] if len(tasks) > 1 else tasks
    rows = [PairData.of(task, new, reference, outcomes) for task in shown]
    mentioned = [
        row for row in info_differences(a.info, b.info, ()) if row[0] in MENTIONED and row not in apart
    ]
    return RunComparison(
        reference,
        new,
        tuple(row for row in rows if row is not None),
        tuple(mentioned),
        len(outcomes[reference].keys() ^ outcomes[new].keys()),
        tuple(warnings),
        tuple(measure_differences(ours, theirs, tasks)),
    )


def _stopped(run: Run) -> str:
    stop, rate = run.early_stop, anytime_rate(run)
    assert stop is not None
    holds = "" if rate is None else f" (rate: {percent(rate.low)} to {percent(rate.high)})"
    return (
        f"{run.folder} was stopped early, after {stop['stopped_after']} of {stop['of']} episodes: the rates, "
        "intervals and p values below hold for a number of episodes fixed beforehand and lean to the side of "
        f"the decision. What holds is that decision (p = {stop['p_value']:.2g}) and the run's 95 % "
        f"confidence sequence{holds}"
    )
