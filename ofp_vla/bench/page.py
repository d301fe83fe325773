"""The page of a benchmark, one HTML file that needs nothing else, beside its `bench.json`."""

from __future__ import annotations

import datetime
from pathlib import Path

from ofp_vla.bench import acting, training
from ofp_vla.bench.rows import Results, Row, measured
from ofp_vla.bench.tables import COLUMNS, TITLES, UNITS, cells, count_tables, digits, machine_words, remarks
from robotwin_eval.files import replace_file
from robotwin_eval.report import charts
from robotwin_eval.report.charts import Axis, RowChart, nice_ticks, row_chart
from robotwin_eval.report.page import render_template
from robotwin_eval.runs.rates import Interval

PAGE = "bench.html"
_LEROBOT, _OURS, _OFF, _OTHER = 0, 1, 2, 3  # palette


def write_page(folder: Path, results: Results) -> Path:
    """Writes `bench.html` into a folder, whole or not at all; returns its path."""
    page = render_template(
        "bench.html",
        "ofp_vla.bench",
        results=results,
        place=machine_words(results.provenance),
        headline=headline(results),
        pictures=list(pictures(results)),
        tables=[(title, UNITS[part], measured(results.of(part))) for part, title in TITLES.items()],
        columns=COLUMNS,
        cells=cells,
        counted=count_tables(results),
        remarks=remarks(results),
        data={"provenance": results.provenance, "excluded": ()},
        created=datetime.date.today().isoformat(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    return replace_file(folder / PAGE, page)


def headline(results: Results) -> str:
    """Both comparisons beside each other: against LeRobot's ten steps, and ours in ten steps against one."""
    found = {row.name: row for row in measured(results.of(acting.PART)) if row.batch == 1}
    one, ten, stock = (found.get(name) for name in (acting.ONE, acting.TEN, acting.LEROBOT))
    if one is None or not one.p50_ms:
        return "No chunk of one step was measured at batch 1."
    text = f"A chunk in one step takes {digits(one.p50_ms)} ms"
    for other, name in ((stock, "LeRobot's ten steps"), (ten, "our own ten steps")):
        if other is not None and other.p50_ms:
            text += f", {other.p50_ms / one.p50_ms:.1f} times less than {name} ({digits(other.p50_ms)} ms)"
    if one.over_floor:
        text += f", and {one.over_floor:.1f} times what this machine allows at best"
    return f"{text}. Medians at batch 1."


def pictures(results: Results) -> list[tuple[str, RowChart]]:
    """A chart of milliseconds for each part and batch that has measured rows, with its title."""
    found = []
    for part, title in TITLES.items():
        rows = measured(results.of(part))
        for batch in dict.fromkeys(row.batch for row in rows):
            shown = [row for row in rows if row.batch == batch]
            found.append((f"{title}, batch {batch}", _chart(shown)))
    return found


def _chart(rows: list[Row]) -> RowChart:
    axis = Axis(0.0, 1.02 * max(row.p99_ms or row.p50_ms or 0.0 for row in rows))
    bars = [
        charts.Row(
            row.name,
            _colour(row),
            Interval(row.p50_ms or 0.0, row.p50_ms or 0.0, row.p99_ms or row.p50_ms or 0.0),
            f"{digits(row.p50_ms)} ms",
            f"floor {digits(row.floor_ms)}" if row.floor_ms else "",
        )
        for row in rows
    ]
    return row_chart([("", bars)], axis, axis.ticks(nice_ticks(0.0, axis.high, 6)))


def _colour(row: Row) -> int:
    if row.name.startswith("LeRobot"):
        return _LEROBOT
    if row.name.endswith("engine=off") or row.name == training.FLOW:
        return _OFF
    plain = row.part != training.PART or row.name == training.OFP
    return _OURS if plain else _OTHER
