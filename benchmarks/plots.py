"""Figures of how costs grow, drawn from the committed tables only.

* "head": milliseconds of the streamed head over the vocabulary and over positions (`benchmarks.head`).
* "rollout": seconds of a rollout over the number of sequences and over the length of the actions, with the least that
  the machine needs for it (`benchmarks.growth`).
* "update": seconds of an update over the number of rollouts and over the length of the actions (`benchmarks.update`).

A grey line of slope 1 through the last point of each curve shows what cost in proportion to size would be. The number
in a legend is the slope of log cost over log size, by least squares. If a table is missing, one line names it and the
other figures are drawn. Figures go to `figures/benchmarks`; the same tables give the same bytes.

    python -m benchmarks.plots
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from benchmarks.head import exponent
from etpo_core.errors import one_line_errors
from etpo_paper.report import plotting

TABLES = Path(__file__).parent / "tables"
COLOURS = {
    "statistics": "#0072B2",
    "policy loss": "#E69F00",
    "dueling": "#D55E00",
    "own dueling": "#009E73",
    "measured": "#D55E00",
}
DASHES = {"policy loss": plotting.DASHES[1], "own dueling": plotting.DASHES[2]}  # the curves of the two meet
MARKS = {"statistics": "o", "policy loss": "s", "dueling": "^", "own dueling": "v", "measured": "o"}


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with file.open() as opened:
        return list(csv.DictReader(opened))


def curve(axes: Axes, name: str, sizes: Sequence[float], costs: Sequence[float]) -> None:
    """Draws a measured cost over size, both logarithmic, and the line of slope 1 through its last point."""
    axes.loglog([sizes[0], sizes[-1]], [costs[-1] * sizes[0] / sizes[-1], costs[-1]], color="#AAAAAA", linewidth=1)
    label = f"{name}: slope {exponent(list(sizes), list(costs)):.2f}"
    look = {"color": COLOURS[name], "marker": MARKS[name], "linestyle": DASHES.get(name, "-")}
    axes.loglog(sizes, costs, markersize=4, label=label, **look)


def finish(axes: Axes, sizes: Sequence[int], x: str, y: str) -> None:
    """Labels the axes, and puts ticks at the sizes that were measured."""
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(sizes))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.plot([], [], color="#AAAAAA", linewidth=1, label="slope 1")
    axes.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.24), borderaxespad=0.0)


def head(rows: list[dict[str, str]]) -> Figure:
    """Cost of the head over the vocabulary and over positions."""
    figure, both = plt.subplots(1, 2, figsize=(plotting.PAGE_WIDTH, 3.6))
    # CPU time if the table has it: other work on the machine disturbs it least.
    cost = "cpu_ms_min" if "cpu_ms_min" in rows[0] else "ms_min"
    for axes, over in zip(both, ("vocabulary", "positions"), strict=True):
        of_axis = [row for row in rows if row["over"] == over]
        for name in dict.fromkeys(row["workload"] for row in of_axis):
            own = [row for row in of_axis if row["workload"] == name]
            curve(axes, name, [int(row[over]) for row in own], [float(row[cost]) for row in own])
        other = "positions" if over == "vocabulary" else "vocabulary"
        fixed = f"{int(of_axis[0][other]):,} {'tokens' if other == 'vocabulary' else 'positions'}"
        x = f"{'tokens of the vocabulary' if over == 'vocabulary' else 'positions'} ({fixed})"
        finish(axes, [int(row[over]) for row in of_axis], x, "CPU time, ms" if cost.startswith("cpu") else "time, ms")
    workloads = (
        "Statistics are KL[π‖ρ] and log π of the tokens, policy loss is the loss with its gradient, dueling is both "
        "losses of ETPO with their gradients, and own dueling is the same for a policy that has the critic's weights."
    )
    return _finished(figure, ["Each point is the fastest of several calls.", workloads])


def rollout(rows: list[dict[str, str]]) -> Figure:
    """Cost of a rollout over sequences and over length, with its limit."""
    return _pair(rows, "sequences", "length", "cpu_s", "limit_s")


def update(rows: list[dict[str, str]]) -> Figure:
    """Cost of an update over rollouts and over length."""
    return _pair(rows, "rollouts", "length", "update_cpu_s", None)


def _pair(rows: list[dict[str, str]], count: str, length: str, cost: str, limit: str | None) -> Figure:
    figure, both = plt.subplots(1, 2, figsize=(plotting.PAGE_WIDTH, 3.6))
    for axes, over, other in zip(both, (count, length), (length, count), strict=True):
        own = sorted((row for row in rows if row["over"] == over), key=lambda row: int(row[over]))
        sizes = [int(row[over]) for row in own]
        curve(axes, "measured", sizes, [float(row[cost]) for row in own])
        if limit:
            axes.loglog(sizes, [float(row[limit]) for row in own], color="black", linestyle=":", label="lower limit")
        fixed = f"{own[0][other]} {'tokens each' if over == count else count}"
        size = count if over == count else "tokens of an action"
        finish(axes, sizes, f"{size} ({fixed})", "CPU time on one thread, s")
    return _finished(
        figure, ["The dotted line is an estimate of the least time that the machine needs."] if limit else []
    )


def _finished(figure: Figure, notes: Sequence[str]) -> Figure:
    """Arranges the panels of a figure, and writes below what its lines are."""
    figure.tight_layout()
    figure.tight_layout()  # again: the legends hang relative to the height that the first call gave the panels
    meaning = (
        "Both axes are logarithmic. A slope is that of log cost over log size, by least squares; a grey line is a cost "
        "in proportion to size."
    )
    model = "The hidden size is that of SmolLM2-135M, which stands in for CodeLlama-7B."
    plotting.footnote(figure, [meaning, *notes, model])
    return figure


# Figure -> its table, the function that draws it, and the command that makes the table.
FIGURES: dict[str, tuple[str, Callable[[list[dict[str, str]]], Figure], str]] = {
    "head": ("head_growth.csv", head, "benchmarks.head --csv benchmarks/tables/head.csv"),
    "rollout": ("rollout_growth.csv", rollout, "benchmarks.growth --csv benchmarks/tables/rollout_growth.csv"),
    "update": ("update_growth.csv", update, "benchmarks.update --csv benchmarks/tables/update.csv"),
}


def main(arguments: Sequence[str] | None = None) -> list[Path]:
    """Draws the figures whose tables exist, and returns the files written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of the tables")
    chosen = parser.parse_args(arguments)
    plotting.use_style()
    written = []
    for name, (table, draw, command) in FIGURES.items():
        file = chosen.tables / table
        if not file.exists():
            print(f"{name}: no {table}; make it with `python -m {command}`")
            continue
        figure = draw(read(file))
        written += plotting.save_figure(figure, "benchmarks", ".", name)
        plt.close(figure)
        print(f"{name}: {written[-2]}, {written[-1].name}")
    return written


if __name__ == "__main__":
    with one_line_errors():
        main()
