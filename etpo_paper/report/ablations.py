"""What multi-step reflection and the token-level backup contribute: figure and table of the notebook `ablations`."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from etpo_paper.report import notebook, plotting, results, statistics
from etpo_paper.report.names import counted, label
from etpo_paper.report.tables import Table, interval_cells

METHODS = ("etpo", "etpo_no_reflection", "etpo_action_level")


@dataclass(frozen=True, eq=False)
class Ablations:
    """What the notebook shows.

    Attributes:
        steps: environment steps of the methods present, on the tasks that all of them have.
        updates: updates of all runs of the scale.
        methods: ETPO and its ablations, those that have finished runs.
        tasks: tasks that are averaged over.
        budget: environment steps of the shortest run.
        best: ETPO compared with each method by the best reward of a run, see `statistics.compare`.
        late: the same by the mean reward of the last fifth of the steps.
        notes: see `results.notes`.
    """

    steps: pd.DataFrame
    updates: pd.DataFrame
    methods: list[str]
    tasks: list[str]
    budget: int
    best: pd.DataFrame
    late: pd.DataFrame
    notes: list[str]


def load(scale: str, generator: np.random.Generator) -> Ablations:
    """Reads the runs of a scale.

    Args:
        scale: whose runs to read.
        generator: source of the random numbers for the intervals.

    Raises:
        UserError: no method has a finished run.
    """
    steps, updates = results.load_steps(scale), results.load_updates(scale)
    present = results.finished_methods(steps, METHODS)
    tasks = results.common_tasks(steps, present)
    steps = steps[steps["method"].isin(present) & steps["task"].isin(tasks)]
    scores = statistics.run_scores(steps)
    best = statistics.compare(scores, "best", present, "etpo", generator)
    late = statistics.compare(scores, "last_mean", present, "etpo", generator)
    notes = results.notes(scale, steps, METHODS)
    return Ablations(steps, updates, present, tasks, statistics.budget(steps), best, late, notes)


def answer(data: Ablations) -> str:
    """Where each method ends."""
    ends = zip(data.late["method"], interval_cells(data.late, "iqm"), strict=True)
    return notebook.answer(
        f"Mean reward over the last fifth of {data.budget} steps (IQM over runs): "
        + ", ".join(f"{label(method)} {text}" for method, text in ends)
        + ".",
        data.notes,
    )


def figure(data: Ablations, generator: np.random.Generator) -> Figure:
    """The best reward within K steps on the left, the mean reward of each batch on the right.

    Args:
        data: what to draw.
        generator: source of the random numbers for the intervals.
    """
    chosen = data.methods, data.tasks, generator
    explored = statistics.aggregate_curves(data.steps, "step", "reward", *chosen, transform=statistics.best_so_far)
    learnt = statistics.aggregate_curves(data.updates, "update", "mean_reward", *chosen)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
    for axes, curves in ((left, explored), (right, learnt)):
        plotting.draw_curves(axes, plotting.counting(curves), curves)
    left.set_xlabel("environment steps K")
    left.set_ylabel("best ROC AUC within K steps")
    plotting.show_differences(left, explored)
    plotting.whole_numbers(right)
    right.set_xlabel("update")
    right.set_ylabel("mean reward of a batch")
    left.legend(loc="lower right")
    figure.tight_layout()
    plotting.footnote(figure, data.notes)
    return figure


def table(data: Ablations) -> Table:
    """Each method's best and late rewards, and ETPO compared with it."""
    numbers = data.best.add_prefix("best_")
    numbers = numbers.rename(columns={f"best_{name}": name for name in ("method", "tasks", "runs")})
    for name in ("iqm", "difference", "improvement"):
        for end in ("", "_low", "_high"):
            numbers[f"last_fifth_{name}{end}"] = data.late[f"{name}{end}"]
    shown = pd.DataFrame(
        {
            "Method": [label(method) for method in numbers["method"]],
            "Best (IQM)": interval_cells(numbers, "best_iqm"),
            "ETPO - method, best": interval_cells(numbers, "best_difference"),
            "Mean reward, last fifth (IQM)": interval_cells(numbers, "last_fifth_iqm"),
            "ETPO - method, last fifth": interval_cells(numbers, "last_fifth_difference"),
            "P(ETPO better), last fifth": interval_cells(numbers, "last_fifth_improvement"),
        }
    )
    caption = f"ETPO and its ablations on {counted(len(data.tasks), 'task')}, {data.budget} environment steps; "
    return Table(numbers, caption + "95 % intervals.", shown, data.notes)
