"""Evaluates checkpoints in the embedded simulators: ways to sample, on the same seeds, noise and sentences.

Episodes use the "seen" sentences unless told otherwise: the tiny base and its tokenizer learned those only,
so "unseen" ones measure its language, not the sampling that is compared here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from ofp_vla.films import load_films, save_film
from ofp_vla.policies.checkpoint import LoadedPolicy, load_policy
from ofp_vla.provenance import versions
from ofp_vla.runtime.latency import measure_latency
from ofp_vla.runtime.local_policy import LocalPolicy
from ofp_vla.seed_manifest import plan_episodes
from ofp_vla.summary import show_summary
from robotwin_eval.report import build_report_data, write_report
from robotwin_eval.report.data import ReportData
from robotwin_eval.results import EpisodeResult, ResultsLog, read_results
from robotwin_eval.rollout import Episode, run_episodes
from robotwin_eval.sim.aloha import AlohaSuite
from robotwin_eval.sim.base import ACTION_HIGH, ACTION_LOW, Simulator

SEEDS = "seeds.json"
RESULTS = "results.jsonl"
FILMS = "films"
IMAGE_SIZE = 64
# Fields of a policy's configuration that decide its actions besides the weights and the sampling.
DECIDING = ("inference_role", "warm_start_time", "action_low", "action_high", "action_margin", "rebase_scale")


@dataclass(frozen=True)
class Arm:
    """One way to act with a checkpoint.

    Attributes:
        name: what results are filed under.
        label: what a reader sees.
        checkpoint: folder or Hub name.
        steps: network evaluations a chunk; the sampler's default where None.
        sampler: "interval" or "host".
        warm: whether each chunk starts from the one before.
    """

    name: str
    label: str
    checkpoint: str
    steps: int | None = 1
    sampler: str = "interval"
    warm: bool = False

    def policy(self, loaded: LoadedPolicy) -> LocalPolicy:
        """The arm over weights that other arms may share."""
        return LocalPolicy(loaded, self.name, steps=self.steps, sampler=self.sampler, warm=self.warm)


class Checkpoints:
    """Loads each checkpoint once."""

    def __init__(self) -> None:
        self._loaded: dict[str, LoadedPolicy] = {}

    def get(self, checkpoint: str) -> LoadedPolicy:
        """The loaded checkpoint, with its weights in float32 or as its configuration says."""
        if checkpoint not in self._loaded:
            self._loaded[checkpoint] = load_policy(checkpoint)
        return self._loaded[checkpoint]


def fingerprint(loaded: LoadedPolicy, policy: LocalPolicy) -> str:
    """`<hash>-<sampler><steps>-<warm|cold>`, the hash over all tensors and settings that decide actions."""
    digest = hashlib.sha256()
    tensors: dict[str, Tensor] = {f"policy.{k}": v for k, v in loaded.policy.state_dict().items()}
    for name, pipeline in (("pre", loaded.preprocess), ("post", loaded.postprocess)):
        for index, step in enumerate(pipeline.steps):
            tensors |= {f"{name}.{index}.{k}": v for k, v in step.state_dict().items()}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    config = loaded.policy.config
    for name in DECIDING:
        digest.update(f"{name}={getattr(config, name)!r}\n".encode())
    start = "warm" if policy.warm else "cold"
    return f"{digest.hexdigest()[:12]}-{policy.sampler}{policy.steps}-{start}"


def evaluate_arms(
    arms: Sequence[Arm],
    tasks: Sequence[str],
    episodes: int,
    output: str | Path,
    *,
    run_seed: int = 0,
    execute: int | None = None,
    slots: int = 8,
    seed_block: int = 0,
    split: str = "seen",
    films: int = 0,
    checkpoints: Checkpoints | None = None,
) -> list[EpisodeResult]:
    """Runs every arm on the same solvable held-out episodes; a second call goes on where a first one stopped.

    Writes `seeds.json` (the episodes, chosen once), `results.jsonl` (one line an episode) and `films/`.

    Args:
        arms: policies to compare, with different names.
        tasks: tasks of the embedded suite.
        episodes: episodes of each task.
        output: folder.
        run_seed: seed of the sampling noise.
        execute: actions to execute of each chunk; all of them where None.
        slots: simulators in lock step, the largest batch of the policy.
        seed_block: which block of 100000 seeds; 0 starts at 100000.
        split: instructions. "seen" is the default because the tiny base was trained on those sentences only.
        films: episodes of each task to film, the first ones.
        checkpoints: loaded policies to share with the caller.

    Returns:
        Results of all arms, in the order of arms, tasks and seeds.

    Raises:
        ValueError: Two arms of one name, an unknown task, or a folder that holds another evaluation.
        SimulatorError: A simulator failed twice on one episode.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"arms {names}: two have the same name")
    output = Path(output)
    checkpoints = checkpoints or Checkpoints()
    make_sim = partial(AlohaSuite, image_size=IMAGE_SIZE)
    plan = plan_episodes(output / SEEDS, tasks, episodes, make_sim, block=seed_block, split=split)
    everything = [episode for task in tasks for episode in plan[task]]
    filmed = [episode for task in tasks for episode in plan[task][:films]]
    for arm in arms:
        loaded = checkpoints.get(arm.checkpoint)
        _run_arm(
            arm,
            loaded,
            everything,
            filmed,
            output,
            make_sim,
            run_seed=run_seed,
            execute=execute,
            slots=slots,
        )
    found = {result.key: result for result in read_results(output / RESULTS) if result.counted}
    return [found[(arm.name, episode.task, episode.seed)] for arm in arms for episode in everything]


