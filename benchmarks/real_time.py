"""Success when the world moves on while the policy thinks: against the delay of a chunk, by ways to act.

    ofp-vla study main --only ofp/0        # trains the checkpoint of docs/real_time.md
    python benchmarks/real_time.py outputs/study/main/cells/ofp/0/training/run

A chunk is asked for from the view of now and comes D control steps later. Meanwhile the robot carries out
what is left of the running chunk, and then holds. Ways: ten steps of the base, one step, one step with
eight draws; each with and without continuing the running chunk. Worlds: a button that glides over the
table, and two that stand still. Same episodes and noise for all ways and delays. A second start goes on
where the first one stopped; picture and results.json are written anew after each delay. The last line
printed is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lerobot.policies.rtc.configuration_rtc import RTCConfig
from real_time_figure import Curve, Panel, draw
from rich.console import Console

from ofp_vla.embedded.evaluate import Checkpoints, Variant, evaluate_variants
from robotwin_eval.files import replace_file
from robotwin_eval.runs.loading import Run, load_run
from robotwin_eval.runs.medians import median_interval
from robotwin_eval.runs.rates import mcnemar, wilson
from robotwin_eval.runs.store import run_file
from robotwin_eval.sim.aloha.suite import CONTROL_HZ

LATENCIES = Path(__file__).with_name("latencies.json")


@dataclass(frozen=True)
class World:
    """A task, how it is replanned, and what moves in it."""

    name: str
    title: str
    task: str
    execute: int
    episodes: int
    delays: tuple[int, ...]
    fade: int  # actions over which a running chunk fades where it is continued
    settings: dict[str, float] = dataclasses.field(default_factory=dict)


WORLDS = (
    World("gliding", "A button that glides at 7 cm/s, a new chunk every 4 steps", "press_button", 4, 80,
          (0, 1, 3, 6), 4, {"glide": 0.07}),
    World("still", "Two buttons that stand still, a new chunk every 8 steps", "two_buttons", 8, 40,
          (2, 4, 8), 10),
)  # fmt: skip
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "ten": ("base, ten steps", {"sampler": "host", "steps": 10}),
    "one": ("one step", {"sampler": "interval", "steps": 1}),
    "draws": ("one step, eight draws", {"sampler": "interval", "steps": 1, "draws": 8}),
}
MEASURES = ("tip_error_mm", "jerk_ratio")


def variants(checkpoint: str, world: World, delay: int, fade: int) -> list[Variant]:
    """All ways to act at one delay, each without and with continuation."""
    found = []
    for name, (title, way) in WAYS.items():
        for warm in (False, True):
            key = f"{name}{'-continued' if warm else ''}-late{delay}"
            key += f"-fade{fade}" if warm else ""
            label = f"{title}{', continued' if warm else ''}, {delay} steps late"
            found.append(
                Variant(key, label, checkpoint, warm=warm, execute=world.execute, delay=delay, **way)
            )
    return found


def played(variant: Variant, world: World, episodes: int, folder: Path, checkpoints: Checkpoints) -> Run:
    """The run of one way at one delay; one that is finished is only read."""
    file = run_file(folder / variant.folder)
    if file.is_file():
        kept = load_run(file.parent)
        now = variant.policy(checkpoints.get(variant.checkpoint)).describe()["policy"]["fingerprint"]
        wanted = (now, variant.delay, variant.execute, world.settings.get("glide", 0.0), episodes, episodes)
        info, glide = kept.info, float(kept.info.simulator.get("glide", 0.0))
        counted = sum(row.counted for row in kept.results)
        if (info.checkpoint, info.delay, info.execute, glide, info.episodes, counted) == wanted:
            return kept
    (run,) = evaluate_variants(
        [variant],
        [world.task],
        episodes,
        folder,
        world=world.settings,
        workers=1,
        checkpoints=checkpoints,
        console=Console(file=io.StringIO()),
    )
    return run


def cell(world: World, delay: int, key: str, run: Run) -> dict[str, Any]:
    """What is kept of one way at one delay."""
    rows = sorted((row for row in run.results if row.counted), key=lambda row: row.seed)
    interval = wilson(sum(row.success for row in rows), len(rows))
    kept: dict[str, Any] = {
        "world": world.name,
        "delay": delay,
        "way": key.split("-")[0],
        "continued": "-continued" in key,
        "fade": int(key.partition("-fade")[2] or 0),
        "success": sum(row.success for row in rows),
        "episodes": len(rows),
        "low": interval.low,
        "high": interval.high,
        "steps": statistics.fmean(row.steps for row in rows),
        "errors": sum(bool(row.error) for row in rows),
        "outcomes": "".join(str(int(row.success)) for row in rows),  # by seed, the same ones everywhere
    }
    for name in MEASURES:
        values = [row.measures[name] for row in rows if name in row.measures]
        if values:
            median = median_interval(values)
            kept[name] = {
                "median": median.estimate,
                "low": median.low,
                "high": median.high,
                "of": len(values),
            }
    return kept


def paired(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exact test of every two cells of a world that share the delay, or the way to act."""
    found = []
    for reference, new in itertools.combinations(cells, 2):
        ways = [(each["way"], each["continued"], each["fade"]) for each in (reference, new)]
        if reference["world"] != new["world"]:
            continue
        if reference["delay"] != new["delay"] and ways[0] != ways[1]:
            continue
        both = list(zip(reference["outcomes"], new["outcomes"], strict=True))
        test = mcnemar(both.count(("0", "1")), both.count(("1", "0")))
        names = [f"{way}{' continued' * on}{f' over {fade}' * bool(fade)}" for way, on, fade in ways]
        found.append(
            {
                "world": new["world"],
                "reference": [names[0], reference["delay"]],
                "new": [names[1], new["delay"]],
                "gains": test.gains,
                "losses": test.losses,
                "p_two_sided": test.two_sided,
            }
        )
    return found


