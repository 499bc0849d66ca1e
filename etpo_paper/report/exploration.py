"""The best program within K environment steps, as K grows: the figure and table of the notebook `exploration`.

The measure of a run is B(K) = max(r_1, ..., r_K), averaged over the seeds of a task and then over the tasks that every
method shown has run.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from etpo_paper.report import notebook, plotting, results, statistics
from etpo_paper.report.names import ADDITIONS, counted, label
from etpo_paper.report.statistics import Interval
from etpo_paper.report.tables import Table, interval_cells

METHODS = ("reflection_gpt4", "reflection", "ppo_kl", "etpo", *ADDITIONS)


@dataclass(frozen=True, eq=False)
class Exploration:
    """What the notebook shows.

    Attributes:
        curves: of each method, B(K) with its interval.
        tasks: tasks that are averaged over.
        budget: environment steps of the shortest run.
        notes: see `results.notes`.
    """

    curves: dict[str, Interval]
    tasks: list[str]
    budget: int
    notes: list[str]


def load(scale: str, generator: np.random.Generator) -> Exploration:
    """Reads the runs of a scale.

    Args:
        scale: whose runs to read.
        generator: source of the random numbers for the intervals.

    Raises:
        UserError: no method has a finished run.
    """
    steps = results.load_steps(scale)
    present = results.finished_methods(steps, METHODS)
    tasks = results.common_tasks(steps, present)
    steps = steps[steps["method"].isin(present) & steps["task"].isin(tasks)]
    best = statistics.best_so_far
    curves = statistics.aggregate_curves(steps, "step", "reward", present, tasks, generator, transform=best)
    return Exploration(curves, tasks, statistics.budget(steps), results.notes(scale, steps, METHODS))


def answer(data: Exploration) -> str:
    """The scores of the best programs after the whole budget, the highest first."""
    final = {method: float(curve.point[-1]) for method, curve in data.curves.items()}
    order = sorted(final, key=lambda method: final[method], reverse=True)
    scores = ", ".join(f"{final[method]:.3f} ({label(method)})" for method in order)
    return notebook.answer(
        f"After {data.budget} steps on {counted(len(data.tasks), 'task')} the best program scores on average {scores}.",
        data.notes,
    )


def figure(data: Exploration) -> Figure:
    """B(K) over K, the methods of the paper and this project's in panels of their own; below, B at the end of all."""
    ours = [method for method in data.curves if method in ADDITIONS]
    chosen = {"methods of the paper": [method for method in data.curves if method not in ADDITIONS]}
    if ours:
        chosen["variants with memory"] = [*(["etpo"] if "etpo" in data.curves else []), *ours]
    height = 2.8 + 0.17 * len(data.curves)
    figure = plt.figure(figsize=(plotting.PAGE_WIDTH, height))
    grid = figure.add_gridspec(2, len(chosen), height_ratios=[2.1, 0.17 * len(data.curves) + 0.1])
    used: list[Axes] = []
    for column, (title, methods) in enumerate(chosen.items()):
        axes = figure.add_subplot(grid[0, column], sharey=used[0] if used else None)
        curves = {method: data.curves[method] for method in methods}
        plotting.draw_curves(axes, plotting.counting(curves), curves)
        axes.set_xlabel("environment steps K")
        axes.set_xlim(1, data.budget)
        axes.set_title(title)
        used.append(axes)
    used[0].set_ylabel("best ROC AUC within K steps,\nmean over tasks")
    plotting.show_differences(used[0], data.curves)
    ends = figure.add_subplot(grid[1, :])
    plotting.draw_ends(ends, {m: Interval(*(part[-1] for part in curve)) for m, curve in data.curves.items()})
    ends.set_xlabel(f"best ROC AUC within {data.budget} steps, mean over tasks")
    figure.tight_layout()
    plotting.legend_above(figure, used)
    plotting.footnote(figure, data.notes)
    return figure


def table(data: Exploration) -> Table:
    """B(K) at a tenth, a quarter, half and all of the budget."""
    points = sorted({max(1, data.budget * percent // 100) for percent in (10, 25, 50, 100)})
    numbers = pd.DataFrame(
        {"method": method, "steps": k} | statistics.named("best", Interval(*(part[k - 1] for part in curve)))
        for method, curve in data.curves.items()
        for k in points
    )
    shown = pd.DataFrame({"Method": [label(method) for method in data.curves]})
    for k in points:
        shown[f"K = {k}"] = interval_cells(numbers[numbers["steps"] == k], "best")
    numbers = numbers.rename(columns={"best_low": "low", "best_high": "high"})
    caption = "Best ROC AUC within K environment steps, mean over tasks, with 95 % interval."
    return Table(numbers, caption, shown, data.notes)
