"""Training in an environment that is not the paper's: the figure and the table of the notebook `own_environment`.

The stage of that name trains a toy model to write SQL, five times with each of two methods. The first batch of a run
was written by the model before any training, so that the first batches of all runs say what the untrained model earns.
Intervals are t-intervals over seeds.
"""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from etpo_paper.report import inference, notebook, plotting, results
from etpo_paper.report.names import counted, label, ordered
from etpo_paper.report.statistics import Interval, interval_text, named
from etpo_paper.report.tables import Table, interval_cells

COMPARED = ("etpo", "ppo_kl")  # the first minus the second, if both were run


@dataclass(frozen=True, eq=False)
class Runs:
    """What the notebook shows.

    Attributes:
        steps: [batches], environment steps of a run at the end of each batch.
        reward: mean reward of each batch by method, [seeds, batches].
        ran: share of queries that ran over the last fifth by method, [seeds].
        first: mean reward of the first batch, before any training, [seeds].
        late: which batches belong to the last fifth of training, [batches].
    """

    steps: np.ndarray
    reward: Mapping[str, np.ndarray]
    ran: Mapping[str, np.ndarray]
    first: np.ndarray
    late: np.ndarray

    @property
    def last(self) -> dict[str, np.ndarray]:
        """The mean reward over the last fifth of training by method, [seeds]."""
        return {method: rows[:, self.late].mean(axis=1) for method, rows in self.reward.items()}

    def gain(self, method: str) -> np.ndarray:
        """How far the last fifth of each run is above its own first batch, [seeds]."""
        return np.asarray(self.last[method] - self.reward[method][:, 0])

    @property
    def notes(self) -> list[str]:
        """What a reader must know beside the numbers."""
        runs = f"{counted(len(self.first), 'run')} a method, {counted(int(self.steps[0]), 'step')} a batch"
        return [
            f"{runs}; intervals: 95 %, t over seeds.",
            "A toy model and invented towns; the settings are those of params.yaml, and nothing was tuned here.",
        ]


def over_seeds(values: np.ndarray) -> Interval:
    """The mean over seeds with its t-interval, at each point of a curve.

    Args:
        values: [seeds, points].

    Returns:
        Point and ends, each [points]; the ends are NaN for one seed.
    """
    # A t-interval over a sample of single numbers, which are seeds here.
    return Interval(*np.array([inference.tasks_in_general(column[:, None]) for column in values.T]).T)


def over_runs(values: np.ndarray) -> Interval:
    """`over_seeds` of one number for each seed, [seeds]."""
    return Interval(*(end[0] for end in over_seeds(values[:, None])))


def load(scale: str) -> Runs:
    """Reads the runs of a scale.

    Raises:
        UserError: they were not made; the message says how to.
    """
    rows = results.load_own_environment(scale)
    results.require_rows(rows, "runs in an environment of one's own", scale, "own_environment")
    late = results.period(rows["update"]) == results.LATE

    def by_seed(method: str, column: str) -> np.ndarray:
        own = rows[rows["method"] == method]
        return own.pivot(index="seed", columns="update", values=column).to_numpy()

    methods = ordered(rows["method"])
    steps = np.sort(rows["steps"].unique())
    chosen = rows[late].groupby(["method", "seed"])["share_runs"].mean()
    return Runs(
        steps=steps,
        reward={method: by_seed(method, "mean_reward") for method in methods},
        ran={method: chosen[method].to_numpy() for method in methods},
        first=rows[rows["update"] == 0].groupby("seed")["mean_reward"].mean().to_numpy(),
        late=np.isin(np.arange(len(steps)), rows.loc[late, "update"]),
    )


def _words(interval: Interval) -> str:
    return interval_text(float(interval.point), float(interval.low), float(interval.high))


def answer(data: Runs) -> str:
    """What each method earns over the last fifth of training, beside the untrained model, and how the two differ."""
    parts = [
        f"{last.mean() + 0.0:.3f} with {label(method)} (gain {_words(over_runs(data.gain(method)))})"
        for method, last in data.last.items()
    ]
    text = (
        f"The untrained model earns {_words(over_runs(data.first))} a query. Over the last fifth of "
        f"{data.steps[-1]} steps it is {' and '.join(parts)}; a right query earns 1."
    )
    if difference := compared(data):
        first, second = map(label, COMPARED)
        text += f" {first} minus {second}, in pairs with the same seed: {_words(difference)}."
    return notebook.answer(text, data.notes)


def compared(data: Runs) -> Interval | None:
    """The difference of the two methods over the last fifth, in pairs with the same seed; None if one was not run."""
    if not set(COMPARED) <= set(data.last):
        return None
    return over_runs(data.last[COMPARED[0]] - data.last[COMPARED[1]])


def figure(data: Runs) -> Figure:
    """The mean reward of each batch over environment steps, above what the untrained model earns."""
    figure, axes = plt.subplots(figsize=(plotting.PAGE_WIDTH, 3.0))
    first, grey = over_runs(data.first), plotting.colour("reflection")
    axes.axhline(float(first.point), color=grey, linestyle=":", label="untrained model")
    axes.axhspan(float(first.low), float(first.high), color=grey, alpha=0.15, linewidth=0)
    plotting.draw_curves(axes, data.steps, {method: over_seeds(rows) for method, rows in data.reward.items()})
    axes.set(xlabel="environment steps", ylabel="mean reward of a batch", xlim=(data.steps[0], data.steps[-1]))
    figure.tight_layout()
    plotting.legend_above(figure, [axes])
    plotting.footnote(figure, data.notes)
    return figure


def table(data: Runs) -> Table:
    """First batch, last fifth, their difference in each run, and the share of queries that run in the end."""
    numbers = pd.DataFrame(
        {"method": method, "runs": len(last)}
        | named("first", over_runs(data.first))
        | named("last", over_runs(last))
        | named("gain", over_runs(data.gain(method)))
        | named("ran", over_runs(data.ran[method]))
        for method, last in data.last.items()
    )
    if difference := compared(data):
        for name, end in named("above", difference).items():
            numbers[name] = np.where(numbers["method"] == COMPARED[0], end, np.nan)
    shown = pd.DataFrame({"Method": [label(method) for method in numbers["method"]]})
    shown["First batch, untrained"] = interval_cells(numbers, "first")
    shown["Last fifth"] = interval_cells(numbers, "last")
    shown["Difference"] = interval_cells(numbers, "gain")
    shown["Queries that run, last fifth"] = interval_cells(numbers, "ran")
    if difference:
        shown[f"Above {label(COMPARED[1])}"] = interval_cells(numbers, "above")
    caption = "Mean reward of a query before and at the end of training, with 95 % intervals over seeds."
    return Table(numbers, caption, shown, data.notes)


def source(*functions: Callable[..., object]) -> str:
    """The source code of functions or classes as Markdown."""
    texts = "\n".join(textwrap.dedent(inspect.getsource(function)) for function in functions)
    return f"```python\n{texts}```"
