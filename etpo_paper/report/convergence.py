"""The mean reward of each training batch, and where training ends: figures and tables of the notebook `convergence`.

The methods of the paper have a figure of their own, and so have this project's additions beside ETPO. Curves are means
over seeds, because a run that breaks must be seen; tables and the answer state the interquartile mean as well.

Methods that train have a curve over updates. Reflection does not learn: the mean reward over its whole budget is a
level to compare the curves with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from etpo_paper.report import notebook, plotting, results, statistics
from etpo_paper.report.names import ADDITIONS, counted, label, ordered, task_label
from etpo_paper.report.statistics import Interval
from etpo_paper.report.tables import Table, interval_cells, number_cell

LEARNERS = ("ppo_kl", "etpo", *ADDITIONS)
LEVELS = ("reflection_gpt4", "reflection")
WITH_MEMORY = ("etpo_memory", "etpo_center_memory")
COLUMNS = 3  # panels side by side


@dataclass(frozen=True, eq=False)
class Convergence:
    """What the notebook shows.

    Attributes:
        updates: updates of the learners.
        scores: see `statistics.run_scores`, of learners and levels on all their tasks.
        learners: methods that train and have finished runs.
        levels: methods that do not train and have finished runs.
        tasks: tasks of the learners.
        shared: tasks that every learner and level has.
        budget: environment steps of the shortest run.
        reference: the method that is compared with the others: ETPO if it was run.
        stand_ins: see `results.stand_ins`.
        notes: see `results.notes`.
    """

    updates: pd.DataFrame
    scores: pd.DataFrame
    learners: list[str]
    levels: list[str]
    tasks: list[str]
    shared: list[str]
    budget: int
    reference: str
    stand_ins: dict[str, str]
    notes: list[str]

    @property
    def methods(self) -> list[str]:
        """Learners and levels in the order of every table."""
        return ordered([*self.learners, *self.levels])

    @property
    def broken(self) -> pd.DataFrame:
        """The runs of learners none of whose programs ran in the last fifth of the steps, rows of `scores`."""
        return statistics.broken(self.scores[self.scores["method"].isin(self.learners)])

    @property
    def means(self) -> pd.Series:
        """The mean reward over the last fifth, mean over the shared tasks of the mean over seeds, by method."""
        return statistics.means_over_tasks(self.shared_scores, "last_mean")

    @property
    def shared_scores(self) -> pd.DataFrame:
        """The scores on the tasks that every method has."""
        return self.scores[self.scores["task"].isin(self.shared)]


def load(scale: str) -> Convergence:
    """Reads the runs of a scale.

    Raises:
        UserError: no method that trains has a finished run.
    """
    steps, updates = results.load_steps(scale), results.load_updates(scale)
    learners = results.finished_methods(updates, LEARNERS)
    levels = ordered(set(LEVELS) & set(steps["method"]))
    updates = updates[updates["method"].isin(learners)]
    shared = results.common_tasks(steps, [*learners, *levels])
    steps = steps[steps["method"].isin([*learners, *levels])]
    return Convergence(
        updates=updates,
        scores=statistics.run_scores(steps),
        learners=learners,
        levels=levels,
        tasks=sorted(updates["task"].unique()),
        shared=shared,
        budget=statistics.budget(steps),
        reference="etpo" if "etpo" in learners else learners[0],
        stand_ins=results.stand_ins(results.load_cards(scale)),
        notes=results.notes(scale, steps, [*LEVELS, *LEARNERS]),
    )


def compare_ends(data: Convergence, generator: np.random.Generator) -> pd.DataFrame:
    """The mean reward of the last fifth of the steps, method by method; see `statistics.compare`."""
    return statistics.compare(data.shared_scores, "last_mean", data.methods, data.reference, generator)


def answer(data: Convergence, ends: pd.DataFrame) -> str:
    """Where each method ends.

    Args:
        data: what the notebook shows.
        ends: see `compare_ends`.
    """
    texts = zip(ends["method"], interval_cells(ends, "iqm"), strict=True)
    rewards = "; ".join(f"{label(method)} {text} (mean {data.means[method]:.3f})" for method, text in texts)
    return notebook.answer(
        f"Mean reward over the last fifth of the budget, interquartile mean (IQM) over runs: {rewards}.",
        [*data.notes, *_broken_notes(data, data.learners)],
    )


def curves(data: Convergence, generator: np.random.Generator) -> dict[str, dict[str, Interval]]:
    """The curves of each panel: the mean over the shared tasks first if there are several, then each task.

    Args:
        data: what the notebook shows.
        generator: source of the random numbers for the intervals.

    Returns:
        Title of the panel -> method -> mean reward of a batch over updates; methods that lack a task are left out.
    """
    found = {}
    for title, tasks in _panels(data).items():
        have = [m for m in data.learners if set(tasks) <= set(data.updates.loc[data.updates["method"] == m, "task"])]
        found[title] = statistics.aggregate_curves(data.updates, "update", "mean_reward", have, tasks, generator)
    return found


def figures(data: Convergence, drawn: dict[str, dict[str, Interval]], ends: pd.DataFrame) -> dict[str, Figure]:
    """The figure of the paper's methods and, if they were run, that of this project's additions beside ETPO.

    Args:
        data: what the notebook shows.
        drawn: see `curves`.
        ends: see `compare_ends`.

    Returns:
        Name of the file -> figure.
    """
    additions = [method for method in data.learners if method in ADDITIONS]
    paper = [method for method in data.learners if method not in ADDITIONS]
    chosen = {"mean_reward": paper or additions}
    if paper and additions:
        chosen["mean_reward_additions"] = ordered([data.reference, *additions])
    return {name: _figure(data, drawn, ends, methods) for name, methods in chosen.items()}


def _figure(data: Convergence, drawn: dict[str, dict[str, Interval]], ends: pd.DataFrame, methods: list[str]) -> Figure:
    """A panel for each entry of `drawn`, with some methods' curves and the levels as horizontal lines."""
    width = (plotting.PAGE_WIDTH - 0.4) / min(COLUMNS, len(drawn))
    figure, used = plotting.panels(len(drawn), COLUMNS, width, 1.7, "mean reward of a batch")
    broken = data.broken[data.broken["method"].isin(methods)]
    for axes, (title, tasks) in zip(used, _panels(data).items(), strict=True):
        for method in data.levels:
            height = _level(data, method, tasks)
            if height is not None:
                axes.axhline(height, linewidth=1.2, **plotting.line(method))
        shown = {method: curve for method, curve in drawn[title].items() if method in methods}
        plotting.draw_curves(axes, plotting.counting(shown), shown)
        if len(tasks) == 1:
            for run in broken[broken["task"] == tasks[0]].to_dict("records"):
                _draw_broken(axes, data.updates, run)
        axes.set_title(title)
        plotting.whole_numbers(axes)
    plotting.label_lowest(used, COLUMNS, "update")
    figure.tight_layout()
    plotting.legend_above(figure, used)
    iqm = ends.set_index("method")["iqm"]
    both = "; ".join(f"{label(m)} {data.means[m]:.3f} / {iqm[m]:.3f}" for m in methods if m in data.means)
    lines = ["Lines: mean over seeds. Horizontal line: mean reward of a method that does not learn."]
    lines += [f"Last fifth of the steps, mean / interquartile mean over runs: {both}."] if both else []
    plotting.footnote(figure, [*lines, *_broken_notes(data, methods), *data.notes])
    return figure


