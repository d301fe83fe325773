"""The episodes of an evaluation, fixed in a file beforehand: seeds that the scripted expert solves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from robotwin_eval.rollout import Episode
from robotwin_eval.sim.base import Simulator
from robotwin_eval.sim.seeds import evaluation_start, solvable_seeds

SPLITS = ("seen", "unseen")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name and renames it, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def plan_episodes(
    path: Path,
    tasks: Sequence[str],
    count: int,
    make_sim: Callable[[], Simulator],
    *,
    block: int = 0,
    split: str = "seen",
) -> dict[str, list[Episode]]:
    """The first `count` solvable episodes of each task, from the manifest at `path`, which grows as needed.

    The manifest holds `{"start": first seed tried, "split": ..., "tasks": {task: {"accepted": [seeds],
    "skipped": {seed: reason}}}}`. Seeds are walked in order, so a longer evaluation contains a shorter one.

    Args:
        path: the JSON file; made where missing.
        tasks: task names.
        count: episodes of each task.
        make_sim: makes the simulator that the expert runs in.
        block: block of 100000 seeds; 0 starts at 100000, as RoboTwin's evaluation does.
        split: instructions, "seen" or "unseen".

    Raises:
        ValueError: an unknown task or split, or a manifest of another block or split.
        RuntimeError: the expert solves no more seeds.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {list(SPLITS)}, got {split!r}")
    start = evaluation_start(block)
    manifest: dict[str, Any] = {"start": start, "split": split, "tasks": {}}
    if path.exists():
        manifest = read_manifest(path)
        for name, wanted in (("start", start), ("split", split)):
            if manifest.get(name) != wanted:
                raise ValueError(
                    f"{path}: {name} is {manifest.get(name)!r}, this evaluation has {wanted!r}: "
                    f"choose another folder"
                )
    sim = make_sim()
    try:
        for task in tasks:
            found = manifest["tasks"].setdefault(task, {"accepted": [], "skipped": {}})
            if len(found["accepted"]) < count:
                _extend(sim, task, count, start, found)
                write_json(path, manifest)
        return {
            task: [
                Episode(task, seed, sim.instruction(task, seed, split))
                for seed in manifest["tasks"][task]["accepted"][:count]
            ]
            for task in tasks
        }
    finally:
        sim.close()


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads a manifest that `plan_episodes` wrote.

    Raises:
        ValueError: The file is not a manifest.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it to choose the seeds again") from error
    if not isinstance(manifest, dict) or not {"start", "split", "tasks"} <= manifest.keys():
        raise ValueError(f"{path}: not a manifest of seeds; remove it to choose them again")
    return manifest


def _extend(sim: Simulator, task: str, count: int, start: int, found: dict[str, Any]) -> None:
    missing = count - len(found["accepted"])
    tried = [start - 1, *found["accepted"], *(int(seed) for seed in found["skipped"])]
    with tqdm(total=1, desc=f"{task}: choosing {missing} seeds", disable=None, leave=False) as bar:
        walk = solvable_seeds(sim, task, missing, max(tried) + 1)
        bar.update()
    found["accepted"] += list(walk.accepted)
    found["skipped"] |= {str(seed): reason for seed, reason in walk.skipped.items()}
