"""Plans a benchmark and runs it within its seconds; results are written after every group of rows."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from ofp_vla.bench import acting, counts, floors, stages, training
from ofp_vla.bench.groups import Group, Unavailable, derive, finished, run_group
from ofp_vla.bench.rows import FILE, SKIPPED, BenchError, Results, Row
from ofp_vla.bench.settings import DTYPES, BenchSettings
from ofp_vla.bench.subjects import Subject, loaded
from ofp_vla.bench.timing import Budget, Clock, OutOfTime, one_line
from ofp_vla.checkpoints.files import CheckpointFiles, known_config, resolve_checkpoint
from ofp_vla.errors import DeviceError
from ofp_vla.provenance import commit, machine, versions
from robotwin_eval.host import driver

Tell = Callable[[str], None]


def provenance(settings: BenchSettings, command: str) -> dict[str, object]:
    """Where the numbers come from."""
    facts: dict[str, object] = {"Versions": versions(), "Machine": machine(), "Weights": settings.weights}
    if source := commit():
        facts["Commit"] = source
    if settings.device.type == "cuda":
        facts["Card"] = torch.cuda.get_device_name(settings.device)
        facts["Driver"] = driver() or "unknown"
    facts["Threads"] = torch.get_num_threads()
    facts["Load"] = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    facts["Date"] = datetime.date.today().isoformat()
    # The page is made to be shown to others: no absolute path of this machine.
    shown = command.replace(str(settings.output.resolve()), settings.output.name)
    facts["Commands"] = [shown.replace(f"{Path.cwd()}/", "")]
    return facts


def plan(settings: BenchSettings) -> list[Group]:
    """All groups, the most valuable first; what compiles for minutes comes last.

    Raises:
        BenchError: `only` leaves nothing of them.
    """
    first, *others = settings.batches
    on, off = (Subject(partial(loaded, settings, engine)) for engine in ("on", "off"))

    def in_float8() -> object:
        try:
            found = loaded(settings, acting.FLOAT8_ENGINE)
            found.policy.host.refuse_levers()
            return found
        except (ValueError, DeviceError) as error:  # another type or card than it needs
            raise Unavailable(str(error)) from error

    fp8 = Subject(in_float8)
    wanted = set(settings.parts)
    groups = [acting.acting(first, on, off, fp8, compared=True)]
    groups += training.main_steps(settings)
    groups += [stages.stages(on)]
    groups += [acting.acting(batch, on, off, fp8) for batch in others]
    groups += training.other_steps(settings, settings.training_batches[0])
    if settings.compile_mode:
        groups += [acting.compiled(batch, off, settings.compile_mode) for batch in settings.batches]

    def named(name: str) -> bool:
        return not settings.only or any(word in name for word in settings.only)

    groups = [group for group in groups if group.part in wanted]
    kept = [group.keep(named) for group in groups]
    if groups and not any(stand.arms for group in kept for stand in group.stands):
        names = dict.fromkeys(name for group in groups for stand in group.stands for name in stand.arms)
        raise BenchError(
            f"--only {','.join(settings.only)}: no row has such a name; there are {'; '.join(names)}"
        )
    return [group for group in kept if any(stand.arms for stand in group.stands)]


def run(settings: BenchSettings, command: str, tell: Tell = lambda line: None) -> Results:
    """Measures what is asked and not yet in the output folder; returns all that is known there.

    Raises:
        BenchError: the folder holds results of another machine, commit or checkpoint.
        CheckpointError: there is no such checkpoint.
    """
    if settings.checkpoint:
        CheckpointFiles(resolve_checkpoint(settings.checkpoint)).need("config.json")
    budget, clock = Budget(settings.seconds), Clock(settings.device)
    results = Results(provenance(settings, command))
    if (settings.output / FILE).exists():
        results.continues(Results.read(settings.output / FILE), settings.output)
    groups = plan(settings)
    dtype = settings.dtype or _own_type(settings)
    rows = [group.rows(results, dtype) for group in groups]
    for row in (row for group in rows for _, row in group if not finished(row)):
        row.status, row.reason = SKIPPED, f"not reached within {settings.seconds:.0f} s"
    if not results.ceilings and settings.parts != ("counts",):
        results.ceilings = floors.measure_ceilings(clock, DTYPES[dtype]).describe()
        clock.free()
    counting = "counts" in settings.parts and counts.LAST not in results.counts
    for number, group in enumerate(groups):
        if counting and group.late:
            _count(results, settings, dtype, budget, tell)
            counting = False
        open_rows = [(stand, row) for stand, row in rows[number] if not finished(row)]
        if open_rows and group.alone:
            for subject in {id(s.subject): s.subject for g in groups for s in g.stands}.values():
                if all(subject is not stand.subject for stand in group.stands):
                    subject.drop(clock)
        if open_rows:
            share = group.weight / sum(rest.weight for rest in groups[number:])
            tell(f"{group.part}, batch {group.batch} ({budget.left:.0f} s left)")
            run_group(group, open_rows, clock, max(share * budget.left, 0.0), budget)
            for _, row in open_rows:
                tell(said(row))
        derive(group, results, dtype)
        for subject in group.drops:
            subject.drop(clock)
        _close(results, settings)
    if counting:
        _count(results, settings, dtype, budget, tell)
    _close(results, settings)
    return results


def _own_type(settings: BenchSettings) -> str:
    if not settings.checkpoint:
        return "bfloat16"
    return str(known_config(CheckpointFiles(resolve_checkpoint(settings.checkpoint))).get("dtype", "float32"))


def _count(results: Results, settings: BenchSettings, dtype: str, budget: Budget, tell: Tell) -> None:
    if settings.checkpoint:
        results.uncounted = "only random weights of a known size are counted, with --random-init"
        return
    tell(f"counts ({budget.left:.0f} s left)")
    work = settings.size, dtype
    counted = [(results.counts, counts.count_all(*work))]
    if settings.parts == ("counts",):
        counted.append((results.counts, counts.count_levers(*work)))
        counted.append((results.steps, counts.count_steps(*work)))
    results.uncounted = ""
    try:
        for known, found in counted:
            for name, cost in found:
                known[name] = cost.describe()
                tell(f"  {name:44s}{cost.flops / 1e12:9.3f} TFLOP{cost.calls:8d} calls")
                if budget.left <= 0:
                    raise OutOfTime(f"the time budget of {budget.seconds:.0f} s was spent")
    except Exception as error:
        results.uncounted = one_line(error)


def _close(results: Results, settings: BenchSettings) -> None:
    """Works out the floors and writes what is known."""
    if results.ceilings and results.counts:
        ceilings = floors.Ceilings(**results.ceilings)
        for row in results.rows:
            if found := counts.phases(row, results.counts):
                row.floor_ms = floors.floor(found, ceilings)
    results.write(settings.output)


def said(row: Row) -> str:
    """A row on one line."""
    if row.p50_ms is None:
        return f"  {row.name:44s}{row.status}: {row.reason}"
    memory = f"{row.peak_gb:8.2f} GB" if row.peak_gb is not None else ""
    return f"  {row.name:44s}{row.p50_ms:10.2f} ms{row.per_second or 0:10.1f} /s{memory}"
