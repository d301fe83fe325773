"""Policies that ran twice, by whole chunks and replanning after a few actions, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from robotwin_eval.report.measures import ERROR
from robotwin_eval.runs.loading import Run
from robotwin_eval.runs.rates import Interval, PairedComparison, compare, stratified
from robotwin_eval.runs.results import EpisodeResult
from robotwin_eval.worker.measures import JERK


@dataclass(frozen=True)
class ReplanningData:
    """A policy on one task, or on all (`task == ""`), by whole chunks and replanning.

    Attributes:
        policy: its key in the report, that of its run by whole chunks.
        task: name of the task.
        execute: actions carried out of a chunk where it replans.
        whole: success by whole chunks, mean of the tasks' rates.
        replanned: success where it replans.
        comparison: replanning against whole chunks, on the episodes of both; None if there are none.
        errors: median error of the task in mm, by whole chunks and replanning, where it has one.
        jerk: median jerk over replans, where measured.
    """

    policy: str
    task: str
    execute: int
    whole: Interval
    replanned: Interval
    comparison: PairedComparison | None
    errors: tuple[float, float] | None
    jerk: float | None


def executed(run: Run) -> int:
    """Actions that a run carried out of each chunk; 0 without a result."""
    return run.results[0].execute if run.results else 0


def split_replanned(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Separates the runs that carried out fewer actions of a chunk than another run of the same policy."""
    most: dict[tuple[str, int | None], int] = {}
    for run in runs:
        most[_acts(run)] = max(executed(run), most.get(_acts(run), 0))
    whole = [run for run in runs if executed(run) == most[_acts(run)]]
    return whole, [run for run in runs if run not in whole]


def _acts(run: Run) -> tuple[str, int | None]:
    return run.info.checkpoint, run.info.delay


def replanning_rows(
    whole: Sequence[tuple[str, Run]], replanned: Sequence[Run], tasks: Sequence[str]
) -> list[ReplanningData]:
    """Rows for each policy that ran in both ways, all tasks first if there are several.

    Args:
        whole: the runs by whole chunks with their keys.
        replanned: runs of the same policies that replan.
        tasks: in the order of the page.
    """
    rows = []
    for task in ("", *tasks) if len(tasks) > 1 else tasks:
        for key, run in whole:
            for other in replanned:
                if _acts(other) != _acts(run):
                    continue
                sides = [
                    [r for r in each.results if r.counted and task in ("", r.task)] for each in (run, other)
                ]
                if all(sides):
                    rows.append(_row(key, task, executed(other), *sides))
    return rows


def _row(
    key: str, task: str, execute: int, whole: Sequence[EpisodeResult], replanned: Sequence[EpisodeResult]
) -> ReplanningData:
    after, before = ({(r.task, r.seed): r.success for r in side} for side in (replanned, whole))
    errors = [_median(side, ERROR) for side in (whole, replanned) if task]
    return ReplanningData(
        key,
        task,
        execute,
        _rate(whole),
        _rate(replanned),
        compare(after, before) if after.keys() & before.keys() else None,
        (errors[0], errors[1]) if errors and errors[0] is not None and errors[1] is not None else None,
        _median(replanned, JERK) if task else None,
    )


def _rate(results: Sequence[EpisodeResult]) -> Interval:
    by_task: dict[str, list[bool]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result.success)
    return stratified([(sum(rows), len(rows)) for rows in by_task.values()])


def _median(results: Sequence[EpisodeResult], ending: str) -> float | None:
    """Median of the measure whose name ends so."""
    values = [v for r in results for name, v in r.measures.items() if name.endswith(ending)]
    return statistics.median(values) if values else None
