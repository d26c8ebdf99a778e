"""
Draw the dashboards of ``deploy/grafana`` into ``docs/images``, much as Grafana would show them.

    plot_dashboards.py [CURVES [DIRECTORY]]

CURVES is ``build/monitoring.json``, which ``tests/e2e/test_monitoring.py`` keeps of a real Prometheus that scraped a
real identree through a scripted day. That day takes a minute; the windows of the queries are as many times shorter.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator

ROOT = Path(__file__).resolve().parent.parent
DASHBOARDS = ROOT / "deploy" / "grafana"
CURVES = ROOT / "build" / "monitoring.json"
IMAGES = ROOT / "docs" / "images"
PICTURES = {"identree-overview": "dashboard-overview.png", "identree-audit-health": "dashboard-audit-health.png"}

# Pixels: a column and a line of Grafana's grid on a wide screen, the gap between panels, the head of the page.
COLUMN, LINE, GAP, HEAD = 66, 38, 8, 52
COLUMNS = 24
DPI = 100
# Lines of a legend, and its rows beyond which the rest is only counted.
LEGEND_LINE = 17
MOST_ROWS = 6

BACKGROUND, PANEL, BORDER, TEXT, FAINT, GRID = "#111217", "#181b1f", "#2a2d33", "#d5d6de", "#9a9ba6", "#2a2d33"
COLORS = {
    "green": "#73bf69",
    "super-light-green": "#c8f2c2",
    "yellow": "#fade2a",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "purple": "#b877d9",
}
# Backgrounds of numbers, on which white is read.
DEEP = {"green": "#3f8f3a", "yellow": "#a07d00", "orange": "#b35f00", "red": "#c4162a", "blue": "#1f60c4"}
CLASSIC = ("#73bf69", "#fade2a", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffcb7d", "#c8f2c2", "#ff9aa6")


@dataclass(frozen=True, slots=True)
class Curve:
    """One series with its name in the legend; values are NaN where there is none."""

    name: str
    times: list[float]
    values: list[float]

    @property
    def known(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]


# -- numbers ----------------------------------------------------------------------------------------------------------
def _plain(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.2f}".rstrip("0").rstrip(".") if abs(value) >= 0.01 else f"{value:.2g}"


def _scaled(value: float, steps: Sequence[tuple[float, str]]) -> str:
    """In the greatest unit that fits; ``steps`` go down."""
    for size, name in steps:
        if abs(value) >= size:
            return f"{_plain(value / size)} {name}".rstrip()
    size, name = steps[-1]
    return f"{_plain(value / size)} {name}".rstrip()


DURATIONS = (
    *((31557600, "years"), (604800, "weeks"), (86400, "days"), (3600, "hours"), (60, "min")),
    *((1, "s"), (1e-3, "ms"), (1e-6, "µs")),
)
FORMATS: dict[str, Callable[[float], str]] = {
    "": _plain,
    "short": lambda value: _scaled(value, ((1e6, "Mil"), (1e3, "K"), (1, ""))) if abs(value) >= 1 else _plain(value),
    "ops": lambda value: f"{_plain(value)} ops/s",
    "s": lambda value: _scaled(value, DURATIONS) if value else "0 s",
    "percentunit": lambda value: f"{_plain(value * 100)}%",
    "bytes": lambda value: _scaled(value, ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))),
}


# -- what is shown ----------------------------------------------------------------------------------------------------
def curves(panel: dict[str, Any], kept: dict[str, Any], start: float) -> list[Curve]:
    """:param kept: by letter of the query, what Prometheus answered."""
    found = []
    for target in panel["targets"]:
        for series in kept.get(target["refId"], ()):
            name = re.sub(r"{{(\w+)}}", lambda m, s=series: s["metric"].get(m[1], ""), target["legendFormat"])
            times = [float(at) - start for at, _ in series["values"]]
            found.append(Curve(name, times, [float(value) for _, value in series["values"]]))
    return found


def color(panel: dict[str, Any], name: str, number: int) -> str:
    for override in panel["fieldConfig"]["overrides"]:
        matcher = override["matcher"]
        pattern = matcher["options"]
        if pattern == name or (matcher["id"] == "byRegexp" and re.search(pattern.strip("/"), name)):
            return COLORS[override["properties"][0]["value"]["fixedColor"]]
    mode = panel["fieldConfig"]["defaults"]["color"]
    return COLORS[mode["fixedColor"]] if mode["mode"] == "fixed" else CLASSIC[number % len(CLASSIC)]


def step_color(panel: dict[str, Any], value: float) -> str:
    chosen = ""
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            chosen = step["color"]
    return chosen


# -- drawing ----------------------------------------------------------------------------------------------------------
class Page:
    """:param size: width and height in pixels. Places are in pixels from the top left."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)

    def text(self, x: float, y: float, text: str, size: float = 9, **more: Any) -> None:
        options: dict[str, Any] = {"color": TEXT, "va": "center", "zorder": 3, **more}
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, **options)

    def box(self, x: float, y: float, width: float, height: float, fill: str, edge: str = BORDER) -> None:
        shape = FancyBboxPatch(
            (x, self.height - y - height),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=3",
            facecolor=fill,
            edgecolor=edge,
            linewidth=0.8,
            transform=None,
        )
        shape.set_transform(_pixels(self.figure, self.width, self.height))
        self.figure.add_artist(shape)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place, facecolor="none", zorder=2)


