"""Views of held-out episodes: which episodes a training did not see, and frames of them as batches."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION
from torch.utils.data import DataLoader, Subset

from ofp_vla.checkpoints.files import TRAIN_CONFIG, CheckpointFiles
from ofp_vla.data.checks.source import open_dataset
from ofp_vla.errors import DataError
from ofp_vla.normalization.dimensions import dimension_names


@dataclass(frozen=True)
class Views:
    """Frames of episodes with the actions that were recorded from there on.

    Attributes:
        data: LeRobot's dataset of these episodes.
        episodes: their indices.
        frames: indices into `data`.
        joints: names of the actions.
        scale: (A,) standard deviation of each action over the dataset, in its units; 1 for one that rests.
    """

    data: LeRobotDataset
    episodes: tuple[int, ...]
    frames: tuple[int, ...]
    joints: tuple[str, ...]
    scale: np.ndarray

    def batches(self, rows: int) -> Iterator[dict[str, Any]]:
        """The frames in order, `rows` at a time, as LeRobot's trainer loads them."""
        # A generator of its own, or the loader would take a number from the global one.
        for batch in DataLoader(Subset(self.data, self.frames), rows, generator=torch.Generator()):
            cameras = [k for k in self.data.meta.camera_keys if k in batch and batch[k].dtype == torch.uint8]
            yield batch | {key: batch[key].float() / 255 for key in cameras}


def open_metadata(dataset: str) -> LeRobotDatasetMetadata:
    """Metadata of a dataset, a folder or a Hub name.

    Raises:
        DataError: there is none, or it has no actions.
    """
    root = Path(dataset) if Path(dataset).is_dir() else None
    if root is not None:
        open_dataset(dataset)  # says which file of it is missing or damaged
    try:
        meta = LeRobotDatasetMetadata(dataset if root is None else f"local/{root.name}", root=root)
    except (OSError, ValueError) as error:
        raise DataError(f"dataset {dataset!r} cannot be opened ({str(error).splitlines()[0]})") from error
    if ACTION not in meta.features:
        raise DataError(f"dataset {dataset!r} has no {ACTION!r}; a checkpoint cannot be compared with it")
    return meta


def open_views(meta: LeRobotDatasetMetadata, episodes: Sequence[int], frames: int, horizon: int) -> Views:
    """Up to `frames` frames of each episode, evenly spaced, with the `horizon` actions from there on.

    Raises:
        DataError: an episode that the dataset does not have, or none; or no statistics of its actions.
    """
    unknown = [episode for episode in episodes if not 0 <= episode < meta.total_episodes]
    if unknown or not episodes:
        raise DataError(
            f"--episodes: {unknown or 'none'} of {meta.repo_id}, which has episodes 0 to "
            f"{meta.total_episodes - 1}"
        )
    chosen = sorted(set(episodes))
    times = {ACTION: [step / meta.fps for step in range(horizon)]}
    data = LeRobotDataset(
        meta.repo_id,
        root=meta.root,
        episodes=None if len(chosen) == meta.total_episodes else chosen,
        delta_timestamps=times,
    )
    places: list[int] = []
    for episode in chosen:
        first, end = (int(meta.episodes[f"dataset_{side}_index"][episode]) for side in ("from", "to"))
        places += np.unique(np.linspace(first, end - 1, frames).round().astype(int)).tolist()
    relative = data.absolute_to_relative_idx
    kept = places if relative is None else [relative[place] for place in places]
    size = meta.features[ACTION]["shape"][0]
    names = dimension_names(meta.features[ACTION]) or tuple(str(index) for index in range(size))
    known = (meta.stats or {}).get(ACTION, {}).get("std")
    if known is None:
        raise DataError(
            f"meta/stats.json of {meta.repo_id} has no standard deviations of {ACTION}, in which distances "
            f"are shown; ofp-vla data statistics {meta.root} writes them"
        )
    deviation = np.asarray(known, dtype=np.float64)
    return Views(data, tuple(chosen), tuple(kept), names, np.where(deviation > 1e-6, deviation, 1.0))


def trained_episodes(checkpoint: str, meta: LeRobotDatasetMetadata) -> set[int] | None:
    """Episodes of the dataset that a checkpoint was trained on; None if its run says nothing of this one."""
    path = CheckpointFiles(checkpoint).get(TRAIN_CONFIG)
    run = {} if path is None else json.loads(path.read_text(encoding="utf-8")).get("dataset") or {}
    same = run.get("root") is not None and Path(run["root"]).resolve() == Path(meta.root).resolve()
    if not same and run.get("repo_id") != meta.repo_id:
        return None
    used = list(range(meta.total_episodes) if run.get("episodes") is None else run["episodes"])
    return set(used) - _split_off(used, run.get("eval_split") or 0.0, meta.episodes["tasks"])


def _split_off(used: Sequence[int], share: float, tasks: Sequence[Sequence[str]]) -> set[int]:
    """The last ceil(n * share) episodes of each task, which LeRobot's trainer holds out."""
    by_task: dict[str, list[int]] = {}
    for episode in used:
        by_task.setdefault(tasks[episode][0] if tasks[episode] else "", []).append(episode)
    return {e for n in by_task.values() if share for e in n[len(n) - math.ceil(len(n) * share) :]}


def held_out(trained: Mapping[str, set[int] | None], meta: LeRobotDatasetMetadata) -> list[int]:
    """Episodes that no checkpoint was trained on.

    Args:
        trained: checkpoint -> what `trained_episodes` says.
        meta: the dataset's metadata.

    Raises:
        DataError: no episode is left, or no checkpoint says what it was trained on.
    """
    known = [episodes for episodes in trained.values() if episodes is not None]
    if not known:
        raise DataError(
            f"none of {', '.join(trained)} says that it was trained on {meta.repo_id}, so that it is not "
            f"known which episodes are held out; name them: --episodes 40-49"
        )
    left = sorted(set(range(meta.total_episodes)).difference(*known))
    if not left:
        raise DataError(
            f"no held-out episodes: all {meta.total_episodes} of {meta.repo_id} were trained on. Record "
            f"others, or train with dataset.eval_split=0.1; --episodes 0-9 compares on those trained on"
        )
    return left
