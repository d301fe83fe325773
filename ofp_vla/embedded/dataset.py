"""Scripted demonstrations of the embedded suite as a LeRobot dataset (format v3, `LeRobotDataset`)."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ofp_vla._version import __version__
from ofp_vla.data.statistics import ACTION, STATE, checkpoint_units, exact_statistics, replace_statistics
from ofp_vla.embedded.demonstrations import EXECUTION_NOISE, Episode
from ofp_vla.embedded.demonstrators import Demonstrators, Filming
from ofp_vla.errors import CheckpointError, DataError
from ofp_vla.lerobot_seams.datasets import IMAGES, new_dataset, quiet_datasets, store_episode
from robotwin_eval.sim.aloha.robot import ACTION_NAMES, CAMERAS

SUMMARY = "demonstrations.json"
_MOST_FAILURES = 100

Statistics = dict[str, dict[str, np.ndarray]]


@dataclass
class _Written:
    """What the dataset holds of one task so far."""

    episodes: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        modes = Counter(episode["mode"] for episode in self.episodes)
        shares = {mode: number / len(self.episodes) for mode, number in sorted(modes.items())}
        return {"mode_shares": shares, "skipped_seeds": self.skipped, "episodes": self.episodes}


def write_demonstrations(
    tasks: Sequence[str],
    episodes: int | Mapping[str, int],
    output: Path,
    repo_id: str,
    seed: int = 0,
    image_size: int = 64,
    *,
    cameras: Sequence[str] = ("cam_high",),
    statistics_from: Path | None = None,
    video: bool = False,
    noise: float = EXECUTION_NOISE,
    processes: int = 0,
) -> Path:
    """Writes demonstrations of each task, the tasks taking turns.

    A frame holds `observation.images.<camera>`, `observation.state` (14,), `action` (14,) and a sentence of
    the "seen" split as its task, at 10 frames per second. `meta/stats.json` holds the exact quantiles of the
    state and the action, `demonstrations.json` the seeds and modes of the episodes and each mode's share. A
    run that is killed leaves no dataset, but perhaps a folder `.<name>-*.partial` beside it.

    Args:
        tasks: names of the tasks.
        episodes: successful episodes, one number for every task or task -> number.
        output: folder of the new dataset.
        repo_id: the dataset's name, as owner/name.
        seed: first seed of every task; seeds go up from there and stay below 100000, where evaluation begins.
        image_size: height and width of the pictures in pixels.
        cameras: cameras to record.
        statistics_from: checkpoint whose q01/q99 of state and action replace the dataset's, so that a policy
            fine-tuned from it keeps its normalisation.
        video: encode the pictures as videos instead of storing each as PNG.
        noise: see `ofp_vla.embedded.demonstrations.demonstrate`.
        processes: simulators that run ahead in their own processes while LeRobot stores, which takes longer
            than simulating; 0 for none. The dataset is the same.

    Returns:
        The dataset's folder.

    Raises:
        FileExistsError: `output` exists.
        ValueError: unknown task or camera, nothing to write, or no seeds left below 100000.
        CheckpointError: `statistics_from` holds no quantiles of state and action.
        DataError: the expert solves none of 100 seeds in a row.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists; choose another folder for the dataset, or remove it")
    counts = dict.fromkeys(tasks, episodes) if isinstance(episodes, int) else dict(episodes)
    if set(counts) != set(tasks) or not tasks or len(set(tasks)) < len(tasks) or min(counts.values()) < 1:
        raise ValueError(f"expected distinct tasks and at least 1 episode, got {list(tasks)} and {episodes}")
    unknown = sorted(set(cameras) - set(CAMERAS))
    if unknown or not cameras:
        raise ValueError(f"cameras: expected some of {list(CAMERAS)}, got {unknown or 'none'}")
    quantiles = None if statistics_from is None else normalizer_quantiles(Path(statistics_from))

    with Demonstrators(Filming(image_size, tuple(cameras), noise), processes) as demonstrators:
        for task in tasks:
            demonstrators.sim.step_limit(task)  # raises for an unknown name
        output.parent.mkdir(parents=True, exist_ok=True)
        return _write(demonstrators, counts, output, repo_id, seed, statistics_from, quantiles, video)


