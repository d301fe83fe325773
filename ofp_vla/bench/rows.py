"""The rows of a benchmark and the file that keeps them, `bench.json`, written anew after every group."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ofp_vla.bench.timing import OutOfTime, Timed, one_line
from ofp_vla.errors import OFPError
from robotwin_eval.files import replace_file

FORMAT = 1
FILE = "bench.json"
MEASURED, SKIPPED, FAILED = "measured", "skipped", "failed"
# What must be the same for rows to stand in one table.
_SAME = {
    "Versions": "other versions",
    "Commit": "another commit",
    "Machine": "another machine",
    "Weights": "other weights",
}


class BenchError(OFPError, ValueError):
    """A benchmark that cannot be run or read as asked."""


@dataclass
class Row:
    """One row.

    Attributes:
        part: "acting", "stages" or "training".
        name: what was measured.
        batch: observations or samples of a call.
        dtype: the policy's type.
        status: "measured", "skipped" or "failed".
        reason: why it was not measured; else what was logged about it.
        calls: how many calls the numbers are of.
        p50_ms: median of a call; likewise 95 and 99 %.
        per_second: chunks or samples a second at the median.
        peak_gb: memory at its peak, its own weights included; None where it is not known.
        cosine: of its chunk with that of the path without the engine in float32, from the same noise.
        floor_ms: what the machine's measured ceilings allow at best, see `ofp_vla.bench.floors`.
    """

    part: str
    name: str
    batch: int
    dtype: str
    status: str = SKIPPED
    reason: str = ""
    calls: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    per_second: float | None = None
    peak_gb: float | None = None
    cosine: float | None = None
    floor_ms: float | None = None

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells it from others."""
        return self.part, self.name, self.batch, self.dtype

    @property
    def over_floor(self) -> float | None:
        """The median over the floor; None if one is not known."""
        return self.p50_ms / self.floor_ms if self.p50_ms and self.floor_ms else None

    def fail(self, error: Exception) -> None:
        """Says what ended it; too little time is nobody's failure."""
        self.status = SKIPPED if isinstance(error, OutOfTime) else FAILED
        self.reason = str(error) if isinstance(error, OutOfTime) else one_line(error)

    def take(self, timed: Timed, per_call: int, resident: int = 0) -> None:
        """Takes what was found of it; `resident` are the bytes that its subject holds between calls."""
        if timed.peak is not None:
            self.peak_gb = (timed.peak + resident) / 1e9
        if timed.error is not None:
            self.fail(timed.error)
            return
        if not timed.seconds:  # warm, but not timed yet
            return
        self.status = MEASURED
        self.calls = len(timed.seconds)
        self.p50_ms, self.p95_ms, self.p99_ms = (timed.milliseconds(q) for q in (0.5, 0.95, 0.99))
        self.per_second = 1e3 * per_call / self.p50_ms

    def describe(self) -> dict[str, Any]:
        """The fields as JSON values, with the ratio to the floor."""
        return asdict(self) | {"over_floor": self.over_floor}


@dataclass
class Results:
    """What is known: rows in the order of the plan, counts by name, the machine's ceilings.

    Attributes:
        provenance: hardware, versions, commit, date, load, commands.
        ceilings: `ofp_vla.bench.floors.Ceilings` as JSON, {} if they were not measured.
        counts: name -> `ofp_vla.counting.Cost` as JSON.
        uncounted: why counting ended early, "" if it did not.
        steps: name of a training step -> its `Cost` as JSON.
    """

    provenance: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    uncounted: str = ""
    steps: dict[str, dict[str, int]] = field(default_factory=dict)

    def row(self, part: str, name: str, batch: int, dtype: str) -> Row:
        """The row of this name; a new one, not measured yet, if there is none."""
        wanted = Row(part, name, batch, dtype)
        for row in self.rows:
            if row.key == wanted.key:
                return row
        self.rows.append(wanted)
        return wanted

    def of(self, part: str) -> list[Row]:
        """Rows of a part."""
        return [row for row in self.rows if row.part == part]

    def describe(self) -> dict[str, Any]:
        """The whole as JSON values."""
        return {
            "benchmark": "bench",
            "format": FORMAT,
            "provenance": self.provenance,
            "ceilings": self.ceilings,
            "counts": self.counts,
            "steps": self.steps,
            "uncounted": self.uncounted,
            "rows": [row.describe() for row in self.rows],
        }

    def write(self, folder: Path) -> Path:
        """Writes `bench.json` into a folder, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        return replace_file(
            folder / FILE, json.dumps(self.describe(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )

    @classmethod
    def read(cls, path: Path) -> Results:
        """Reads a file that `write` wrote.

        Raises:
            BenchError: it is none, or of another format.
        """
        try:
            content = json.loads(path.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BenchError(f"{path}: no results of ofp-vla bench can be read there ({error})") from error
        if not isinstance(content, dict) or content.get("benchmark") != "bench":
            raise BenchError(f"{path}: not a file of ofp-vla bench; name its {FILE}")
        if content.get("format") != FORMAT:
            raise BenchError(
                f"{path}: of format {content.get('format')!r}, this version reads {FORMAT}; measure again"
            )
        known = {f.name for f in fields(Row)}
        rows = [
            Row(**{name: value for name, value in row.items() if name in known}) for row in content["rows"]
        ]
        counted = content["counts"], content["uncounted"], content.get("steps", {})
        return cls(content["provenance"], rows, content["ceilings"], *counted)

    def continues(self, before: Results, folder: Path) -> None:
        """Takes over what an earlier call measured into the same folder.

        Raises:
            BenchError: it was measured elsewhere, or on something else.
        """
        for name, other in _SAME.items():
            mine, theirs = self.provenance.get(name), before.provenance.get(name)
            if mine != theirs:
                raise BenchError(
                    f"{folder / FILE} holds rows of {other} ({_short(theirs)}; here {_short(mine)}): give "
                    f"another --output"
                )
        commands = [*before.provenance.get("Commands", []), *self.provenance.get("Commands", [])]
        self.provenance["Commands"] = list(dict.fromkeys(commands))
        self.rows, self.ceilings = before.rows, before.ceilings
        self.counts, self.steps = before.counts, before.steps


def _short(value: Any) -> str:
    text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
    return text[:200] or "none"


def measured(rows: Iterable[Row]) -> list[Row]:
    """Those that have numbers."""
    return [row for row in rows if row.status == MEASURED]
