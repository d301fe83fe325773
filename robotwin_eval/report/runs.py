"""A report from the runs of an evaluation: names them, says which may be compared, collects their data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from robotwin_eval.report.build import build_report_data
from robotwin_eval.report.data import ReportData
from robotwin_eval.report.published import published
from robotwin_eval.report.replanning import replanning_rows
from robotwin_eval.report.run_data import RunData, run_data
from robotwin_eval.runs.loading import Run
from robotwin_eval.runs.rates import Interval
from robotwin_eval.runs.results import EpisodeResult, policy_failure, task_order
from robotwin_eval.runs.run_info import RunInfo, Session, info_differences, part_differences
from robotwin_eval.runs.sequential import SEQUENTIAL_METHOD
from robotwin_eval.runs.store import RunError
from robotwin_eval.sim.factory import TITLES

# What two runs must share for their episodes to be the same, besides tasks, seeds and instructions.
SAME_EPISODES = ("suite", "config", "split", "simulator")
FRAMES_PER_TASK = 4


def run_labels(runs: Sequence[Run]) -> list[str]:
    """Returns a different label for each run: its own or, if those agree, what tells the runs apart."""
    # Paths are removed first: otherwise two labels might become one later.
    labels = [published(run.info.label or run.info.policy) for run in runs]
    for field in ("config", "split", "checkpoint", "run_seed", "execute", "delay"):
        for label in {label for label in labels if labels.count(label) > 1}:
            same = [i for i, other in enumerate(labels) if other == label]
            if len({getattr(runs[i].info, field) for i in same}) > 1:
                for i in same:
                    value = getattr(runs[i].info, field)
                    labels[i] = f"{label} · {value if isinstance(value, str) else f'{field} {value}'}"
    for label in {label for label in labels if labels.count(label) > 1}:
        for number, i in enumerate([i for i, other in enumerate(labels) if other == label], 1):
            labels[i] = f"{label} · run {number}"
    return labels


def _refuse_parts(runs: Sequence[Run], labels: Sequence[str]) -> None:
    episodes = [{(r.task, r.seed) for r in run.results if r.counted} for run in runs]
    for i, run in enumerate(runs):
        for j in range(i):
            if not part_differences(run.info, runs[j].info) and not episodes[i] & episodes[j]:
                raise RunError(
                    f"{runs[j].folder} and {run.folder} are parts of one run ({labels[j]}): join them with "
                    "`robotwin-eval merge` first"
                )


def _partners(runs: Sequence[Run], labels: Sequence[str]) -> dict[str, list[str]]:
    """Label -> the labels, in order, of the runs that met some of its episodes."""
    ignored = [name for name in RunInfo.__dataclass_fields__ if name not in SAME_EPISODES]
    told = [{(r.task, r.seed): r.instruction for r in run.results if r.counted} for run in runs]

    def alike(i: int, j: int) -> bool:
        common = told[i].keys() & told[j].keys()
        same = bool(common) and all(told[i][key] == told[j][key] for key in common)
        return same and not info_differences(runs[i].info, runs[j].info, ignored)

    numbers = range(len(runs))
    return {labels[i]: [labels[j] for j in numbers if j != i and alike(i, j)] for i in numbers}


def _unpaired(runs: Sequence[Run], labels: Sequence[str], references: Mapping[str, str]) -> list[str]:
    """Runs without a partner although an earlier run has their suite and configuration."""
    kinds = [(run.info.suite, run.info.config) for run in runs]
    return [
        f"{label} is not paired with a run before it: none has the same simulator and instructions and an "
        "episode (task and seed) in common. Give all runs one manifest to compare them."
        for i, label in enumerate(labels)
        if label not in references and kinds[i] in kinds[:i]
    ]


def _provenance(run: Run) -> dict[str, Any]:
    info = run.info
    return {
        "Simulator": dict(info.simulator),
        "Protocol": {
            "suite": info.suite,
            "config": info.config or "–",
            "instructions": info.split,
            "episodes a task": info.episodes,
            "noise seed": info.run_seed,
            "executed actions": "whole chunk" if info.execute is None else info.execute,
            "chunks drawn by": info.acts or "–",
            "manifest": info.manifest or "–",
        },
        "Policy": {"name": info.policy, "fingerprint": info.checkpoint or "–", **_flat(info.server)},
        "Host": dict(info.host),
        **({"Simulator's host": dict(run.sessions[0].worker)} if run.sessions[0].worker else {}),
        "Versions": dict(info.versions),
        "Started": info.created,
        "Command": info.command,
        **_sessions(run.sessions),
    }


def _sessions(sessions: Sequence[Session]) -> dict[str, Any]:
    """Every start of the runner, if a run was resumed or merged."""
    if len(sessions) < 2:
        return {}
    return {
        "Sessions": {
            f"{number}, {session.created}": {
                "Host": dict(session.host),
                **({"Simulator's host": dict(session.worker)} if session.worker else {}),
                "Server": _flat(session.server),
                "Versions": dict(session.versions),
                "Shard": "{}/{}".format(*session.shard),
                "Command": session.command,
            }
            for number, session in enumerate(sessions, 1)
        }
    }


def _flat(values: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{name}.{key}" if name else str(key)
        flat |= _flat(value, path) if isinstance(value, Mapping) else {path: value}
    return flat


def _notices(runs: Sequence[RunData], labels: Mapping[str, str]) -> list[str]:
    notices = []
    for mark in dict.fromkeys(run.not_a_score for run in runs if run.not_a_score):
        which = [labels[run.policy] for run in runs if run.not_a_score == mark]
        about = "These numbers are" if len(which) == len(runs) else f"The numbers of {', '.join(which)} are"
        notices.append(
            f"{about} {mark}: the simulator ran in a reduced form that checks the harness. Do not compare "
            "them with published results."
        )
    notices += [
        f"{labels[run.policy]}: every episode ended as an error of the policy, so that its rate says nothing "
        f"of what the policy can do. The first: {error}"
        for run in runs
        if (error := policy_failure(run.results))
    ]
    notices += [
        f"{labels[run.policy]} is not complete: {run.counted} of {run.wanted} episodes have a result."
        for run in runs
        if run.counted < run.wanted and run.early_stop is None
    ]
    return notices + [
        _decided(labels[run.policy], run.early_stop, run.anytime) for run in runs if run.early_stop
    ]


def _decided(label: str, stop: Mapping[str, Any], anytime: Interval | None) -> str:
    """How a run ended early, and what that means for its rate."""
    words = {"greater": "above", "less": "below"}
    if stop["reference"] is None:
        what = f"its rate is {words[stop['decision']]} {100 * stop['null']:g} %"
    else:
        better = {"greater": "more", "less": "fewer"}[stop["decision"]]
        what = f"it solves {better} episodes than the reference run"
    holds = ""
    if anytime is not None:
        low, high = 100 * anytime.low, 100 * anytime.high
        holds = f" What holds whenever one stops is the 95 % confidence sequence: {low:.1f} to {high:.1f} %."
    return (
        f"{label} was stopped early, after {stop['stopped_after']} of {stop['of']} episodes: {what} "
        f"(anytime-valid p = {stop['p_value']:.2g}, error rate {stop['alpha']:g}; {SEQUENTIAL_METHOD}). "
        "Its rate and interval hold for a number of episodes fixed beforehand; after an early stop they lean "
        f"to the side of the decision.{holds}"
    )


def report_from_runs(
    runs: Sequence[Run],
    *,
    replanned: Sequence[Run] = (),
    frames_per_task: int = FRAMES_PER_TASK,
    **extras: Any,
) -> ReportData:
    """Computes a report from runs.

    Args:
        runs: runs in the order of the page. Each is compared with the first one before it that met the same
            episodes (equal simulator and instructions, and at least one task and seed in common), or, if
            `baselines` are given, with each of them that did.
        replanned: further runs of the same policies that carried out fewer actions of a chunk: they are shown
            in a table of their own, beside the runs by whole chunks.
        frames_per_task: failures of each run and task that are shown with their last frame.
        **extras: arguments of `robotwin_eval.report.build.build_report_data`, such as `curves`, `films`
            (filed under the label of a run), `notes`, `provenance`, `title`.

    Raises:
        RunError: two runs are parts of one.
        ValueError: no run, or a run without a counted result.
    """
    if not runs:
        raise ValueError("no run: there is nothing to report")
    labels = run_labels(runs)
    _refuse_parts(runs, labels)
    partners = _partners(runs, labels)
    references = {
        label: earlier[0]
        for i, label in enumerate(labels)
        if (earlier := [other for other in labels[:i] if other in partners[label]])
    }

    def comparable(new: str, reference: str) -> bool:
        if "baselines" in extras:
            return new == reference or reference in partners[new]
        return new == reference or references.get(new) == reference

    results: list[EpisodeResult] = []
    for label, run in zip(labels, runs, strict=True):
        rows = sorted(run.results, key=task_order(run.info.tasks))
        results += [dataclasses.replace(row, policy=label) for row in rows]
    firsts = [label for label in labels if label not in references or label in references.values()]
    parts = tuple(run_data(label, run, frames_per_task) for label, run in zip(labels, runs, strict=True))
    suites = dict.fromkeys(TITLES.get(run.info.suite, run.info.suite) for run in runs)
    settings: dict[str, Any] = {
        "labels": {label: label for label in labels},
        "baselines": firsts,
        "title": f"Evaluation on {' and '.join(suites)}",
        **extras,
    }
    settings["provenance"] = {
        **{label: _provenance(run) for label, run in zip(labels, runs, strict=True)},
        **settings.get("provenance", {}),
    }
    data = build_report_data(results, comparable=comparable, **settings)
    return dataclasses.replace(
        data,
        runs=parts,
        replanning=tuple(replanning_rows(list(zip(labels, runs, strict=True)), replanned, data.tasks)),
        notices=(*_notices(parts, data.labels), *_unpaired(runs, labels, references)),
    )