def _write(
    demonstrators: Demonstrators,
    counts: Mapping[str, int],
    output: Path,
    repo_id: str,
    seed: int,
    statistics_from: Path | None,
    quantiles: Statistics | None,
    video: bool,
) -> Path:
    from ofp_vla.embedded.env import FPS

    filming = demonstrators.filming
    workplace = Path(tempfile.mkdtemp(prefix=f".{output.name}-", suffix=".partial", dir=output.parent))
    try:
        root = workplace / output.name
        written = {task: _Written() for task in counts}
        walk = _interleaved(demonstrators, counts, seed, written)
        bar = tqdm(walk, "demonstrations", sum(counts.values()), disable=None)
        sizes = dict.fromkeys(filming.cameras, (filming.image_size, filming.image_size))
        with (
            new_dataset(root, repo_id, FPS, ACTION_NAMES, sizes, robot_type="aloha", video=video) as dataset,
            quiet_datasets(),
        ):
            for index, episode in enumerate(bar):
                _add(dataset, episode)
                written[episode.task].episodes.append(_entry(index, episode))
        # LeRobot's own quantiles are means of each episode's.
        exact = exact_statistics(root)
        replace_statistics(root, {key: exact[key] | (quantiles or {}).get(key, {}) for key in exact})
        settings = {
            "repo_id": repo_id,
            "first_seed": seed,
            "noise": filming.noise,
            "cameras": list(filming.cameras),
            "image_size": filming.image_size,
            "statistics_from": None if statistics_from is None else str(statistics_from),
        }
        _write_summary(root, settings, written)
        # mkdtemp makes its folder private to the user; only the folder around the dataset is.
        root.rename(output)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return output


def normalizer_quantiles(checkpoint: Path) -> Statistics:
    """q01 and q99 of `observation.state` and `action` that a checkpoint normalises by.

    Raises:
        CheckpointError: no such folder, no quantiles in it, or those of relative actions.
        DataError: they belong to the same dimensions in another order, or to another robot.
    """
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint} is not a folder with a checkpoint")
    vector = {"shape": (len(ACTION_NAMES),), "names": list(ACTION_NAMES)}
    return checkpoint_units(str(checkpoint), dict.fromkeys((STATE, ACTION), vector))


def _interleaved(
    demonstrators: Demonstrators, counts: Mapping[str, int], first_seed: int, written: dict[str, _Written]
) -> Iterator[Episode]:
    """The tasks' episodes in turns, in proportion; each task goes through its own seeds upward."""
    attempts = {task: demonstrators.attempts(task, first_seed) for task in counts}
    most = max(counts.values())
    for turn in range(most):
        for task, number in counts.items():
            if turn * number // most < (turn + 1) * number // most:
                yield _next_success(task, attempts[task], written[task].skipped)


def _next_success(task: str, attempts: Iterator[tuple[int, Episode | None]], skipped: list[int]) -> Episode:
    for seed, episode in islice(attempts, _MOST_FAILURES):
        if episode is not None:
            return episode
        skipped.append(seed)
    raise DataError(
        f"{task}: the expert solved none of {_MOST_FAILURES} seeds in a row up to {skipped[-1]}; start at "
        "another seed or reduce the noise"
    )


def _add(dataset: Any, episode: Episode) -> None:
    for step, (state, action) in enumerate(zip(episode.states, episode.actions, strict=True)):
        images = {IMAGES + name: film[step] for name, film in episode.images.items()}
        dataset.add_frame({STATE: state, ACTION: action, "task": episode.instruction, **images})
    store_episode(dataset)


def _entry(index: int, episode: Episode) -> dict[str, Any]:
    return {
        "episode_index": index,
        "seed": episode.seed,
        "mode": episode.mode,
        "instruction": episode.instruction,
        "frames": len(episode.actions),
    }


def _write_summary(root: Path, settings: dict[str, Any], written: dict[str, _Written]) -> None:
    versions = {name: version(name) for name in ("lerobot", "mujoco", "gym-aloha")}
    versions = {"lerobot_policy_ofp": __version__, **versions}
    tasks = {task: entry.summary() for task, entry in written.items()}
    record = {"versions": versions, **settings, "tasks": tasks}
    (root / SUMMARY).write_text(json.dumps(record, indent=2) + "\n")
