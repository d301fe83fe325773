"""Evaluates checkpoints in the embedded simulators: ways to sample, on the same seeds, noise and sentences.

The harness is `robotwin_eval`'s: each policy is served as by `ofp-vla serve` and run by its runner. By
default, episodes use the suite's own ("official") sentences, the "seen" ones: the tiny base and its tokenizer
learned only those, so "unseen" ones measure its language, not the sampling that is compared here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ofp_vla.embedded.summary import show_summary
from ofp_vla.policies.checkpoint import LoadedPolicy, load_policy
from ofp_vla.policies.fingerprint import same_weights
from ofp_vla.serving.latency import measure_latency
from ofp_vla.serving.local_policy import LocalPolicy
from ofp_vla.serving.server import PolicyServer
from robotwin_eval.report import report_from_runs, write_report
from robotwin_eval.report.data import ReportData
from robotwin_eval.report.replanning import split_replanned
from robotwin_eval.runner.runner import VIDEOS, RunSettings, build_manifest, run
from robotwin_eval.runs.loading import Run, load_run
from robotwin_eval.runs.manifest import Manifest
from robotwin_eval.runs.outcome import require_played
from robotwin_eval.runs.store import run_file
from robotwin_eval.runs.videos import Film, read_films
from robotwin_eval.sim.aloha.robot import ACTION_HIGH, ACTION_LOW
from robotwin_eval.sim.aloha.suite import TASKS, AlohaSuite
from robotwin_eval.sim.factory import SimulatorSpec

SEEDS = "manifest.json"
IMAGE_SIZE = 64


@dataclass(frozen=True)
class Variant:
    """One way to act with a checkpoint; a field that is None is as the checkpoint says.

    Attributes:
        name: what results are filed under.
        label: what a reader sees.
        checkpoint: folder or Hub name.
        steps: network evaluations per chunk.
        sampler: "interval" or "host".
        warm: whether each chunk starts from the one before.
        draws: chunks drawn for one that is carried out.
        choose: which of them is carried out.
        doubt_steps: evaluations where they disagree.
        doubt: spread beyond which they do.
        execute: actions carried out of a chunk until the next is asked for.
        delay: control steps that each chunk comes late, see `RunSettings`.
    """

    name: str
    label: str
    checkpoint: str
    steps: int | None = None
    sampler: str | None = None
    warm: bool | None = None
    draws: int | None = None
    choose: str | None = None
    doubt_steps: int | None = None
    doubt: float | None = None
    execute: int | None = None
    delay: int | None = None

    def policy(self, loaded: LoadedPolicy) -> LocalPolicy:
        """The variant over weights that other variants may share, within the limits of the suite's robot."""
        return LocalPolicy(
            loaded,
            self.name,
            steps=self.steps,
            sampler=self.sampler,
            warm=self.warm,
            draws=self.draws,
            choose=self.choose,
            doubt_steps=self.doubt_steps,
            doubt=self.doubt,
            limits=(ACTION_LOW, ACTION_HIGH),
        )

    @property
    def folder(self) -> str:
        """Name of the folder of its run."""
        return re.sub(r"[^\w.@-]+", "-", self.name)


class Checkpoints:
    """Loads each checkpoint once, with `changes` of its configuration."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes
        self._loaded: dict[str, LoadedPolicy] = {}

    def get(self, checkpoint: str) -> LoadedPolicy:
        """The loaded checkpoint, with its weights in float32 or as its configuration says."""
        if checkpoint not in self._loaded:
            self._loaded[checkpoint] = load_policy(checkpoint, **self._changes)
        return self._loaded[checkpoint]


def evaluate_variants(
    variants: Sequence[Variant],
    tasks: Sequence[str],
    episodes: int,
    output: str | Path,
    *,
    run_seed: int = 0,
    execute: int | None = None,
    workers: int | None = None,
    seed_block: int = 0,
    split: str = "official",
    films: int = 0,
    preflight: bool = False,
    world: Mapping[str, Any] | None = None,
    checkpoints: Checkpoints | None = None,
    console: Console | None = None,
) -> list[Run]:
    """Runs every variant on the same solvable held-out episodes; a second call continues.

    Writes `manifest.json` (the episodes, chosen once) and a run's folder for each variant.

    Args:
        variants: policies to compare, with different names.
        tasks: tasks of the embedded suite.
        episodes: episodes of each task.
        output: folder.
        run_seed: seed of the sampling noise.
        execute: actions to execute of each chunk where a variant does not say; None for what the checkpoint
            says (`n_action_steps`).
        workers: simulator processes; None for one more than there are cores, at most 8.
        seed_block: which block of 100000 seeds; 0 starts at 100000.
        split: instructions, "seen", "unseen" or "official", as for `robotwin-eval run`.
        films: episodes of each task to film, the first ones.
        preflight: refuse a variant that cannot answer before its first episode, instead of letting it fail
            its episodes while the others run.
        world: further settings of `AlohaSuite`.
        checkpoints: loaded policies to share with the caller.
        console: where progress is shown; None for stderr.

    Returns:
        The runs, in the order of variants.

    Raises:
        ValueError: two variants of one name, an unknown task, or a folder that holds another evaluation.
        RunStopped: a simulator failed too often on one episode.
    """
    names = [variant.folder for variant in variants]
    if len(set(names)) < len(names):
        raise ValueError(f"variants {[variant.name for variant in variants]}: two have the same name")
    output, checkpoints = Path(output), checkpoints or Checkpoints()
    settings: dict[str, Any] = {
        "simulator": SimulatorSpec("aloha", {"image_size": IMAGE_SIZE, **(world or {})}),
        "tasks": tuple(tasks),
        "episodes": episodes,
        "seed": seed_block,
        "noise_seed": run_seed,
        "execute": execute,
        "split": split,
        "videos": films,
        "workers": workers or min(8, (os.cpu_count() or 1) + 1),
    }
    manifest = _manifest(output / SEEDS, settings, console)
    return [
        _run_variant(
            variant, checkpoints.get(variant.checkpoint), settings, manifest, output, preflight, console
        )
        for variant in variants
    ]


def _manifest(path: Path, settings: Mapping[str, Any], console: Console | None) -> Manifest:
    if path.exists():
        return Manifest.load(path)
    return build_manifest(RunSettings(**settings), path, console=console)


def _run_variant(
    variant: Variant,
    loaded: LoadedPolicy,
    settings: Mapping[str, Any],
    manifest: Manifest,
    output: Path,
    preflight: bool,
    console: Console | None,
) -> Run:
    policy = variant.policy(loaded)
    own = {"execute": variant.execute, "delay": variant.delay}
    settings = {**settings, **{name: value for name, value in own.items() if value is not None}}
    # One request per forward pass: a number in the report must not depend on which episodes ran side by side.
    with PolicyServer(
        policy, metadata=policy.describe(), batch_invariant=True, on_client=policy.client_came
    ) as server:
        return run(
            RunSettings(**settings, policy_url=server.url, policy=variant.name, label=variant.label),
            output / variant.folder,
            resume=True,
            manifest=manifest,
            preflight=preflight,
            console=console,
        )


def run_films(runs: Iterable[Run]) -> list[Film]:
    """The films of all runs, filed under their run's label."""
    return [film for run in runs for film in read_films(run.folder / VIDEOS, run.info.label)]


