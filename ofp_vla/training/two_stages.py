"""Fine-tunes a recipe's flow on its data, then distils from the result: two runs of LeRobot's trainer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ofp_vla.core.objectives import OFPConfig
from ofp_vla.lerobot_seams.said import command_line, merged
from ofp_vla.lerobot_seams.trainer import TRAINER
from ofp_vla.training.command import IN_PARTS, override_options
from ofp_vla.training.recipe_config import parse_recipe
from ofp_vla.training.recipes import RecipeError, recipe_path, written
from ofp_vla.training.run import TrainingRun
from robotwin_eval.files import replace_file

# The first run's folder is the recipe's with this at its end, and holds both runs' logs.
TEACHER_FOLDER = "_teacher"
STAGES, SECOND = "stages.json", "second_stage.yaml"
# Settings of the policy that name its start, which is another one in the second run.
_START = ("type", "path", "pretrained_path", "pretrained_revision", "use_peft")


@dataclass(frozen=True)
class TwoStages:
    """A recipe whose policy is first fine-tuned by flow matching and then distils from what came of it.

    With LoRA the second run continues the first one's adapter, whose start stays as the frozen teacher; with
    whole tensors the first run's weights are the second one's start, and its teacher. The second run of a
    recipe for a base that has not learned the task (`OFPConfig.scratch`) takes the defaults for one that has.

    Attributes:
        recipe: a shipped recipe's name, or a YAML file.
        settings: `key=value` settings on top of it, for both runs.
        teacher_steps: optimiser steps of the first run; the recipe's are those of the second.
        gpus: processes, one per GPU.
        in_parts: parts that a process's batch is split into.
    """

    recipe: str
    settings: Sequence[str]
    teacher_steps: int
    gpus: int = 1
    in_parts: int = 1

    @cached_property
    def _config(self) -> Any:
        # A run to resume has its folder already, which LeRobot's parser would refuse.
        others = [text for text in self.settings if text.removeprefix("--").partition("=")[0] != "output_dir"]
        config: Any = parse_recipe(self.recipe, others)
        if config.policy.objective == "flow_matching":
            raise RecipeError(
                f"{self.recipe}: --teacher-steps fine-tunes by flow matching before the recipe's objective, "
                f"which is flow matching too; raise steps instead"
            )
        return config

    @cached_property
    def _said(self) -> dict[str, Any]:
        return merged(written(self.recipe), command_line(override_options(self.settings)))

    @property
    def output(self) -> Path:
        """The recipe's own folder, where the second run goes."""
        return Path(self._said.get("output_dir") or self._config.output_dir)

    @property
    def folder(self) -> Path:
        """Where the first run goes, and the logs."""
        return self.output.with_name(self.output.name + TEACHER_FOLDER)

    @property
    def teacher(self) -> TrainingRun:
        """The first run."""
        own = {
            "policy.objective": "flow_matching",
            "policy.sampler": "host",
            "policy.inference_role": "student",
            "policy.push_to_hub": False,
            "policy.scheduler_decay_steps": self.teacher_steps,
            "job_name": f"{self._config.job_name}{TEACHER_FOLDER}",
        }
        path = (self._said.get("policy") or {}).get("path")
        settings = {**self._options(), **({} if path is None else {"policy.path": path}), **own}
        return self._run(self.folder / "first", settings, self.teacher_steps, self.folder / "run")

    @property
    def student(self) -> TrainingRun:
        """The second run, in the recipe's own folder."""
        start = self.teacher.checkpoint
        policy = self._said.get("policy") or {}
        if self._config.peft is None:
            name = "path" if "path" in policy else "pretrained_path"
            settings = {**self._options(), f"policy.{name}": start}
        else:
            # Beside `path` LeRobot reads nothing of a file's policy block.
            settings = {
                k: v for k, v in self._options().items() if k.partition(".")[0] not in ("policy", "peft")
            }
            settings |= {"config_path": self.folder / SECOND, "policy.path": start}
            usual = {"objective": self._config.policy.objective, "sampler": "interval"}
            settings |= dict(_flat("policy", {**usual, **policy}, self._config.policy))
        settings |= {**self._of_a_teacher(), "policy.teacher_steps": self.teacher_steps}
        return self._run(self.folder / "second", settings, self._config.steps, self.output)

    def _of_a_teacher(self) -> dict[str, Any]:
        """OFP's defaults, for a teacher that does the task, in place of a recipe's `OFPConfig.scratch`."""
        block = (written(self.recipe).get("policy") or {}).get("ofp") or {}
        if self._config.policy.objective != "ofp" or OFPConfig(**block) != OFPConfig.scratch():
            return {}
        own = {f"policy.ofp.{name}": getattr(OFPConfig(), name) for name in block}
        return {name: value for name, value in own.items() if name not in self._options()}

    def _options(self) -> dict[str, Any]:
        options = (option[2:].partition("=") for option in override_options(self.settings))
        return {"config_path": recipe_path(self.recipe), **{key: value for key, _, value in options}}

    def _run(self, logs: Path, settings: Mapping[str, Any], steps: int, output: Path) -> TrainingRun:
        given = ("steps", "output_dir", "log_freq", "save_freq")
        return TrainingRun(
            logs,
            {key: value for key, value in settings.items() if key not in given},
            steps,
            log_every=self._config.log_freq,
            save_every=self._config.save_freq,
            output=output,
            gpus=self.gpus,
            module=(TRAINER,) if self.in_parts == 1 else (IN_PARTS, f"--in_parts={self.in_parts}"),
            variables={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def train(self, *, resume: bool) -> Path:
        """Runs both; returns the folder of the final checkpoint.

        Args:
            resume: go on where this command was stopped, in either run.

        Raises:
            FileExistsError: there is a run already and `resume` was not asked for.
            FileNotFoundError: there is none to resume.
            RecipeError: the run to resume has other settings.
            TrainingError: the trainer failed.
        """
        self.begin(resume=resume)
        self.teacher.train("teacher", after=self._config.steps, warn=True)
        return self.student.train("training", before=self.teacher_steps, warn=True)

    def begin(self, *, resume: bool) -> None:
        """Writes what both runs read, or checks what is there to resume; see `train`."""
        record = self.folder / STAGES
        own = {"recipe": self.recipe, "settings": list(self.settings), "teacher_steps": self.teacher_steps}
        taken = [place for place in (self.folder, self.output) if place.exists()]
        if taken and not resume:
            raise FileExistsError(
                f"{taken[0]} exists; --resume goes on with the run there, or choose another output_dir"
            )
        if resume and not record.is_file():
            raise FileNotFoundError(f"{record} is not there: nothing to resume; train without --resume first")
        if resume:
            try:
                before = dict(json.loads(record.read_text(encoding="utf-8")))
            except ValueError as error:
                raise RecipeError(
                    f"{record} cannot be read ({error}); restore it, or train into another output_dir"
                ) from error
            other = [f"{name} {before.get(name)}" for name, value in own.items() if before.get(name) != value]
            if other:
                raise RecipeError(f"{record}: the run to resume has {'; '.join(other)}; repeat its command")
            return
        left = {k: v for k, v in written(self.recipe).items() if k not in ("policy", "peft")}
        replace_file(self.folder / SECOND, yaml.safe_dump(left, sort_keys=False))
        replace_file(record, json.dumps(own, indent=1) + "\n")


def _flat(name: str, values: Mapping[str, Any], block: Any) -> Iterator[tuple[str, Any]]:
    """Settings of a block by their dotted names as the command line takes them; mappings are given whole."""
    for key, value in values.items():
        own, field = f"{name}.{key}", getattr(block, key, None)
        if key in _START and name == "policy":
            continue
        if isinstance(value, Mapping) and not isinstance(field, Mapping):
            yield from _flat(own, value, field)
        elif isinstance(value, (Mapping, list)) or value is None:
            yield own, json.dumps(value)
        else:
            yield own, value