def picture(cells: list[dict[str, Any]]) -> str:
    """The cells as SVG: a panel a world, a line a way."""
    latencies = json.loads(LATENCIES.read_text(encoding="utf-8"))
    panels = []
    for world in WORLDS:
        own = [each for each in cells if each["world"] == world.name and each["fade"] in (0, world.fade)]
        if not own:
            continue
        curves = [
            Curve(
                f"{title}{', continued' if continued else ''}",
                colour,
                dashed=not continued,
                points=tuple(
                    (each["delay"], each["success"] / each["episodes"], each["low"], each["high"])
                    for each in sorted(own, key=lambda each: each["delay"])
                    if (each["way"], each["continued"]) == (way, continued)
                ),
            )
            for colour, (way, (title, _)) in enumerate(WAYS.items())
            for continued in (True, False)
        ]
        note = f"{own[0]['episodes']} episodes a point; a continued chunk fades over {world.fade} actions"
        panels.append(Panel(world.title, note, curves))
    return draw(panels, latencies, CONTROL_HZ)


def main() -> None:
    """Runs what is missing and writes results.json, real_time.svg and, last, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", help="of OFP on a base that acts in ten steps")
    parser.add_argument("--output", type=Path, default=Path("outputs/real_time"))
    parser.add_argument("--episodes", type=int, help="of each way at each delay")
    parser.add_argument("--delays", help="control steps, separated by commas")
    parser.add_argument(
        "--redraw", action="store_true", help="the picture alone; CHECKPOINT is a results.json"
    )
    parser.add_argument("--fade", type=int, help="actions over which a running chunk fades")
    parser.add_argument("--worlds", default=",".join(world.name for world in WORLDS))
    options = parser.parse_args()
    if unknown := set(options.worlds.split(",")) - {world.name for world in WORLDS}:
        parser.error(f"--worlds: no {', '.join(sorted(unknown))}; there are gliding and still")
    if options.redraw:
        kept = json.loads(Path(options.checkpoint).read_text(encoding="utf-8"))
        replace_file(options.output / "real_time.svg", picture(kept["cells"]))
        return
    checkpoints = Checkpoints()
    policy = checkpoints.get(options.checkpoint).policy
    cells: list[dict[str, Any]] = []
    for world in WORLDS:
        if world.name not in options.worlds.split(","):
            continue
        fade = options.fade or world.fade
        policy.config.rtc_config = RTCConfig(execution_horizon=fade)
        policy.init_rtc_processor()
        for delay in map(int, options.delays.split(",")) if options.delays else world.delays:
            for variant in variants(options.checkpoint, world, delay, fade):
                run = played(
                    variant,
                    world,
                    options.episodes or world.episodes,
                    options.output / world.name,
                    checkpoints,
                )
                cells.append(cell(world, delay, variant.name, run))
                print(
                    {name: cells[-1][name] for name in ("world", "delay", "way", "continued", "success")},
                    flush=True,
                )
            results = {
                "benchmark": "real_time",
                "control_hz": CONTROL_HZ,
                "worlds": [dataclasses.asdict(each) for each in WORLDS],
                "cells": cells,
                "paired": paired(cells),
            }
            replace_file(options.output / "results.json", json.dumps(results, indent=1) + "\n")
            replace_file(options.output / "real_time.svg", picture(cells))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
