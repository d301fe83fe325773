"""Runs a study cell by cell in one folder; what is finished is never run again, what was killed goes on.

study/
  plan.json                  everything that the cells depend on, by dotted names
  demonstrations/dataset     what every arm trains on
  episodes/manifest.json     the evaluation episodes
  cells/ARM/SEED/training    the trainer's run and its checkpoint
  cells/ARM/SEED/WAY-EXECUTE/rows.csv
  stages/...                 a record of each of these: settings, done, seconds
  runs/EXECUTE/...           the evaluations as `robotwin-eval report` reads them
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ofp_vla.demo.stages import Stages
from ofp_vla.study.config import StudyError, packaged
from ofp_vla.study.plan import ArmPlan, Cell, Plan
from ofp_vla.study.rows import Row, read_rows, write_rows
from ofp_vla.study.work import DEMONSTRATIONS, EPISODES, RealWork, Work, trainer_run
from robotwin_eval.files import replace_file
from robotwin_eval.runs.locking import WriterLock

PLAN, ROWS, LOCK = "plan.json", "rows.csv", "lock"


class StudyRun:
    """One study in one folder."""

    def __init__(self, plan: Plan, output: Path, console: Console, work: Work | None = None) -> None:
        self.plan, self.output, self.console = plan, output, console
        self.work = work or RealWork(plan.config)

    def claim(self) -> None:
        """Makes the folder this study's, or makes sure that it is.

        Arms, seeds and ways may be added to a study; what its cells were made with may not change.

        Raises:
            StudyError: the folder is of another configuration, or of another program; says what differs.
        """
        path, wanted = self.output / PLAN, json.loads(json.dumps(self.plan.record()))
        if not path.exists():
            if self.output.exists() and any(self.output.iterdir()):
                raise StudyError(
                    f"{self.output} exists and has no {PLAN}: it is not a study; choose another --output"
                )
            replace_file(path, json.dumps(wanted, indent=1) + "\n")
            return
        made = _read(path)
        if differs := _differences(made, wanted):
            raise StudyError(
                f"{self.output} is a study of another configuration: {'; '.join(differs)}"
                f"{self._recounted(made)}. Choose another --output, or give what is to be compared beside it "
                f"a name of its own"
            )
        if made != wanted:
            replace_file(path, json.dumps(wanted, indent=1) + "\n")

    def _recounted(self, made: Mapping[str, Any]) -> str:
        """A remark on numbers of steps that nobody wrote, but that follow from what a step costs."""
        arms = [
            plan.name
            for plan in self.plan.arms
            if plan.arm.passes_of and made.get(f"arms.{plan.name}.steps", plan.steps) != plan.steps
        ]
        if not arms:
            return ""
        return (
            f" (the steps of {', '.join(arms)} follow from the passes that a step costs, which another "
            f"version of this program may have counted otherwise)"
        )

    def prepare(self) -> None:
        """Writes the demonstrations and chooses the evaluation episodes, unless they are there."""
        if self.done(DEMONSTRATIONS) and self.done(EPISODES):
            return  # without the lock, which the units of a study would take from each other
        c = self.plan.config
        counts = dict(c.demonstrations)
        with _locked(self.output / "prepare.lock"):
            self._stage(DEMONSTRATIONS, {"demonstrations": counts}, self.work.demonstrate)
            self._stage(EPISODES, {"episodes": c.episodes, "tasks": list(c.tasks)}, self.work.choose_episodes)

    def mode_shares(self) -> dict[str, dict[str, float]]:
        """Task -> mode -> share of the demonstrations."""
        record = self.stage(DEMONSTRATIONS) or {"result": {}}
        return {task: dict(modes) for task, modes in record["result"].get("mode_shares", {}).items()}

    def run(self, cells: Sequence[Cell], workers: int | None = None) -> None:
        """Runs the cells that are not done, in their order, in this process.

        Raises:
            TrainingError: a training failed.
            NothingPlayed: no episode of an evaluation was played to its end.
        """
        self.prepare()
        for cell in cells:
            with _locked(self.output / "cells" / cell.unit / LOCK):
                self._run(cell, workers)

    def _run(self, cell: Cell, workers: int | None) -> None:
        arm = self.plan.arm(cell.arm)
        if not cell.way:
            data = self.output / DEMONSTRATIONS
            settings = {"steps": arm.steps, "seed": cell.seed}
            self._stage(cell.name, settings, lambda folder: self.work.train(arm, cell.seed, data, folder))
            return

        def evaluate(folder: Path) -> Mapping[str, Any]:
            rows = self.work.evaluate(arm, cell, self._checkpoint(arm, cell.seed), self.output, workers)
            write_rows(folder / ROWS, rows)
            return {"episodes": len(rows)}

        self._stage(cell.name, {"way": cell.way, "execute": cell.execute}, evaluate)

    def _checkpoint(self, arm: ArmPlan, seed: int) -> str:
        if not arm.objective:
            return packaged(self.plan.config.bases[arm.arm.base])
        return str(trainer_run(self.output / Cell(arm.name, seed).name, {}, arm.steps).checkpoint.resolve())

    def _stage(
        self, name: str, settings: Mapping[str, Any], work: Callable[[Path], Mapping[str, Any]]
    ) -> None:
        if not self.done(name):
            Stages(self.output, self.console).run(name, name, settings, work)

    def done(self, name: str) -> bool:
        """Whether the stage or cell of that name is finished."""
        return bool((self.stage(name) or {}).get("done"))

    def stage(self, name: str) -> dict[str, Any] | None:
        """The record of a stage or cell, None if it was never begun."""
        path = self.output / "stages" / f"{name}.json"
        return _read(path) if path.exists() else None

    def rows(self) -> list[Row]:
        """Rows of the finished cells, in the order of the plan."""
        found: list[Row] = []
        for cell in self.plan.cells():
            path = self.output / cell.name / ROWS
            if cell.way and self.done(cell.name):
                found += read_rows(path)
        return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise StudyError(f"{path} cannot be read ({error}); repair it, or choose another --output") from error


def _differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What the folder's cells were made with and is now otherwise, gone, or new to an arm that was there."""

    def owner(name: str) -> str:
        kind, _, rest = name.partition(".")
        return f"{kind}.{rest.partition('.')[0]}." if kind in ("arms", "ways", "bases", "execute") else ""

    owners = {owner(name) for name in made}
    added = [name for name in wanted if name not in made and owner(name) in owners]
    return [
        f"{name} was {made.get(name, 'not given')!r}, is {wanted.get(name, 'not given')!r}"
        for name in (*made, *added)
        if made.get(name) != wanted.get(name) or (name in made) != (name in wanted)
    ]


class _locked:
    """Holds a lock file of the folder; says who has it if it is taken."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def __enter__(self) -> None:
        try:
            self._lock = WriterLock(self._path)
        except OSError as error:
            raise StudyError(f"{self._path.parent}: {error}") from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()
