"""Puts the tables of a benchmark into docs/performance.md, or renews those that are there.

    python benchmarks/document.py OUTPUT/bench.json     # keeps it as benchmarks/results/bench_<card>.json
    python benchmarks/document.py                       # renews every table from its kept file

A table stands between `<!-- bench FILE -->` and `<!-- /bench -->`, as `ofp-vla bench --show FILE` prints it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ofp_vla.bench.rows import Results, measured
from ofp_vla.bench.tables import machine_words, markdown
from robotwin_eval.files import replace_file

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"<!-- bench (\S+) -->\n.*?<!-- /bench -->\n", re.DOTALL)
# Newer sections stand before older ones.
_FIRST = "\n## Measured on "


def block(name: str) -> str:
    """The marked table of a kept file, by its name in benchmarks/results."""
    return f"<!-- bench {name} -->\n{markdown(Results.read(RESULTS / name))}<!-- /bench -->\n"


def renewed(page: str) -> str:
    """The page with every marked table as its file says."""
    return _BLOCK.sub(lambda found: block(found[1]), page)


def keep(source: Path) -> str:
    """Copies results under the card's name; returns the file's name."""
    facts = Results.read(source).provenance
    card = str(facts.get("Card") or "cpu")
    name = f"bench_{re.sub(r'[^a-z0-9]+', '_', card.lower()).strip('_')}.json"
    replace_file(RESULTS / name, source.read_text())
    return name


def added(page: str, name: str) -> str:
    """The page with a section for a kept file, if it has none yet."""
    if f"<!-- bench {name} -->" in page:
        return page
    title = machine_words(Results.read(RESULTS / name).provenance).partition(",")[0]
    before, mark, after = page.partition(_FIRST)
    return f"{before}\n## Measured on {title}\n\n{block(name)}{mark}{after}"


def for_recipes(results: Results) -> list[str]:
    """What the headers of recipes say of memory and time: of steps alone, without loading data."""
    lines = []
    for row in measured(results.of("training")):
        hours = [
            f"{steps:,} steps in {steps * (row.p50_ms or 0) / 3.6e6:.1f} h" for steps in (20_000, 30_000)
        ]
        numbers = f"{row.peak_gb or 0:.1f} GB, {row.per_second or 0:.0f} samples a second"
        lines.append(f"{row.name}, batch {row.batch}: {numbers}, {', '.join(hours)}")
    return lines


def main() -> None:
    """Writes docs/performance.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", help="a bench.json to keep and show")
    options = parser.parse_args()
    page = PAGE.read_text()
    if options.results is not None:
        name = keep(options.results)
        page = added(page, name)
        print("\n".join(for_recipes(Results.read(RESULTS / name))))
    replace_file(PAGE, renewed(page))


if __name__ == "__main__":
    main()
