"""A block for a model card: a table with intervals, and the `model-index` that the Hugging Face Hub reads.

Every card of a run holds the entry made here, with rates in per cent. Source of the metadata's form:
github.com/huggingface/hub-docs, modelcard.md; `huggingface_hub.EvalResult`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from robotwin_eval.report.data import percent_range
from robotwin_eval.report.leaderboard import display_name, is_score
from robotwin_eval.report.page import TEMPLATES
from robotwin_eval.runs.loading import Run
from robotwin_eval.runs.rates import Interval, stratified, wilson
from robotwin_eval.runs.results import policy_failure
from robotwin_eval.sim.factory import TITLES

# How the policy drew its chunks, as its server's metadata say.
ACTING = ("sampler", "steps", "warm")


def _name(run: Run) -> str:
    name = TITLES.get(run.info.suite, run.info.suite)
    if name.startswith("the "):  # no article at the start of a name
        name = name[4].upper() + name[5:]
    if run.info.config:
        name += f" ({run.info.config})"
    if _reduced(run):
        name += f", {run.info.simulator['score']}"
    return name


def _reduced(run: Run) -> bool:
    return run.info.suite == "robotwin" and not is_score(run)


def _metric(name: str, interval: Interval, episodes: int, run: Run) -> dict[str, Any]:
    policy = run.info.server.get("policy", {})
    return {
        "type": "success_rate",
        "value": round(100 * interval.estimate, 2),
        "name": name,
        "args": {
            "unit": "percent",
            "episodes": episodes,
            "interval_95": [round(100 * interval.low, 2), round(100 * interval.high, 2)],
            **{field: policy[field] for field in ACTING if policy.get(field) is not None},
            **({"executed_actions": run.info.execute} if run.info.execute is not None else {}),
            **({"delay_steps": run.info.delay} if run.info.delay is not None else {}),
            **({"checkpoint": run.info.checkpoint} if run.info.checkpoint else {}),
        },
    }


def _entry(run: Run) -> dict[str, Any]:
    counts = run.counts()
    if not counts:
        raise ValueError(f"{run.folder}: no counted result")
    episodes = sum(n for _, n in counts.values())
    metrics = [_metric("Success rate", stratified(list(counts.values())), episodes, run)]
    if len(counts) > 1:
        metrics += [
            _metric(f"Success rate, {display_name(task)}", wilson(*count), count[1], run)
            for task, count in counts.items()
        ]
    dataset: dict[str, Any] = {"name": _name(run), "type": run.info.suite}
    if run.info.config:
        dataset["config"] = run.info.config
    dataset["split"] = run.info.split
    if commit := run.info.simulator.get("commit", ""):
        dataset["revision"] = commit
    if run.info.manifest:
        dataset["args"] = {"manifest": run.info.manifest}
    return {"task": {"type": "robotics", "name": "Robotics"}, "dataset": dataset, "metrics": metrics}


def model_index(runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Returns the value of a model card's `model-index`: model name -> its runs.

    Rates are in per cent, beside how the policy drew its chunks and the checkpoint's fingerprint.

    Raises:
        ValueError: a run has no counted result.
    """
    return [{"name": name, "results": [_entry(run) for run in own]} for name, own in runs.items()]


def executed_part(run: Run) -> str:
    """Returns how much of each chunk was carried out, in words."""
    info = run.info
    part = "whole chunks executed" if info.execute is None else f"{info.execute} actions of a chunk executed"
    return part if info.delay is None else f"{part}, chunks {info.delay} control steps late"


def early_stop(run: Run) -> str:
    """Returns where a run was stopped early, in words; "" if it was not."""
    stop = run.early_stop
    return "" if stop is None else f"stopped early after {stop['stopped_after']} of {stop['of']} episodes"


def _table(runs: Sequence[Run]) -> list[list[str]]:
    """Returns the rows of a Markdown table, one column per run."""
    columns = [run.counts() for run in runs]
    tasks = list(dict.fromkeys(task for column in columns for task in column))
    rows = [["Task", *(_name(run) for run in runs)]]
    for task in tasks:
        cells = [_cell(wilson(*column[task])) if task in column else "–" for column in columns]
        rows.append([display_name(task), *cells])
    if len(tasks) > 1:
        rows.append(["**Mean of the tasks**", *(_mean(column, len(tasks)) for column in columns)])
    return rows


def _mean(counts: Mapping[str, tuple[int, int]], tasks: int) -> str:
    """The mean over a run's tasks, which may be fewer than the table's."""
    own = "" if len(counts) == tasks else f" of {len(counts)}"
    return f"**{_cell(stratified(list(counts.values())))}**{own}"


def _cell(interval: Interval) -> str:
    return f"{100 * interval.estimate:.1f} ({percent_range(interval)})"


def model_card(runs: Sequence[Run]) -> str:
    """Returns the block as Markdown with a YAML head.

    Args:
        runs: runs of one policy or several, by their label; each policy gets a table and a `model-index`
            entry.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.info.label or run.info.policy, []).append(run)
    head = {"model-index": model_index(groups)}
    return TEMPLATES.get_template("model_card.md").render(
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=100),
        groups=groups,
        table=_table,
        name=_name,
        reduced=_reduced,
        failure=lambda run: " ".join(policy_failure(run.results).split()),
        executed_part=executed_part,
        early_stop=early_stop,
    )
