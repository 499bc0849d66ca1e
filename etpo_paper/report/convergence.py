"""The mean reward of each training batch, and where training ends: figures and tables of the notebook `convergence`.

Methods that train have a curve over updates. Reflection does not learn: the mean reward over its whole budget is a
level to compare the curves with.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from etpo_paper.report import notebook, plotting, results, statistics
from etpo_paper.report.names import counted, label, ordered, task_label
from etpo_paper.report.statistics import Interval
from etpo_paper.report.tables import Table, interval_cells, number_cell

LEARNERS = ("ppo_kl", "etpo", "etpo_memory", "etpo_center_memory")
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
    rewards = ", ".join(f"{label(method)} {text}" for method, text in texts)
    return notebook.answer(f"Mean reward over the last fifth of the budget (IQM over runs): {rewards}.", data.notes)


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


def figure(data: Convergence, drawn: dict[str, dict[str, Interval]]) -> Figure:
    """A panel for each entry of `drawn`, with the levels as horizontal lines.

    Args:
        data: what the notebook shows.
        drawn: see `curves`.
    """
    figure, used = plotting.panels(len(drawn), COLUMNS, 3.1, 2.5, "mean reward of a batch")
    for axes, (title, tasks) in zip(used, _panels(data).items(), strict=True):
        for method in data.levels:
            height = _level(data, method, tasks)
            if height is not None:
                axes.axhline(height, linewidth=1.2, **plotting.line(method))
        plotting.draw_curves(axes, plotting.counting(drawn[title]), drawn[title])
        axes.set_title(title)
        plotting.whole_numbers(axes)
    plotting.label_lowest(used, COLUMNS, "update")
    figure.tight_layout()
    plotting.legend_above(figure, used)
    plotting.footnote(figure, data.notes)
    return figure


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