def variant_latencies(
    variants: Iterable[Variant], task: str, checkpoints: Checkpoints, repeats: int = 20
) -> dict[str, list[float]]:
    """Seconds per chunk of each variant on a first view of `task`, see `measure_latency`."""
    sim = AlohaSuite(image_size=IMAGE_SIZE)
    try:
        sim.reset(task, 0)
        instruction = sim.instruction(task, 0, "seen")
        policies = [variant.policy(checkpoints.get(variant.checkpoint)) for variant in variants]
        return measure_latency(policies, sim.observe, instruction, repeats)
    finally:
        sim.close()


def demonstrated_modes(tasks: Iterable[str], seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Task -> mode -> share among the scripted expert's plans for `seeds`, for tasks with several modes."""
    sim = AlohaSuite(image_size=IMAGE_SIZE)
    shares: dict[str, dict[str, float]] = {}
    try:
        for task in tasks:
            modes = [sim.plan(task, seed).mode for seed in seeds]
            names = sorted(set(modes))
            if len(names) > 1:
                shares[task] = {mode: modes.count(mode) / len(modes) for mode in names}
        return shares
    finally:
        sim.close()


def evaluate_checkpoint(
    checkpoint: str,
    *,
    tasks: Sequence[str],
    episodes: int,
    execute: int | None = None,
    delay: int | None = None,
    engine: str | None = None,
    output: str | Path = "outputs/eval",
    split: str = "official",
    run_seed: int = 0,
    **way: Any,
) -> ReportData:
    """Evaluates `checkpoint`, acting as it says, prints a table and writes results and a report.

    `way` (`steps`, `sampler`, `warm`, `draws`, ...) changes how it acts, see `Sampling.of`. Another call with
    another `way` and the same folder adds to the same report, on the same episodes; one with `execute` stands
    there beside the whole chunks of the same way. With `delay`, chunks come so many control steps late while
    the robot goes on. `engine` is `policy.engine`; None for what the checkpoint says.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ValueError: see `evaluate_variants`; also if the policy cannot answer, or no episode was played.
    """
    output, console, tasks = Path(output), Console(), tuple(tasks) or tuple(TASKS)
    checkpoints = Checkpoints() if engine is None else Checkpoints(engine=engine)
    draft = Variant("", "", checkpoint, **way)
    policy = draft.policy(checkpoints.get(checkpoint))
    title = policy.title(policy.loaded.source)
    if execute is not None and execute < policy.horizon:
        title += f", replanning after {execute}"
    if delay is not None:
        title += f", late by {delay}"
    if engine is not None:
        title += f", engine {engine}"
    name = _free_name(title, policy, output)
    variant = Variant(name, name, checkpoint, delay=delay, **way)
    evaluated = evaluate_variants(
        [variant],
        tasks,
        episodes,
        output,
        run_seed=run_seed,
        execute=execute,
        split=split,
        films=1,
        preflight=True,
        checkpoints=checkpoints,
    )
    runs = sorted(
        (load_run(folder) for folder in output.iterdir() if run_file(folder).is_file()),
        key=lambda found: found.info.created,
    )
    whole, replanned = split_replanned(runs)
    data = report_from_runs(
        whole,
        replanned=replanned,
        films=run_films(whole),
        demo_mode_shares=demonstrated_modes(tasks, range(100)),
        title="Evaluation in the embedded simulators",
    )
    page = write_report(output / "report.html", data)
    show_summary(data, console)
    console.print(f"report: {page}", soft_wrap=True)
    require_played(evaluated)
    return data


def _free_name(title: str, policy: LocalPolicy, output: Path) -> str:
    """`title`, followed by the fingerprint if `output` has a run of other weights under that name."""
    folder = output / Variant(title, title, "").folder
    if not run_file(folder).is_file():
        return title
    own = str(policy.describe()["policy"]["fingerprint"])
    return title if same_weights(load_run(folder).info.checkpoint, own) else f"{title} {own.split('-')[0]}"
