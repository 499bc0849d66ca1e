"""What multi-step reflection and the token-level backup contribute: figure and table of the notebook `ablations`.

Only the seeds that every method has run on a task are compared: a seed that one method lacks may be an easy or a hard
one, and would be counted for the others alone.
"""

from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from etpo_core.errors import UserError
from etpo_paper.report import notebook, plotting, results, statistics
from etpo_paper.report.names import counted, label
from etpo_paper.report.tables import Table, interval_cells

METHODS = ("etpo", "etpo_no_reflection", "etpo_action_level")


@dataclass(frozen=True, eq=False)
class Ablations:
    """What the notebook shows.

    Attributes:
        steps: environment steps of the methods present, on the tasks and seeds that all of them have.
        updates: updates of the same runs.
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
        UserError: no method has a finished run, or the methods have no task and seed in common.
    """
    steps, updates = results.load_steps(scale), results.load_updates(scale)
    present = results.finished_methods(steps, METHODS)
    everything = statistics.run_scores(steps[steps["method"].isin(present)])
    steps, updates = (results.common_runs(frame, present) for frame in (steps, updates))
    if steps.empty:
        raise UserError(f"no task and seed of scale {scale} has finished runs of all of {', '.join(present)}")
    scores = statistics.run_scores(steps)
    best = statistics.compare(scores, "best", present, "etpo", generator)
    late = statistics.compare(scores, "last_mean", present, "etpo", generator)
    notes = [*results.notes(scale, steps, METHODS), *notes_on_seeds(steps, everything)]
    return Ablations(
        steps, updates, present, sorted(steps["task"].unique()), statistics.budget(steps), best, late, notes
    )


def notes_on_seeds(common: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    """Which seeds are compared, and which of the runs left out broke.

    Args:
        common: rows of the runs that are compared, with columns method, task and seed.
        scores: see `statistics.run_scores`, of all finished runs of the same methods.
    """
    kept = set(common[results.KEYS].itertuples(index=False, name=None))
    return [
        f"Only seeds that all methods have are compared ({', '.join(map(str, sorted(common['seed'].unique())))}).",
        *(
            f"{label(method)} on {task}, seed {seed}, is not among them; none of its last programs ran."
            for method, task, seed in statistics.broken(scores)[results.KEYS].itertuples(index=False, name=None)
            if (method, task, seed) not in kept
        ),
    ]


def answer(data: Ablations) -> str:
    """Where each method ends: the interquartile mean of the table, and the mean that the figure's curves show."""
    mean = statistics.means_over_tasks(statistics.run_scores(data.steps), "last_mean")
    ends = zip(data.late["method"], interval_cells(data.late, "iqm"), strict=True)
    return notebook.answer(
        f"Mean reward over the last fifth of {data.budget} steps, interquartile mean (IQM) over runs: "
        + "; ".join(f"{label(method)} {text} (mean {mean[method]:.3f})" for method, text in ends)
        + ".",
        data.notes,
    )


def figure(data: Ablations, generator: np.random.Generator) -> Figure:
    """Means as curves above, interquartile means at the end below; best rewards on the left, mean rewards on the right.

    Args:
        data: what to draw.
        generator: source of the random numbers for the intervals.
    """
    chosen = data.methods, data.tasks, generator
    explored = statistics.aggregate_curves(data.steps, "step", "reward", *chosen, transform=statistics.best_so_far)
    learnt = statistics.aggregate_curves(data.updates, "update", "mean_reward", *chosen)
    figure, grid = plt.subplots(2, 2, figsize=(plotting.PAGE_WIDTH, 4.2), height_ratios=[3, 1.2])
    (best, mean), (best_end, mean_end) = grid
    for axes, curves in ((best, explored), (mean, learnt)):
        plotting.draw_curves(axes, plotting.counting(curves), curves)
    best.set_xlabel("environment steps K")
    best.set_ylabel("best ROC AUC within K steps, mean")
    plotting.show_differences(best, explored)
    plotting.whole_numbers(mean)
    mean.set_xlabel("update")
    mean.set_ylabel("reward of a batch, mean")
    for axes, ends, name in (
        (best_end, data.best, "best ROC AUC of a run, IQM"),
        (mean_end, data.late, "mean reward of the last fifth, IQM"),
    ):
        plotting.draw_ends(axes, statistics.intervals_of(ends, "iqm"))
        axes.set_xlabel(name)
    best_end.xaxis.set_major_locator(MaxNLocator(4))
    for axes in (best_end, mean_end):
        axes.set_yticks([])  # the legend names the colours
    figure.tight_layout()
    plotting.legend_above(figure, [best])
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
    caption = f"ETPO and its ablations on {counted(len(data.tasks), 'task')}, {data.budget} environment steps, "
    return Table(numbers, caption + "on the seeds that all of them have; 95 % intervals.", shown, data.notes)