def _draw_broken(axes: Axes, updates: pd.DataFrame, run: Mapping[Any, Any]) -> None:
    """Draws the curve of one run as a thin line with crosses, named by its seed at its end."""
    own = updates[(updates[results.KEYS] == [run[key] for key in results.KEYS]).all(axis=1)].sort_values("update")
    colour = plotting.colour(run["method"])
    axes.plot(own["update"] + 1, own["mean_reward"], color=colour, linewidth=0.8, marker="x", markersize=2.5)
    end = own["update"].iloc[-1] + 1, own["mean_reward"].iloc[-1]
    text = f"seed {run['seed']}"
    axes.annotate(text, end, (0, 4), textcoords="offset points", ha="right", va="bottom", color=colour, fontsize=7)


def _broken_notes(data: Convergence, methods: Sequence[str]) -> list[str]:
    return [
        f"{label(run['method'])} on {run['task']}, seed {run['seed']} broke: no program of its last fifth ran. "
        "It counts in all numbers; crosses mark it in the figure."
        for run in data.broken.to_dict("records")
        if run["method"] in methods
    ]


def last_fifth(
    data: Convergence, ends: pd.DataFrame, drawn: dict[str, dict[str, Interval]], generator: np.random.Generator
) -> Table:
    """The end of training, and how steady the way there is.

    Args:
        data: what the notebook shows.
        ends: see `compare_ends`.
        drawn: see `curves`; the first panel is searched for updates that fall.
        generator: source of the random numbers for the intervals.
    """
    scores, reference = data.shared_scores, data.reference
    runs = statistics.compare(scores, "last_runs", list(ends["method"]), reference, generator)
    strata = {
        method: statistics.strata_of(scores[scores["method"] == method], "last_mean") for method in ends["method"]
    }
    ratios = [
        statistics.NO_INTERVAL
        if method == reference
        else statistics.bootstrap_std_ratio(strata[reference], strata[method], generator)
        for method in ends["method"]
    ]
    numbers = ends.add_prefix("reward_")
    numbers = numbers.rename(columns={f"reward_{name}": name for name in ("method", "tasks", "runs")})
    for end in ("", "_low", "_high"):
        numbers[f"share_runs_iqm{end}"] = runs[f"iqm{end}"]
    numbers["std_over_seeds"] = [float(statistics.std_over_seeds(strata[method])) for method in ends["method"]]
    numbers[["std_ratio", "std_ratio_low", "std_ratio_high"]] = [[float(part) for part in ratio] for ratio in ratios]
    first = next(iter(drawn.values()))
    with_interval = {method for method, curve in first.items() if np.isfinite(curve.low).any()}
    numbers["falls"] = [int(statistics.falls(first[m]).sum()) if m in with_interval else None for m in ends["method"]]
    shown = pd.DataFrame(
        {
            "Method": [label(method) for method in numbers["method"]],
            "Mean reward (IQM)": interval_cells(numbers, "reward_iqm"),
            "Share that runs (IQM)": interval_cells(numbers, "share_runs_iqm"),
            f"{label(reference)} - method, reward": interval_cells(numbers, "reward_difference"),
            f"P({label(reference)} better)": interval_cells(numbers, "reward_improvement"),
            "Std over seeds": numbers["std_over_seeds"],
            f"Std, {label(reference)} / method": interval_cells(numbers, "std_ratio"),
            "Updates that fall": [number_cell(value, ".0f") for value in numbers["falls"]],
        }
    )
    caption = f"The last fifth of {data.budget} environment steps on {counted(len(data.shared), 'task')}."
    return Table(numbers, caption, shown, data.notes)


