"""How every figure of the project looks, and how it is written.

A function that draws a figure returns it; a notebook calls `use_style` once and hands each figure to `save_figure`,
which writes below `figures/{scale}/{notebook}/`. Figures are byte-stable: the same numbers give the same files, on any
day and whatever the user's matplotlib settings are, so that a figure can be deleted, drawn again and compared. The
colours and line styles of the methods are fixed here and nowhere else. The colours are those of Okabe and Ito, which
colour-blind readers can tell apart; line styles differ as well, for print in black and white. A figure is at most
`PAGE_WIDTH` wide, so that it is printed at its own size and no text of it is smaller than 7 pt there.
"""

import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from etpo_paper.base import paths
from etpo_paper.report.names import label
from etpo_paper.report.statistics import Interval

_COLOURS = {
    "reflection_gpt4": "#000000",
    "reflection": "#8A8A8A",
    "ppo_no_kl": "#7F6A5D",
    "ppo_kl": "#0072B2",
    "ppo_kl_memory": "#003B5C",
    "ntpo": "#B8A300",
    "poad": "#56B4E9",
    "grpo": "#7A7A00",
    "rloo": "#4B0082",
    "tbrm": "#A6761D",
    "shiq": "#1B9E77",
    "oreo": "#E7298A",
    "released": "#CC79A7",
    "etpo": "#D55E00",
    "etpo_tried": "#F0A07A",
    "etpo_memory": "#8C2D04",
    "etpo_center_memory": "#B40068",
    "etpo_no_reflection": "#E69F00",
    "etpo_action_level": "#009E73",
}
_LINES: dict[str, Any] = {
    "reflection_gpt4": ":",
    "reflection": (0, (5, 1.5)),
    "ppo_no_kl": (0, (1, 2)),
    "ppo_kl": "-.",
    "ppo_kl_memory": (0, (6, 1, 1, 1, 1, 1)),
    "ntpo": (0, (4, 1, 1, 1)),
    "poad": (0, (2, 1)),
    "grpo": (0, (3, 1)),
    "rloo": (0, (5, 1, 2, 1)),
    "tbrm": (0, (2, 1, 2, 3)),
    "shiq": (0, (5, 2, 1, 2)),
    "oreo": (0, (1, 3)),
    "released": (0, (1, 1)),
    "etpo": "-",
    "etpo_tried": (0, (2, 3)),
    "etpo_memory": (0, (6, 1, 1, 1)),
    "etpo_center_memory": (0, (9, 1.5)),
    "etpo_no_reflection": (0, (3, 1, 1, 1, 1, 1)),
    "etpo_action_level": (0, (7, 2)),
}
DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1))]  # of variants in turn, for print in black and white
MARKERS = "os^vDPX"  # of variants in turn, where lines meet
_OTHER_COLOUR = "#7B3294"
PAGE_WIDTH = 5.5  # inches, of a column of text
_CHARACTERS_AN_INCH = 17  # of a footnote, roughly
_LEAST_RANGE_OF_ENDS = 0.02
_LEAST_RANGE = 0.05  # of an axis of scores; a narrower one makes differences of no consequence look large

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "mathtext.fontset": "dejavusans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "legend.handlelength": 4.0,  # long enough for two periods of the longest dash pattern
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "figure.figsize": (PAGE_WIDTH, 3.4),
    "figure.dpi": 100,
    "pdf.fonttype": 42,  # text stays text
}
_DPI = 200


def use_style() -> None:
    """Sets the project's style after resetting whatever a user's matplotlibrc says; call it before drawing."""
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_STYLE)
    if matplotlib.get_backend().lower() not in ("agg", "inline", "module://matplotlib_inline.backend_inline"):
        plt.switch_backend("Agg")  # a pipeline needs no window system


def colour(method: str) -> str:
    """The method's colour, the same in every figure."""
    return _COLOURS.get(method, _OTHER_COLOUR)


def line_style(method: str) -> Any:
    """The method's matplotlib line style, the same in every figure."""
    return _LINES.get(method, "-")


def line(method: str) -> dict[str, Any]:
    """Keyword arguments for `Axes.plot`: colour, line style and label of a method.

    Dashed lines lie over solid ones, which would hide them where two methods have the same values.
    """
    style = line_style(method)
    return {"color": colour(method), "linestyle": style, "label": label(method), "zorder": 2.0 if style == "-" else 2.1}


def draw_curves(axes: Axes, x: np.ndarray, curves: Mapping[str, Interval], **look: Any) -> None:
    """Draws the curve of each method, with its interval as a band.

    Args:
        axes: where to draw.
        x: [points] common to all curves; curves shorter than that use its beginning.
        curves: method -> curve.
        look: more keyword arguments for `Axes.plot`.
    """
    for method, curve in curves.items():
        own = x[: len(curve.point)]
        axes.plot(own, curve.point, **look, **line(method))
        axes.fill_between(own, curve.low, curve.high, color=colour(method), alpha=0.18, linewidth=0)


