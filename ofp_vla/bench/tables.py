"""A benchmark as tables: for a terminal, and as Markdown for docs/performance.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from ofp_vla.bench import training
from ofp_vla.bench.acting import LEROBOT
from ofp_vla.bench.counts import STEP_BATCH
from ofp_vla.bench.rows import MEASURED, Results, Row
from ofp_vla.bench.subjects import RANK

TITLES = {"acting": "Acting", "stages": "Stages", "training": "Training step"}
UNITS = {"acting": "chunks/s", "stages": "/s", "training": "samples/s"}
COLUMNS = ("p50 ms", "p95", "p99", "", "peak GB", "floor ms", "x floor", "cosine", "calls")


def cells(row: Row) -> list[str]:
    """The numbers of a measured row, in the order of `COLUMNS`."""
    memory = "" if row.peak_gb is None else f"{row.peak_gb:.1f}"
    floor = "" if row.floor_ms is None else f"{row.floor_ms:.2f}"
    over = "" if row.over_floor is None else f"{row.over_floor:.1f}"
    times = [digits(value) for value in (row.p50_ms, row.p95_ms, row.p99_ms)]
    rate = "" if row.per_second is None else f"{row.per_second:.1f}"
    cosine = "" if row.cosine is None else f"{row.cosine:.4f}"
    return [*times, rate, memory, floor, over, cosine, str(row.calls or "")]


def digits(value: float | None) -> str:
    """Milliseconds to three digits or so."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 20 else f"{value:.2f}"


def terminal(results: Results) -> Iterator[Table]:
    """Yields a table for each part that has rows."""
    for part, title in TITLES.items():
        rows = results.of(part)
        if not rows:
            continue
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        table.add_column("", no_wrap=True)
        table.add_column("batch", justify="right")
        for column in COLUMNS:
            table.add_column(column or UNITS[part], justify="right")
        for row in rows:
            if row.status == MEASURED:
                table.add_row(row.name, str(row.batch), *cells(row))
        yield table


def remarks(results: Results) -> list[str]:
    """What was not measured and why, and what was logged about rows that were."""
    found: dict[tuple[str, str, int], list[str]] = {}
    for row in results.rows:
        if row.reason:
            state = "" if row.status == MEASURED else f"{row.status}: "
            found.setdefault((state + row.reason, row.part, row.batch), []).append(row.name)
    return [
        f"{TITLES[part]}, batch {batch}: {'; '.join(names)}: {reason}"
        for (reason, part, batch), names in found.items()
    ] + ([f"Counts: {results.uncounted}"] if results.uncounted else [])


def markdown(results: Results) -> str:
    """Sections with a table each, as docs/performance.md has them."""
    parts = [headline(results.provenance, results.ceilings)]
    for part, title in TITLES.items():
        rows = [row for row in results.of(part) if row.status == MEASURED]
        if not rows:
            continue
        table = [[row.name, str(row.batch), *cells(row)] for row in rows]
        # A machine that does not know its memory has no column of it.
        filled = [number for number, column in enumerate(zip(*table, strict=True)) if any(column)]
        head = ["", "batch", *(name or UNITS[part] for name in COLUMNS)]
        shown = [[line[number] for number in filled] for line in (head, ["---"] * len(head), *table)]
        parts.append("\n".join([f"{title}:", "", *(_line(line) for line in shown)]))
    parts += map(counted, count_tables(results))
    told = remarks(results)
    if told:
        parts.append("\n".join(["Not measured, or remarked on:", "", *(f"- {line}" for line in told)]))
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Counted:
    """A table of counts.

    Attributes:
        title: what all of it was counted of.
        counts: name -> `Cost` as JSON.
        whole: name of the count that the others' shares are of.
        called: what that is called.
    """

    title: str
    counts: Mapping[str, Mapping[str, int]]
    whole: str
    called: str


def count_tables(results: Results) -> list[Counted]:
    """What was counted: chunks, training steps."""
    step = f"forward and backward of a training step, LoRA of rank {RANK} on the expert, batch {STEP_BATCH}"
    tables = [
        Counted("a chunk, batch 1", results.counts, LEROBOT, "LeRobot's ten steps"),
        Counted(step, results.steps, training.LEROBOT, "LeRobot's own"),
    ]
    return [table for table in tables if table.counts]


def counted(table: Counted) -> str:
    """Counts as a Markdown table."""
    whole = table.counts.get(table.whole, {})

    def cell(cost: Mapping[str, int], name: str, scale: float, form: str) -> str:
        share = f" ({cost[name] / whole[name]:.2f})" if whole.get(name) else ""
        return f"{cost[name] / scale:{form}}{share}"

    columns = (
        ("flops", 1e12, ".3f"),
        ("calls", 1, ",.0f"),
        ("weight_bytes", 1e9, ".1f"),
        ("waits", 1, ".0f"),
    )
    lines = [f"Counted, {table.title}, in brackets the share of {table.called}:", ""]
    lines += [_line(["", "TFLOP", "calls", "weights read, GB", "waits"]), _line(["---"] * 5)]
    for name, cost in table.counts.items():
        lines.append(_line([name, *(cell(cost, *column) for column in columns)]))
    return "\n".join(lines)


def headline(facts: Mapping[str, object], ceilings: Mapping[str, float]) -> str:
    """Where the numbers come from, as a paragraph."""
    versions = facts.get("Versions")
    known = versions if isinstance(versions, Mapping) else {}
    words = [f"Weights: {facts.get('Weights')}; {machine_words(facts)}"]
    words.append(
        ", ".join(f"{name} {known[name]}" for name in ("torch", "lerobot", "transformers") if name in known)
    )
    if facts.get("Commit"):
        words.append(f"commit {facts['Commit']}")
    words.append(f"{facts.get('Date')}")
    text = ". ".join(words)
    if ceilings:
        text += (
            f". Measured ceilings of the machine: copy {ceilings['copy'] / 1e12:.2f} TB/s, matrix product "
            f"{ceilings['flops'] / 1e12:.0f} TFLOP/s"
        )
    commands = facts.get("Commands")
    shown = "\n".join(f"    {line}" for line in commands) if isinstance(commands, Sequence) else ""
    return f"{textwrap.fill(f'{text}.', 120, break_long_words=False)}\n\n{shown}"


def machine_words(facts: Mapping[str, object]) -> str:
    """The card, or the processor with its load."""
    if facts.get("Card"):
        return f"one {facts['Card']}, driver {facts.get('Driver')}"
    machine = facts.get("Machine")
    processor = machine.get("Processor") if isinstance(machine, Mapping) else machine
    return f"{processor}, {facts.get('Threads')} threads, load {facts.get('Load')}"


def _line(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"
