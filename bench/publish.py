"""The documentation's figures: tables, pictures and JSON, from the benchmarks' reports.

Each benchmark has its own block in `docs/benchmarks.md`, between two comments with its name, and an
entry in `docs/benchmarks/results.json`. The README also shows the first picture. The figures of a
benchmark that failed or did not run stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.charts import Chart, Pictures, charts_of, draw
from bench.report import Table, objections

ROOT = Path(__file__).resolve().parent.parent
_RESULTS = Path("benchmarks") / "results.json"
#: The benchmark of the README's picture.
_FIRST = "throughput"


def publish(reports: Mapping[str, Mapping[str, Any]], root: Path = ROOT) -> None:
    """Put the figures of some benchmarks into the documentation.

    Raises KeyError for a benchmark without a block, and ValueError for `gpu` figures that are not
    of a GPU. The JSON, the page and the README are each replaced as a whole: an interruption leaves
    none of them partly written.
    """
    if "gpu" in reports:
        found = objections(Table(**reports["gpu"]["tables"][0]))
        if found:
            raise ValueError(f"no figures of a GPU: {'; '.join(found)}")
    docs = root / "docs"
    page, readme, results = docs / "benchmarks.md", root / "README.md", docs / _RESULTS
    known = {**(json.loads(results.read_text()) if results.exists() else {}), **reports}
    results.parent.mkdir(exist_ok=True)
    pictures = {
        name: [
            (chart, draw(chart, results.with_name(f"{picture}.png")))
            for picture, chart in charts_of(name, report).items()
        ]
        for name, report in known.items()
    }
    text = page.read_text()
    for name, report in reports.items():
        shown = [_shown(chart, files, docs) for chart, files in pictures[name]]
        text = _replaced(text, name, "\n".join([*shown, markdown(report)]))
    first = [_shown(chart, files, root) for chart, files in pictures.get(_FIRST, [])]
    text_first = _replaced(readme.read_text(), "figures", "\n".join(first))
    for path, content in (
        (results, json.dumps(known, indent=1) + "\n"),
        (page, text),
        (readme, text_first),
    ):
        draft = path.with_name(f".{path.name}.new")
        draft.write_text(content)
        draft.replace(path)


def markdown(report: Mapping[str, Any]) -> str:
    """Return a benchmark's tables and the description of its machine."""
    machine = report["machine"]
    parts = []
    for fields in report["tables"]:
        table = Table(**fields)
        parts += [f"**{table.title}**", table.markdown()]
        if table.notes:
            parts.append("\n".join(f"{note}." for note in table.notes))
    where = f"{machine['date']}, {machine['cores']} of {machine['processor']}, {machine['python']}"
    # Reports of earlier versions lack both.
    for name in ("gpu", "path"):
        where += f", {machine[name]}" if name in machine else ""
    return "\n\n".join([*parts, f"*{where}; {machine['versions']}.*"])


def _shown(chart: Chart, files: Pictures, base: Path) -> str:
    """Return the chart's HTML for light and dark pages, with a description as its alt text."""
    words = "; ".join(
        f"{panel.title}: " + ", ".join(f"{bar.label} {bar.words}" for bar in panel.bars)
        for panel in chart.panels
    )
    light, dark = (file.relative_to(base).as_posix() for file in files)
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img alt="{chart.title}. {words}" src="{light}">\n'
        "</picture>\n"
    )


def _replaced(page: str, name: str, content: str) -> str:
    block = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- /{re.escape(name)} -->", re.DOTALL)
    if not block.search(page):
        raise KeyError(f"the documentation has no place for {name}")
    return block.sub(lambda _: f"<!-- {name} -->\n{content}\n<!-- /{name} -->", page)
