"""Pictures of the benchmarks' JSON: PNG files for light and dark pages."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

#: A benchmark's figures in the form of its JSON.
Report = Mapping[str, Any]

_WIDTH_IN, _DPI, _COLOURS = 9.0, 110, 48
#: Inches of a bar with the gap below it, and of the frame above and below all bars.
_BAR_IN, _FRAME_IN = 0.3, 0.85


@dataclass(frozen=True)
class Bar:
    """One contestant and its value; `ours` are drawn in colour."""

    label: str
    value: float
    note: str = ""
    ours: bool = True

    @property
    def words(self) -> str:
        shown = f"{self.value:,.0f}" if self.value >= 100 else f"{self.value:.1f}"
        return f"{shown} ({self.note})" if self.note else shown


@dataclass(frozen=True)
class Panel:
    """Bars of one unit under a title."""

    title: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Chart:
    """Panels side by side that share their bars' labels."""

    title: str
    panels: Sequence[Panel]


class Pictures(NamedTuple):
    """The files of one chart."""

    light: Path
    dark: Path


@dataclass(frozen=True)
class _Theme:
    ink: str
    faint: str
    ours: str
    others: str
    page: str


_THEMES = {
    "light": _Theme("#1f2328", "#d1d9e0", "#0969da", "#9aa4af", "#ffffff"),
    "dark": _Theme("#e6edf3", "#3d444d", "#4493f8", "#6e7681", "#0d1117"),
}


def charts_of(name: str, report: Report) -> dict[str, Chart]:
    """Return a benchmark's charts by the pictures' names; most benchmarks have no chart."""
    makers: dict[str, dict[str, Callable[[Report], Chart]]] = {
        "throughput": {"throughput": throughput},
        "peers": {"peers": peers, "latency": latency},
    }
    return {picture: make(report) for picture, make in makers.get(name, {}).items()}


def throughput(report: Report) -> Chart:
    """Compare the raw engine and the path through the queue with one call of the library."""
    raw, remote = report["tables"]
    panels = []
    for name in ("short", "mixed"):
        first, *bars = _bars(raw, f"{name} texts/s", with_ratio=True)
        # Both tables contain the library's rate.
        bars += _bars(remote, f"{name} texts/s", with_ratio=True)[1:]
        bars = [replace(bar, ours=True) for bar in bars if not bar.label.startswith("encoder")]
        panels.append(Panel(f"{name} texts a second", [first, *bars]))
    return Chart("Texts a second, and how many times the rate of the library", panels)


def peers(report: Report) -> Chart:
    """Return the chart of the first shape, the only one with all servers."""
    table = report["tables"][0]
    panels = [
        Panel(f"{name} texts a second", _bars(table, f"{name} texts/s", with_ratio=True))
        for name in ("short", "mixed")
    ]
    ratio = table["columns"][2].removeprefix("× ")
    return Chart(f"{table['title']}, and how many times the rate of {ratio}", panels)


def latency(report: Report) -> Chart:
    """Return the chart of the last table: one text at a time."""
    table = report["tables"][-1]
    panels = [Panel(f"{name}, milliseconds", _bars(table, name)) for name in ("p50", "p95")]
    return Chart("One short text at a time, idle system", panels)


def draw(chart: Chart, path: Path) -> Pictures:
    """Write two files: `path` with `-light` and with `-dark` before its suffix."""
    return Pictures(*(_drawn(chart, path, name, theme) for name, theme in _THEMES.items()))


def _drawn(chart: Chart, path: Path, name: str, theme: _Theme) -> Path:
    file = path.with_name(f"{path.stem}-{name}{path.suffix}")
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = io.BytesIO()
    _figure(chart, theme).savefig(pixels, dpi=_DPI)
    # A third of the size, without a visible difference.
    with Image.open(pixels) as image:
        image.convert("RGB").quantize(_COLOURS).save(file, optimize=True)
    return file


def _bars(table: Mapping[str, Any], column: str, *, with_ratio: bool = False) -> list[Bar]:
    """Return one bar for each row; the ratio is in the next column."""
    at = table["columns"].index(column)
    return [
        Bar(
            row[0],
            row[at],
            f"{row[at + 1]:.2f} ×" if with_ratio else "",
            ours=row[0].startswith("embedq"),
        )
        for row in table["rows"]
    ]


def _figure(chart: Chart, theme: _Theme) -> Figure:
    bars = max(len(panel.bars) for panel in chart.panels)
    figure = Figure(
        figsize=(_WIDTH_IN, _FRAME_IN + _BAR_IN * bars),
        facecolor=theme.page,
        layout="constrained",
    )
    figure.suptitle(chart.title, color=theme.ink, fontsize=12, x=0.01, ha="left")
    places: Iterable[Axes] = figure.subplots(1, len(chart.panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(places, chart.panels, strict=True):
        _draw(axes, panel, theme)
    return figure


def _draw(axes: Axes, panel: Panel, theme: _Theme) -> None:
    axes.set_facecolor(theme.page)
    axes.set_title(panel.title, color=theme.ink, fontsize=10, loc="left")
    drawn = axes.barh(
        [bar.label for bar in panel.bars],
        [bar.value for bar in panel.bars],
        color=[theme.ours if bar.ours else theme.others for bar in panel.bars],
        height=0.72,
    )
    axes.bar_label(drawn, [bar.words for bar in panel.bars], padding=4, color=theme.ink, fontsize=9)
    axes.set_xlim(0, max(bar.value for bar in panel.bars) * 1.35)
    axes.set_ylim(len(panel.bars) - 0.5, -0.5)
    axes.xaxis.set_visible(False)
    axes.tick_params(axis="y", length=0, colors=theme.ink, labelsize=9)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(theme.faint)
