"""From a study's file to its cells: what each arm trains with, what a step costs, in which order all runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ofp_vla.checkpoints.files import WEIGHTS, CheckpointFiles
from ofp_vla.core.objectives import OBJECTIVES
from ofp_vla.errors import CheckpointError
from ofp_vla.policies.sampling import Sampling
from ofp_vla.study.config import EQUAL_PASSES, Arm, StudyConfig, StudyError, Way, packaged
from ofp_vla.study.cost import Cost, step_cost, steps_for
from ofp_vla.training.recipe_config import parse_recipe
from ofp_vla.training.recipes import RecipeError, written


@dataclass(frozen=True)
class ArmPlan:
    """An arm as it will run.

    Attributes:
        arm: what the file says.
        steps: gradient steps, 0 for a base.
        cost: of one step, None for a base.
        batch: observations a step.
        objective: name of the objective, "" for a base.
        settings: everything that the training depends on, by dotted names; None for a base.
        policy: configuration of the policy, None for a base.
    """

    arm: Arm
    steps: int = 0
    cost: Cost | None = None
    batch: int = 0
    objective: str = ""
    settings: Mapping[str, Any] | None = None
    policy: Any = None

    @property
    def name(self) -> str:
        """What its cells are filed under."""
        return self.arm.name

    @property
    def passes(self) -> float:
        """Expert passes of the whole training."""
        return self.cost.passes * self.batch * self.steps if self.cost else 0.0

    def sampler(self, way: Way) -> str:
        """By which sampler it acts in `way`."""
        jumps = bool(self.objective) and OBJECTIVES[self.objective].jumps
        return way.sampler or ("interval" if jumps else "host")

    def acts(self, way: Way, seed: int) -> bool:
        """Whether its checkpoint of `seed` is asked to act in `way`, and can."""
        if way.arms and self.name not in way.arms:
            return False
        if not self.objective:
            return self.sampler(way) == "host"
        if (way.seeds and seed not in way.seeds) or (self.arm.ways and way.name not in self.arm.ways):
            return False
        try:
            Sampling.of(self.policy, sampler=self.sampler(way), steps=way.steps)
        except ValueError:  # the objective did not train what this way asks for
            return False
        return True


@dataclass(frozen=True)
class Cell:
    """One piece of work that is done once: a training, or with `way` and `execute` an evaluation of it."""

    arm: str
    seed: int
    way: str = ""
    execute: str = ""

    @property
    def unit(self) -> str:
        """The training that it belongs to, as `--only` takes it."""
        return f"{self.arm}/{self.seed}"

    @property
    def name(self) -> str:
        """Its name, a path below the study's folder."""
        return f"cells/{self.unit}/" + (f"{self.way}-{self.execute}" if self.way else "training")


@dataclass(frozen=True)
class Plan:
    """A study and its arms in full."""

    config: StudyConfig
    arms: tuple[ArmPlan, ...]

    def arm(self, name: str) -> ArmPlan:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def cells(self, only: str = "") -> list[Cell]:
        """The cells in the order in which they run, so that a study stopped early is balanced.

        Bases come first, then the first seed of every arm, then the second.

        Args:
            only: `ARM` or `ARM/SEED`; "" for all.

        Raises:
            StudyError: `only` names no arm or none of its seeds.
        """
        found = list(self._cells())
        if not only:
            return found
        chosen = [cell for cell in found if only in (cell.arm, cell.unit)]
        if not chosen:
            units = ", ".join(dict.fromkeys(cell.unit for cell in found))
            raise StudyError(f"--only {only}: no such arm and seed; there are {units}")
        return chosen

    def _cells(self) -> Iterator[Cell]:
        for arm in self.arms:
            if not arm.objective:
                yield from self._evaluations(arm, 0)
        trained = [arm for arm in self.arms if arm.objective]
        for seed in sorted({seed for arm in trained for seed in arm.arm.seeds}):
            for arm in trained:
                if seed in arm.arm.seeds:
                    yield Cell(arm.name, seed)
                    yield from self._evaluations(arm, seed)

    def _evaluations(self, arm: ArmPlan, seed: int) -> Iterator[Cell]:
        for way in self.config.ways:
            # Every base acts in the reference's way, whichever arms that is limited to.
            if arm.acts(way, seed) or (not arm.objective and way.name == self.config.reference):
                for execute in self.config.execute:
                    if not way.execute or execute in way.execute:
                        yield Cell(arm.name, seed, way.name, execute)

    def record(self) -> dict[str, Any]:
        """Everything that a cell depends on, as JSON values by dotted names."""
        c = self.config
        shared = {"demonstrations": dict(c.demonstrations), "episodes": c.episodes, "run_seed": c.run_seed}
        ways = {way.name: asdict(way) for way in c.ways}
        for way in ways.values():  # which cells there are, and how they are called, changes none of them
            for field in ("title", "seeds", "arms", "execute"):
                del way[field]
        arms = {
            arm.name: {"base": arm.arm.base, "steps": arm.steps, **(arm.settings or {})} for arm in self.arms
        }
        weights = {name: _weights(packaged(place)) for name, place in c.bases.items()}
        bases = {name: {"place": place, "weights": weights[name]} for name, place in c.bases.items()}
        return flat({**shared, "bases": bases, "execute": dict(c.execute), "ways": ways, "arms": arms})


def _weights(place: str) -> str:
    """Hash of a folder's weights; "" for a name on the Hub."""
    file = Path(place) / WEIGHTS
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def make_plan(config: StudyConfig) -> Plan:
    """Reads every arm's recipe as the trainer will, counts what a step costs and how many steps there are.

    Raises:
        StudyError: a base is not there, or an arm's settings are refused; names it and says why.
    """
    for name, place in config.bases.items():
        try:
            CheckpointFiles(packaged(place)).need("config.json")
        except CheckpointError as error:
            raise StudyError(f"bases.{name}: {error}") from error
    plans = {arm.name: _planned(arm, config) for arm in config.arms if not arm.passes_of}
    for arm in config.arms:
        if arm.passes_of:
            same = plans[arm.name.removesuffix(EQUAL_PASSES)]
            assert same.cost is not None  # only trained arms are trained again
            steps = steps_for(plans[arm.passes_of].passes / same.batch, same.cost)
            plans[arm.name] = replace(same, arm=arm, steps=steps)
    return Plan(config, tuple(plans[arm.name] for arm in config.arms))


def _planned(arm: Arm, config: StudyConfig) -> ArmPlan:
    if not arm.recipe:
        return ArmPlan(arm)
    base = packaged(config.bases[arm.base])
    given = {**arm.settings, "policy.pretrained_path": base}
    try:
        parsed = parse_recipe(arm.recipe, [f"{name}={_text(value)}" for name, value in given.items()])
    except RecipeError as error:
        raise StudyError(f"arms.{arm.name}: {error}") from error
    policy: Any = parsed.policy
    objective = policy.make_objective()
    # What the run itself sets, and what changes no number.
    own = ("steps", "seed", "output_dir", "job_name", "num_workers", "log_freq", "save_freq", "env_eval_freq")
    recipe = {name: value for name, value in flat(written(arm.recipe)).items() if name not in own}
    named = {name: value for name, value in recipe.items() if not name.startswith("dataset.")}
    named.pop("policy.pretrained_path", None)
    named.pop("policy.scheduler_decay_steps", None)
    in_effect = flat({"objective": asdict(objective.config)})
    settings = {**named, **dict(arm.settings), **in_effect}
    return ArmPlan(
        arm, arm.steps, step_cost(objective), parsed.batch_size, policy.objective, settings, policy
    )


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