def settled(data: Convergence, generator: np.random.Generator) -> Table:
    """The last fifth of the steps, taken apart into the share of programs that run and their mean reward.

    Args:
        data: what the notebook shows.
        generator: source of the random numbers for the intervals.
    """
    scores = data.shared_scores
    parts = scores.assign(gap=scores["best"] - scores["last_level"])
    rows = []
    for method in data.learners:
        row: dict[str, object] = {"method": method}
        for name in ("last_runs", "last_level", "best", "gap"):
            strata = statistics.strata_of(parts[parts["method"] == method], name)
            row |= statistics.named(name, statistics.bootstrap(strata, statistics.mean_over_tasks, generator))
        rows.append(row)
    numbers = pd.DataFrame(rows)
    heads = {"last_runs": "Share that runs", "last_level": "Level", "best": "Best of the run", "gap": "Best - level"}
    for ours in WITH_MEMORY:
        if ours not in data.learners:
            continue
        against = statistics.compare(scores, "last_mean", data.methods, ours, generator)
        columns = {f"difference{end}": f"{ours}_difference{end}" for end in ("", "_low", "_high")}
        numbers = numbers.merge(against[["method", *columns]].rename(columns=columns), how="left")
        heads[f"{ours}_difference"] = f"{label(ours)} - method, mean reward (IQM)"
    shown = pd.DataFrame({"Method": [label(method) for method in numbers["method"]]})
    for name, head in heads.items():
        shown[head] = interval_cells(numbers, name)
    caption = f"The last fifth of {data.budget} environment steps, taken apart; means over tasks."
    return Table(numbers, caption, shown, data.notes)


def _panels(data: Convergence) -> dict[str, list[str]]:
    """Title of each panel -> the tasks that it averages over."""
    panels = {f"mean of {len(data.shared)} tasks": data.shared} if len(data.shared) > 1 else {}
    return panels | {task_label(task, task in data.stand_ins): [task] for task in data.tasks}


def _level(data: Convergence, method: str, tasks: list[str]) -> float | None:
    """Mean reward of an untrained method over its budget, mean over some tasks; None if it lacks one of them."""
    rows = data.scores[(data.scores["method"] == method) & data.scores["task"].isin(tasks)]
    return float(rows.groupby("task")["mean"].mean().mean()) if set(tasks) <= set(rows["task"]) else None
