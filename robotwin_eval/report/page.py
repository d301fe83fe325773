"""Writes the report: one HTML file that needs nothing else, and its numbers as JSON beside it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from robotwin_eval.report import comparisons, sections
from robotwin_eval.report.data import ReportData
from robotwin_eval.report.markup import Captions, escape

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

SECTIONS: tuple[Callable[[ReportData, Captions], str], ...] = (
    sections.header,
    comparisons.success,
    comparisons.paired,
    comparisons.modes,
    comparisons.latency,
    sections.films,
    sections.curves,
    sections.limits,
    sections.provenance,
    sections.footer,
)


def render_page(data: ReportData) -> str:
    """Return the page as HTML with style, charts and pictures inside. Sections without data are left out."""
    captions = Captions()
    body = "\n".join(part for section in SECTIONS if (part := section(data, captions)))
    style = resources.files(__package__ or __name__).joinpath("page.css").read_text(encoding="utf-8")
    return PAGE.substitute(title=escape(data.title), style=style, body=body)


def _numbers(data: ReportData) -> dict[str, Any]:
    """Return the report as JSON values, films without their pictures."""
    numbers = dataclasses.asdict(data)
    for film in numbers["films"]:
        del film["strip"], film["animation"]
    return numbers


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such numbers
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _replace(path: Path, content: str) -> None:
    """Write under a temporary name in the same folder and rename it, so no reader sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_report(path: str | os.PathLike[str], data: ReportData) -> Path:
    """Write the page to ``path`` and its numbers to the same name ending in ``.json``.

    Args:
        path: The HTML file; its folder is made where missing.
        data: From :func:`~robotwin_eval.report.data.build_report_data`.

    Returns:
        The path of the page.

    Raises:
        ValueError: ``path`` ends in ``.json``, where the numbers go.
    """
    path = Path(path)
    if path.suffix == ".json":
        raise ValueError(f"{path}: the page needs another suffix, such as .html; its numbers go to .json")
    path.parent.mkdir(parents=True, exist_ok=True)
    page = render_page(data)
    numbers = json.dumps(_plain(_numbers(data)), ensure_ascii=False, indent=1, allow_nan=False)
    _replace(path.with_suffix(".json"), numbers + "\n")
    _replace(path, page)
    return path