def _pixels(figure: Figure, width: int, height: int) -> Any:
    from matplotlib.transforms import Affine2D

    return Affine2D().scale(1 / width, 1 / height) + figure.transFigure


def draw_series(page: Page, panel: dict[str, Any], shown: list[Curve], at: tuple[float, ...], span: float) -> None:
    """Lines or stacked bars, and their table."""
    x, y, width, height = at
    unit = FORMATS[panel["fieldConfig"]["defaults"].get("unit", "")]
    rows = min(len(shown), MOST_ROWS)
    legend = (rows + 1 + (len(shown) > rows)) * LEGEND_LINE + 6
    axes = page.axes(x + 62, y + 34, width - 78, height - 34 - 28 - legend)
    colors = [color(panel, curve.name, number) for number, curve in enumerate(shown)]
    top = max((value for curve in shown for value in curve.known), default=0.0)
    if panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal":
        top = stack(axes, shown, colors)
    else:
        for curve, chosen in zip(shown, colors, strict=True):
            axes.plot(curve.times, curve.values, color=chosen, linewidth=1.5, zorder=3)
            axes.fill_between(curve.times, 0, curve.values, color=chosen, alpha=0.1, linewidth=0, zorder=2)
    axes.set_xlim(0, span)
    axes.set_ylim(0, top * 1.08 or 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: unit(value)))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.tick_params(colors=FAINT, labelsize=7.5, length=0, pad=4)
    axes.grid(color=GRID, linewidth=0.7)
    for spine in axes.spines.values():
        spine.set_visible(False)
    table(page, shown, colors, unit, (x, y + height - legend, width))


def stack(axes: Axes, shown: list[Curve], colors: list[str]) -> float:
    """Bars on top of each other; the greatest sum."""
    times = sorted({time for curve in shown for time in curve.times})
    floor = dict.fromkeys(times, 0.0)
    for curve, chosen in zip(shown, colors, strict=True):
        values = dict(zip(curve.times, curve.values, strict=True))
        heights = [value if math.isfinite(value := values.get(time, 0.0)) else 0.0 for time in times]
        width = (times[1] - times[0]) * 0.8 if len(times) > 1 else 1
        axes.bar(times, heights, width, bottom=[floor[time] for time in times], color=chosen, linewidth=0, zorder=3)
        for time, height in zip(times, heights, strict=True):
            floor[time] += height
    return max(floor.values(), default=0.0)


def table(
    page: Page, shown: list[Curve], colors: list[str], unit: Callable[[float], str], at: tuple[float, float, float]
) -> None:
    x, y, width = at
    columns = (("mean", 168), ("last", 92), ("max", 16))
    page.text(x + 14, y + 6, "Name", 7.5, color="#6e9fff")
    for head, from_right in columns:
        page.text(x + width - from_right, y + 6, head, 7.5, color="#6e9fff", ha="right")
    for number, (curve, chosen) in enumerate(zip(shown[:MOST_ROWS], colors, strict=False)):
        line = y + 6 + LEGEND_LINE * (number + 1)
        page.box(x + 14, line - 2, 14, 4, chosen, chosen)
        most = int((width - 260) / 6.2)
        page.text(x + 34, line, curve.name if len(curve.name) <= most else curve.name[: most - 1] + "…", 8)
        known = curve.known
        values = (sum(known) / len(known), known[-1], max(known)) if known else ()
        for (_, from_right), value in zip(columns, values, strict=False):
            page.text(x + width - from_right, line, unit(value), 8, ha="right")
    if len(shown) > MOST_ROWS:
        page.text(x + 34, y + 6 + LEGEND_LINE * (MOST_ROWS + 1), f"and {len(shown) - MOST_ROWS} more", 8, color=FAINT)


