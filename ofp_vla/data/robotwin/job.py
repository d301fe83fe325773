"""The pieces of a conversion that run in worker processes: one episode, one merge."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

from ofp_vla.data.robotwin.folders import SourceEpisode
from ofp_vla.data.robotwin.hdf5 import CAMERAS, EpisodeFile, EpisodeShape, joint_names, rgb
from ofp_vla.errors import DataError
from ofp_vla.lerobot_seams.datasets import (
    ACTION,
    IMAGES,
    STATE,
    join_datasets,
    new_dataset,
    quiet_datasets,
    store_episode,
)


@dataclass(frozen=True)
class ConversionSettings:
    """What to write.

    Attributes:
        repo_id: the dataset's name, as owner/name.
        cameras: RoboTwin's camera -> name in the dataset.
        size: (width, height) to resize to; None keeps the recorded size. RoboTwin's own conversion enlarges
            to (640, 480), which the policy's 224 pixels do not need.
        split: which sentences, "seen" or "unseen".
        seed: seed of the choice of the sentence.
        video: encode videos; False stores each picture as PNG.
        fps: frames per second that the dataset claims, a whole number; None takes what the files say.
        standard_colours: pictures that do not declare their colours hold standard ones, unlike RoboTwin's.
        robot_type: name of the robot in the dataset's metadata.
    """

    repo_id: str
    cameras: Mapping[str, str] = field(default_factory=lambda: dict(CAMERAS))
    size: tuple[int, int] | None = None
    split: str = "seen"
    seed: int = 0
    video: bool = True
    fps: int | None = None
    standard_colours: bool = False
    robot_type: str = "aloha"

    def plain(self) -> dict[str, Any]:
        """The settings as JSON values."""
        values = dataclasses.asdict(self)
        values["size"] = None if self.size is None else list(self.size)
        return values


@dataclass(frozen=True)
class EpisodeJob:
    """An episode to convert: where it is, the folder it becomes, the common settings, its instruction."""

    episode: SourceEpisode
    source: Path
    target: Path
    shape: EpisodeShape
    sentence: str
    settings: ConversionSettings


@dataclass(frozen=True)
class MergeJob:
    """Datasets to join into one, in order."""

    members: tuple[Path, ...]
    target: Path
    repo_id: str
    concatenate: bool


def convert_episode(job: EpisodeJob) -> str | None:
    """Writes the episode as a dataset of its own under a temporary name, then renames it.

    Returns:
        What is wrong with the episode, or None.
    """
    temporary = job.target.with_name(job.target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(job, temporary)
    except DataError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        return str(error).replace(f"{job.source}/", "")
    temporary.rename(job.target)
    return None


def _write(job: EpisodeJob, root: Path) -> None:
    settings, shape = job.settings, job.shape
    fps = round(shape.fps) if settings.fps is None else settings.fps
    with EpisodeFile(job.episode.path) as file:
        states, actions = file.motion()
        pictures = {camera: file.pictures(camera) for camera in settings.cameras}
    sizes = {
        name: shape.images[camera] if settings.size is None else settings.size[::-1]
        for camera, name in settings.cameras.items()
    }
    with new_dataset(
        root,
        settings.repo_id,
        fps,
        joint_names(shape.arms),
        sizes,
        robot_type=settings.robot_type,
        video=settings.video,
    ) as dataset:
        for step, (state, action) in enumerate(zip(states, actions, strict=True)):
            frame = {STATE: state, ACTION: action, "task": job.sentence}
            for camera, name in settings.cameras.items():
                where = f"{job.episode.path}: {camera}, frame {step}"
                image = rgb(pictures[camera][step], where, standard_colours=settings.standard_colours)
                frame[IMAGES + name] = image if settings.size is None else cv2.resize(image, settings.size)
            dataset.add_frame(frame)
        with _silence():
            # Workers are processes already; LeRobot would start more, one per camera.
            store_episode(dataset, parallel_encoding=False)


def merge(job: MergeJob) -> None:
    """Joins the datasets under a temporary name, then renames it."""
    temporary = job.target.with_name(job.target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with _silence():
        join_datasets(job.members, temporary, job.repo_id, concatenate=job.concatenate)
    temporary.rename(job.target)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides what LeRobot draws and prints for every episode, over our bar."""
    with quiet_datasets(), contextlib.redirect_stderr(io.StringIO()):
        yield
