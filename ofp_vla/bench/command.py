"""What `ofp-vla bench` does: measures, writes page and numbers, prints the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ofp_vla.bench.page import write_page
from ofp_vla.bench.rows import FILE, Results, measured
from ofp_vla.bench.run import run
from ofp_vla.bench.settings import BenchSettings
from ofp_vla.bench.tables import markdown, remarks, terminal
from ofp_vla.policies.checkpoint import refuse_missing

WIDTH = 120  # of tables in a file


def run_bench(
    *,
    checkpoint: str,
    size: str,
    parts: Sequence[str],
    batches: Sequence[int],
    dtype: str | None,
    device: str,
    seconds: float,
    output: Path,
    compile_mode: str,
    only: Sequence[str],
    command: str,
) -> dict[str, Any]:
    """Runs a benchmark, prints its progress and its tables, and returns a summary as JSON values.

    Raises:
        BenchError: settings that mean nothing, or an output folder with results of something else.
        DeviceError: the device is not there.
    """
    if device:
        refuse_missing(device)
    settings = BenchSettings(
        checkpoint=checkpoint,
        size=size,
        parts=tuple(parts),
        batches=tuple(batches),
        dtype=dtype,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        seconds=seconds,
        output=output,
        compile_mode=compile_mode,
        only=tuple(only),
    )
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    try:
        results = run(settings, command, lambda line: console.print(line, markup=False))
    finally:  # also of what an interrupted run has measured
        if (output / FILE).exists():
            page = write_page(output, Results.read(output / FILE))
    for table in terminal(results):
        console.print(table)
    for line in remarks(results):
        console.print(line, markup=False)
    console.print(f"{page}", markup=False)
    return summary(results, output)


def show_bench(path: Path) -> str:
    """The tables of a `bench.json`, or of the folder that holds it, as Markdown."""
    return markdown(Results.read(path / FILE if path.is_dir() else path))


def summary(results: Results, output: Path) -> dict[str, Any]:
    """A few lines' worth of JSON: where the rest is, and every median."""
    states = [row.status for row in results.rows]
    return {
        "benchmark": "bench",
        "output": str(output / FILE),
        "rows": {state: states.count(state) for state in sorted(set(states))},
        "p50_ms": {
            f"{row.part}: {row.name}, batch {row.batch}": round(row.p50_ms or 0, 3)
            for row in measured(results.rows)
        },
    }
