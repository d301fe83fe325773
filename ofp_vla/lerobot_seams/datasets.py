"""Makes datasets in LeRobot's format v3: filled frame by frame, or joined from others."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robotwin_eval.runs.videos import quiet_encoders

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."


@contextlib.contextmanager
def new_dataset(
    root: Path,
    repo_id: str,
    fps: int,
    joints: Sequence[str],
    cameras: Mapping[str, tuple[int, int]],
    *,
    robot_type: str,
    video: bool,
) -> Iterator[LeRobotDataset]:
    """Yields a dataset to add frames to; it is complete when the block ends.

    Args:
        root: its folder, which must not exist.
        repo_id: its name, as owner/name.
        fps: frames per second.
        joints: names of the state's and of the action's dimensions.
        cameras: name -> (height, width) of its RGB pictures.
        robot_type: name of the robot in the metadata.
        video: whether pictures become videos; otherwise each is stored as PNG.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    vector = {"dtype": "float32", "shape": (len(joints),), "names": list(joints)}
    features: dict[str, dict[str, Any]] = {STATE: vector, ACTION: dict(vector)}
    for camera, (height, width) in cameras.items():
        axes = {"shape": (height, width, 3), "names": ["height", "width", "channels"]}
        features[IMAGES + camera] = {"dtype": "video" if video else "image", **axes}
    dataset = LeRobotDataset.create(
        repo_id, fps, features, root=root, robot_type=robot_type, use_videos=video
    )
    try:
        yield dataset
    finally:
        # After an error too, or the dataset's own finaliser would write the folder again after its removal.
        with usual_priority():
            dataset.finalize()
    shutil.rmtree(root / "images", ignore_errors=True)  # LeRobot leaves it behind empty


def store_episode(dataset: Any, **options: Any) -> None:
    """Saves the frames that were added to a dataset as an episode; `options` are those of `save_episode`."""
    with usual_priority():
        dataset.save_episode(**options)


@contextlib.contextmanager
def usual_priority() -> Iterator[None]:
    """Gives this thread the scheduling back that it had before the block.

    SVT-AV1, by which LeRobot encodes, makes the thread that opens it a real-time one of the highest priority
    if the user is root. It stays one, as does whatever it starts, and nobody else gets that processor.
    """
    if not hasattr(os, "sched_getscheduler"):  # not on Linux
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def join_datasets(members: Sequence[Path], root: Path, repo_id: str, *, concatenate: bool) -> None:
    """Joins datasets, in order, into a new one at `root`; `concatenate` joins their videos too."""
    from lerobot.datasets.aggregate import aggregate_datasets

    aggregate_datasets(
        [repo_id] * len(members),
        repo_id,
        roots=list(members),
        aggr_root=root,
        concatenate_videos=concatenate,
    )


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hides the bars that `datasets` draws over ours for every episode, and the encoders' chatter."""
    import datasets

    quiet_encoders()
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
