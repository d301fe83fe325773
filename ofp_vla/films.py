"""Films of episodes on disk, one .npz a film, so that a resumed evaluation still has them for its report."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from robotwin_eval.rollout import Film


def save_film(folder: Path, film: Film) -> None:
    """Writes `film` under a name that only its policy, task and seed decide; an older one is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(repr((film.policy, film.task, film.seed)).encode()).hexdigest()[:16]
    temporary = folder / f"{name}.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(
            file,
            frames=np.stack(film.frames),
            policy=film.policy,
            task=film.task,
            seed=film.seed,
            success=film.success,
            hz=film.hz,
        )
    os.replace(temporary, folder / f"{name}.npz")


def load_films(folder: Path) -> list[Film]:
    """All films of `folder`, sorted by task, seed and policy; none where it does not exist."""
    films = []
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as data:
            films.append(
                Film(
                    str(data["policy"]),
                    str(data["task"]),
                    int(data["seed"]),
                    bool(data["success"]),
                    float(data["hz"]),
                    tuple(data["frames"]),
                )
            )
    return sorted(films, key=lambda film: (film.task, film.seed, film.policy))