def _run_arm(
    arm: Arm,
    loaded: LoadedPolicy,
    episodes: Sequence[Episode],
    filmed: Sequence[Episode],
    output: Path,
    make_sim: Callable[[], Simulator],
    *,
    run_seed: int,
    execute: int | None,
    slots: int,
) -> None:
    policy = arm.policy(loaded)
    mark = fingerprint(loaded, policy)
    log = ResultsLog(output / RESULTS, policy=arm.name, checkpoint=mark, run_seed=run_seed)
    waiting = log.remaining(episodes)
    run: Callable[..., list[EpisodeResult]] = partial(
        run_episodes,
        make_sim,
        policy,
        run_seed=run_seed,
        execute=execute,
        limits=(ACTION_LOW, ACTION_HIGH),
        on_film=partial(save_film, output / FILMS),
        checkpoint=mark,
        versions=versions(),
    )
    done = solved = 0
    with tqdm(total=len(waiting), desc=arm.label, unit="episode", disable=None) as bar:

        def keep(result: EpisodeResult) -> None:
            nonlocal done, solved
            log.append(result)
            done, solved = done + result.counted, solved + result.success
            bar.update()
            bar.set_postfix_str(f"success {solved}/{done}")

        run(waiting, slots=slots, record=[e for e in filmed if e in waiting], on_result=keep)
    # A run that was killed between a result and its film lacks the film: show that episode once more.
    have = {(film.policy, film.task, film.seed) for film in load_films(output / FILMS)}
    missing = [e for e in filmed if (arm.name, e.task, e.seed) not in have]
    run(missing, slots=max(1, len(missing)), record=missing)


def arm_latencies(
    arms: Iterable[Arm], task: str, checkpoints: Checkpoints, repeats: int = 20
) -> dict[str, list[float]]:
    """Seconds a chunk of each arm on a first view of `task`, see `measure_latency`."""
    sim = AlohaSuite(image_size=IMAGE_SIZE)
    try:
        sim.reset(task, 0)
        instruction = sim.instruction(task, 0, "seen")
        policies = [arm.policy(checkpoints.get(arm.checkpoint)) for arm in arms]
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
    steps: int | None = None,
    sampler: str = "interval",
    warm: bool = False,
    execute: int | None = None,
    output: str | Path = "outputs/eval",
    split: str = "seen",
    run_seed: int = 0,
) -> ReportData:
    """Evaluates one way to sample `checkpoint`, prints a table and writes results and a report.

    A second call with other sampling settings and the same folder adds to the same report, on the same
    episodes.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        ValueError: See `evaluate_arms`.
    """
    output, console = Path(output), Console()
    checkpoints = Checkpoints()
    draft = Arm("", "", checkpoint, steps, sampler, warm)
    nfe = draft.policy(checkpoints.get(checkpoint)).steps
    name = f"{Path(checkpoint).name}: {sampler}@{nfe} {'warm' if warm else 'cold'}"
    arm = Arm(name, name, checkpoint, nfe, sampler, warm)
    evaluate_arms(
        [arm],
        tasks,
        episodes,
        output,
        run_seed=run_seed,
        execute=execute,
        split=split,
        films=1,
        checkpoints=checkpoints,
    )
    results = read_results(output / RESULTS)
    kept = {result.policy for result in results if result.counted}
    data = build_report_data(
        results,
        labels={
            policy: policy for policy in dict.fromkeys(result.policy for result in results) if policy in kept
        },
        films=load_films(output / FILMS),
        demo_mode_shares=demonstrated_modes(tasks, range(100)),
        provenance={"Versions": versions(), "Instructions": split, "Seeds": SEEDS},
        title="Evaluation in the embedded simulators",
    )
    page = write_report(output / "report.html", data)
    show_summary(data, console)
    console.print(f"report: {page}", soft_wrap=True)
    return data
