"""The picture of `real_time.py` as SVG: success against delay, a panel a world, a line a way to act."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from robotwin_eval.report.charts import Axis

WIDTH, PANEL, TOP, PLOT = 1000, 410, 92, 250
COLOURS = ("#8a8f98", "#d9730d", "#1f6feb")


@dataclass(frozen=True)
class Curve:
    """One way to act: points of (delay, rate, low, high)."""

    label: str
    colour: int
    dashed: bool
    points: Sequence[tuple[int, float, float, float]]


@dataclass(frozen=True)
class Panel:
    """One world."""

    title: str
    note: str
    curves: Sequence[Curve]


def draw(panels: Sequence[Panel], latencies: dict[str, Any], hz: float) -> str:
    """The SVG; below each axis the measured latencies lie where they fall at `hz` steps a second."""
    ways = latencies["ways"]
    height = TOP + PLOT + 62 + 18 * len(ways) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13" fill="#24292f"><rect width="{WIDTH}" height="{height}" fill="white"/>'
    ]
    x = 60.0
    for curve in panels[0].curves if panels else ():
        if not curve.dashed:
            parts += [
                _line(x, 22, x + 26, 22, COLOURS[curve.colour], 2.5),
                _text(x + 32, 26, _plain(curve.label)),
            ]
            x += 60 + 7.0 * len(_plain(curve.label))
    for dash, words in (("", "continues the running chunk"), ("5 4", "does not")):
        parts += [_line(x, 22, x + 26, 22, "#24292f", 2, dash), _text(x + 32, 26, words)]
        x += 60 + 6.6 * len(words)
    for place, panel in enumerate(panels):
        parts += _panel(panel, 62 + place * (PANEL + 86), ways, hz)
    said = f"Latencies: {latencies['hardware']} ({latencies['source']}). Bars: 95 % (Wilson)."
    parts += [_text(60, height - 12, said, size=11.5, colour="#57606a"), "</svg>\n"]
    return "\n".join(parts)


def _plain(label: str) -> str:
    return label.removesuffix(", continued")


def _panel(panel: Panel, left: float, ways: Sequence[dict[str, Any]], hz: float) -> list[str]:
    last = max(point[0] for curve in panel.curves for point in curve.points)
    x, y = Axis(-0.3, last + 0.3, left, left + PANEL), Axis(0, 1, TOP + PLOT, TOP)
    parts = [
        _text(left, TOP - 34, panel.title, weight="600"),
        _text(left, TOP - 16, panel.note, colour="#57606a"),
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line(left, y(share), left + PANEL, y(share), "#e5e8eb", 1))
        parts.append(_text(left - 8, y(share) + 4, f"{100 * share:.0f} %", anchor="end"))
    for step in range(last + 1):
        parts.append(_text(x(step), TOP + PLOT + 18, str(step), anchor="middle"))
    words = f"control steps that a chunk comes late ({1000 / hz:.0f} ms each)"
    parts.append(_text(left + PANEL / 2, TOP + PLOT + 38, words, anchor="middle"))
    for index, curve in enumerate(panel.curves):
        shift = (index - (len(panel.curves) - 1) / 2) * 2.6
        places = [(x(delay) + shift, y(rate)) for delay, rate, _, _ in curve.points]
        colour, dash = COLOURS[curve.colour], "5 4" if curve.dashed else ""
        for (at, _), (_, _, low, high) in zip(places, curve.points, strict=True):
            parts.append(_line(at, y(low), at, y(high), colour, 1, opacity=0.45))
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"'
            + (f' stroke-dasharray="{dash}"' if dash else "")
            + "/>"
        )
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in places]
    for row, way in enumerate(ways):
        steps, height = way["ms"] * hz / 1000, TOP + PLOT + 62 + 18 * row
        at = x(min(steps, last))
        parts.append(_line(at, TOP, at, height - 4, "#57606a", 1, "1 4"))
        parts.append(f'<circle cx="{at:.1f}" cy="{height - 4}" r="3" fill="#57606a"/>')
        late = math.ceil(steps)
        said = f"{way['name']}: {way['ms']:g} ms, {late} step{'s' if late > 1 else ''} late"
        parts.append(_text(at + 8, height, said, size=12))
    return parts


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: float = 13,
    colour: str = "",
    weight: str = "",
) -> str:
    more = (f' fill="{colour}"' if colour else "") + (f' font-weight="{weight}"' if weight else "")
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}"'
    return f"<text {place}{more}>{escape(words)}</text>"


def _line(
    x: float,
    y: float,
    to_x: float,
    to_y: float,
    colour: str,
    width: float,
    dash: str = "",
    opacity: float = 1,
) -> str:
    more = (f' stroke-dasharray="{dash}"' if dash else "") + (
        f' opacity="{opacity:g}"' if opacity < 1 else ""
    )
    ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"{more}/>'