def draw_numbers(page: Page, panel: dict[str, Any], shown: list[Curve], at: tuple[float, ...], span: float) -> None:
    """The last value of each series on the colour of its threshold."""
    x, y, width, height = at
    unit = FORMATS[panel["fieldConfig"]["defaults"].get("unit", "")]
    each = (height - 30 - 6) / max(1, len(shown))
    for number, curve in enumerate(shown):
        top = y + 30 + number * each
        last = curve.known[-1] if curve.known else math.nan
        page.box(x + 6, top, width - 12, each - 4, DEEP[step_color(panel, last)], "none")
        if panel["options"]["graphMode"] == "area" and any(curve.known):
            spark = page.axes(x + 6, top + each * 0.45, width - 12, each * 0.55 - 4)
            spark.fill_between(curve.times, 0, curve.values, color="white", alpha=0.25, linewidth=0)
            spark.plot(curve.times, curve.values, color="white", alpha=0.6, linewidth=1)
            spark.set_xlim(0, span)
            spark.set_ylim(0, max(curve.known) * 1.1)
            spark.set_axis_off()
            spark.patch.set_alpha(0)
        middle = top + (each - 4) / 2
        value = unit(last) if math.isfinite(last) else "no data"
        if len(shown) > 1:
            page.text(x + 20, middle, curve.name, 11, color="white")
            page.text(x + width - 20, middle, value, 18, color="white", weight="bold", ha="right")
        else:
            page.text(x + width / 2, middle, value, 24, color="white", weight="bold", ha="center")


def draw(dashboard: dict[str, Any], kept: dict[str, Any], start: float, span: float) -> Figure:
    """:param kept: by panel, what Prometheus answered; :param span: seconds that the curves last."""
    panels = dashboard["panels"]
    lines = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    page = Page(COLUMNS * COLUMN + 2 * GAP, lines * LINE + HEAD + 2 * GAP)
    page.text(2 * GAP, HEAD / 2 + 2, dashboard["title"], 15, weight="bold")
    note = f"a scripted day of {span:.0f} s, as Prometheus kept it"
    page.text(page.width - 2 * GAP, HEAD / 2 + 2, note, 9, color=FAINT, ha="right")
    for panel in panels:
        place = panel["gridPos"]
        x, y = place["x"] * COLUMN + GAP, place["y"] * LINE + HEAD + GAP
        width, height = place["w"] * COLUMN - GAP, place["h"] * LINE - GAP
        if panel["type"] == "row":
            page.text(x + 6, y + height / 2, "⌄", 12, color=FAINT)
            page.text(x + 26, y + height / 2, panel["title"], 11.5, weight="bold")
            continue
        page.box(x, y, width, height, PANEL)
        page.text(x + 12, y + 17, panel["title"], 9.5, weight="bold")
        shown = curves(panel, kept.get(str(panel["id"]), {}), start)
        drawing = draw_numbers if panel["type"] == "stat" else draw_series
        drawing(page, panel, shown, (x, y, width, height), span)
    return page.figure


def main(arguments: Iterable[str]) -> int:
    given = [Path(argument) for argument in arguments]
    source, target = (*given, *(CURVES, IMAGES)[len(given) :])[:2]
    if not source.exists():
        print(f"{source} is not there; run: python -m pytest tests/e2e/test_monitoring.py", file=sys.stderr)
        return 1
    kept = json.loads(source.read_text("utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(DASHBOARDS.glob("*.json")):
        dashboard = json.loads(path.read_text("utf-8"))
        picture = target / PICTURES[dashboard["uid"]]
        figure = draw(dashboard, kept["panels"][dashboard["uid"]], kept["start"], kept["end"] - kept["start"])
        # without the version of the library and the like, so that the same curves give the same bytes
        figure.savefig(picture, dpi=DPI, facecolor=BACKGROUND, metadata={"Software": None})
        print(picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