def counting(curves: Mapping[str, Interval]) -> np.ndarray:
    """1, 2, ... for each point of the longest curve: numbers of environment steps or updates."""
    return np.arange(1, 1 + max((len(curve.point) for curve in curves.values()), default=0))


def show_differences(axes: Axes, curves: Mapping[str, Interval]) -> None:
    """Limits the y axis to where rising curves differ: from their lowest point after a tenth of the budget.

    The first steps of a run may all fail (reward -1); an axis that shows them leaves no room for the rest. An axis that
    would span less than 0.05 is widened to that, at the same distance on either side.
    """
    lowest = min(float(curve.point[len(curve.point) // 10]) for curve in curves.values())
    highest = max(float(curve.point[-1]) for curve in curves.values())
    margin = max(0.15 * (highest - lowest), (_LEAST_RANGE - (highest - lowest)) / 2)
    axes.set_ylim(lowest - margin, highest + margin)


def draw_ends(axes: Axes, ends: Mapping[str, Interval]) -> None:
    """Draws a number of each method as a dot with its interval, a row for each, so that none hides another.

    An x axis that would span less than 0.02 is widened to that.

    Args:
        axes: where to draw; the names of the methods become the labels of its y axis.
        ends: method -> number and interval, from top to bottom.
    """
    for row, (method, end) in enumerate(ends.items()):
        point, low, high = (float(part) for part in end)
        if np.isfinite(low):
            axes.plot([low, high], [row, row], color=colour(method), linewidth=2.4, solid_capstyle="butt")
        axes.plot([point], [row], "o", color=colour(method), markersize=5)
    low, high = axes.get_xlim()
    missing = max(0.0, _LEAST_RANGE_OF_ENDS - (high - low))
    axes.set_xlim(low - missing / 2, high + missing / 2)
    axes.set_yticks(range(len(ends)), [label(method) for method in ends])
    axes.set_ylim(len(ends) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def whole_numbers(axes: Axes) -> None:
    """Keeps the ticks of the x axis at whole numbers: there is no half of an update or step."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def panels(
    count: int, columns: int, width: float, height: float, y_label: str, extra_height: float = 0.4, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in a grid; places of the grid that are left over stay empty.

    Args:
        count: number of panels, at least 1.
        columns: panels side by side, fewer if there are fewer panels.
        width: of a panel, inches.
        height: of a panel, inches.
        y_label: label of the y axis of each row.
        extra_height: of the figure beside its panels, inches.
        shared: keyword arguments for `plt.subplots`, e.g. sharex=True.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (width * columns + 0.4, height * rows + extra_height)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, **shared)
    for axes in grid.flat[count:]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(y_label)
    return figure, list(grid.flat[:count])


def label_lowest(used: list[Axes], columns: int, x_label: str) -> None:
    """Labels the x axis of the lowest panel in each column of a grid made by `panels`."""
    for axes in used[max(0, len(used) - min(columns, len(used))) :]:
        axes.set_xlabel(x_label)


def legend_above(figure: Figure, used: Iterable[Axes]) -> None:
    """One legend above a figure for all that is drawn in some of its panels, in rows no wider than the figure."""
    entries: dict[str, Any] = {}
    for axes in used:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    for columns in range(len(entries), 0, -1):
        legend = figure.legend(
            entries.values(), entries.keys(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def footnote(figure: Figure, lines: Iterable[str]) -> None:
    """Writes small lines under a figure: what is missing, what is a stand-in, how many seeds there are.

    A line longer than the figure is wide is broken, because the saved figure is as wide as all that is drawn.
    """
    width = int(_CHARACTERS_AN_INCH * figure.get_figwidth())
    text = "\n".join(textwrap.fill(entry, width, break_on_hyphens=False) for entry in lines if entry)
    if text:
        figure.text(0.01, -0.02, text, ha="left", va="top", fontsize=7, color="#444444")


def folder(scale: str, notebook: str) -> Path:
    """The folder of a notebook's figures and tables at a scale; it is made if absent."""
    place = paths.FIGURES / scale / notebook
    place.mkdir(parents=True, exist_ok=True)
    return place


def save_figure(figure: Figure, scale: str, notebook: str, name: str) -> list[Path]:
    """Writes a figure as PNG and PDF, the same bytes for the same drawing.

    Args:
        figure: what to write; it stays open, so that a notebook still shows it.
        scale: e.g. "laptop".
        notebook: name of the notebook, e.g. "main_table".
        name: file name without ending.

    Returns:
        The two paths, PNG first.
    """
    place = folder(scale, notebook)
    png, pdf = place / f"{name}.png", place / f"{name}.pdf"
    # Dates and version strings are left out: they would change the bytes without changing the figure.
    figure.savefig(png, dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    figure.savefig(pdf, bbox_inches="tight", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return [png, pdf]
