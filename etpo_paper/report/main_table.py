"""The highest reward of each method on each data set: the tables and the figure of the notebook `main_table`.

The score of a run is the best reward within the budget. Beside it stands the held-out score of the same program, on
splits that never gave a reward; the difference between the two is the optimism of the best reward. A program that is
found to carry labels (`results.carries_labels`) has no held-out score here, and is named.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from etpo_paper.report import notebook, plotting, results, statistics
from etpo_paper.report.names import counted, label, ordered, task_label
from etpo_paper.report.statistics import Interval
from etpo_paper.report.tables import Table, interval_cells

LEFT_OUT = {"ppo_no_kl"}  # trained only to compare perplexities, on few tasks
NOT_RUN = "not run"
_COLUMNS = 3  # panels side by side


@dataclass(frozen=True, eq=False)
class MainTable:
    """What the notebook shows.

    Attributes:
        scores: see `statistics.run_scores`, with a column held_out_score (NaN where there is none or it is refused).
        planned: columns task and method, of all that is planned or on disk.
        methods: the columns of the table, run or not.
        present: those that have finished runs.
        tasks: tasks that every method present has.
        budget: environment steps of the shortest run.
        stand_ins: see `results.stand_ins`.
        notes: see `results.notes`, and what is to be said about held-out scores.
        integrity: see `results.integrity_note`, and what the best programs score with dealt labels.
    """

    scores: pd.DataFrame
    planned: pd.DataFrame
    methods: list[str]
    present: list[str]
    tasks: list[str]
    budget: int
    stand_ins: dict[str, str]
    notes: list[str]
    integrity: list[str]

    @property
    def shared_scores(self) -> pd.DataFrame:
        """The scores on the tasks that every method present has."""
        return self.scores[self.scores["task"].isin(self.tasks)]


def load(scale: str) -> MainTable:
    """Reads the runs of a scale and their held-out scores.

    Raises:
        UserError: no method has a finished run, or the held-out scores were not made; the message says how to.
    """
    steps, status, evaluation = results.load_steps(scale), results.run_status(scale), results.load_evaluation(scale)
    results.require_rows(evaluation, "held-out scores", scale, "evaluate")
    methods = ordered(set(status["method"]) - LEFT_OUT)
    present = results.finished_methods(steps, methods)
    budget, cards = statistics.budget(steps), results.load_cards(scale)
    steps = steps[steps["method"].isin(methods)]
    scores = statistics.run_scores(steps, budget)
    # A run in which no program ever ran has no best program, and hence no held-out score.
    ran = evaluation[evaluation["splits"].fillna(0).astype(int) > 0]
    held_out = ran[~results.carries_labels(ran)][[*results.KEYS, "held_out_score"]]
    scores = scores.merge(held_out, on=results.KEYS, how="left")
    return MainTable(
        scores=scores,
        planned=status[["task", "method"]].drop_duplicates(),
        methods=methods,
        present=present,
        tasks=results.common_tasks(scores, present),
        budget=budget,
        stand_ins=results.stand_ins(cards),
        notes=[*results.notes(scale, scores, methods), *_held_out_notes(evaluation)],
        integrity=[results.integrity_note(steps, cards), *_dealt_note(ran)],
    )


def answer(data: MainTable) -> str:
    """On how many tasks each method is the best, and how optimistic the best rewards are."""
    best = data.scores.groupby(["task", "method"])["best"].mean().unstack()
    wins = best.idxmax(axis=1).value_counts()
    optimism = (data.scores["best"] - data.scores["held_out_score"]).mean()
    text = ", ".join(f"{label(method)} is best on {wins.get(method, 0)}" for method in data.present)
    text += f" of {counted(len(best), 'task')} ({data.budget} steps). "
    if not np.isnan(optimism):
        text += f"Rewards of best programs exceed their held-out scores by {optimism:.3f}."
    return notebook.answer(text, data.notes)


def table(data: MainTable) -> Table:
    """Mean and standard deviation over seeds of the best reward, task by task, with the mean held-out score."""
    reward = statistics.mean_and_std(data.scores, "best").rename(columns={"mean": "best_mean", "std": "best_std"})
    held_out = statistics.mean_and_std(data.scores, "held_out_score").drop(columns="n")
    held_out = held_out.rename(columns={"mean": "held_out_mean", "std": "held_out_std"})
    numbers = data.planned.merge(reward, how="left").merge(held_out, how="left")
    numbers["n"] = numbers["n"].fillna(0).astype(int)
    numbers["stand_in"] = [int(task in data.stand_ins) for task in numbers["task"]]
    numbers["method"] = pd.Categorical(numbers["method"], data.methods)
    numbers = numbers.sort_values(["task", "method"], ignore_index=True)

    tasks = numbers["task"].unique()
    shown = pd.DataFrame({"Data set": [task_label(task, task in data.stand_ins) for task in tasks]})
    for method in data.methods:
        shown[label(method)] = [_cell(numbers[numbers["task"] == task], method) for task in tasks]
    shown.loc[len(shown)] = _last_row(data)
    columns = ["task", "stand_in", "method", "n", "best_mean", "best_std", "held_out_mean", "held_out_std"]
    caption = (
        f"Highest ROC AUC within {data.budget} environment steps, mean ± standard deviation over seeds "
        "(held-out score of the same programs)."
    )
    return Table(numbers[columns], caption, shown, [*data.notes, *data.integrity])


def aggregate(data: MainTable, generator: np.random.Generator) -> Table:
    """The methods over all shared tasks, and ETPO compared with each.

    Args:
        data: what the notebook shows.
        generator: source of the random numbers for the intervals.
    """
    scores = data.shared_scores
    numbers = statistics.compare(scores, "best", data.present, "etpo", generator)
    gaps = scores.assign(gap=scores["best"] - scores["held_out_score"]).dropna(subset="held_out_score")
    optimism = [_mean_gap(gaps[gaps["method"] == method], generator) for method in data.present]
    numbers[["optimism", "optimism_low", "optimism_high"]] = [[float(end) for end in ends] for ends in optimism]
    heads = {"iqm": "IQM of best", "difference": "ETPO - method", "improvement": "P(ETPO better)"}
    shown = pd.DataFrame({"Method": [label(method) for method in numbers["method"]]})
    for name, head in (heads | {"optimism": "Optimism"}).items():
        shown[head] = interval_cells(numbers, name)
    caption = (
        f"Best ROC AUC within {data.budget} steps over the {counted(len(data.tasks), 'task')} "
        "that all methods present have."
    )
    return Table(numbers, caption, shown, data.notes)


def performance_profile(data: MainTable, generator: np.random.Generator) -> Figure:
    """The share of runs whose best reward lies above each score: a panel for each method, beside ETPO.

    Args:
        data: what the notebook shows.
        generator: source of the random numbers for the intervals.
    """
    scores = data.shared_scores
    found = scores.loc[scores["best"] > 0, "best"]  # runs that found nothing (-1) lie left of the axis
    low, high = (found.min() - 0.02, found.max() + 0.02) if len(found) else (0.0, 1.0)
    thresholds = np.linspace(low, high, 200)

    def profile(strata: Sequence[np.ndarray]) -> np.ndarray:
        return statistics.performance_profile(strata, thresholds)

    profiles = {}
    for method in data.present:
        strata = statistics.strata_of(scores[scores["method"] == method], "best")
        profiles[method] = statistics.bootstrap(strata, profile, generator)
    reference = "etpo" if "etpo" in profiles else data.present[0]
    others = [method for method in data.present if method != reference] or [reference]
    width = (plotting.PAGE_WIDTH - 0.4) / min(_COLUMNS, len(others))
    figure, used = plotting.panels(len(others), _COLUMNS, width, 1.45, "share of runs above τ", sharex=True)
    for axes, method in zip(used, others, strict=True):
        shown = {name: profiles[name] for name in dict.fromkeys([reference, method])}
        plotting.draw_curves(axes, thresholds, shown, drawstyle="steps-post")
        axes.set_title(textwrap.fill(label(method), 24), fontsize=7.5)
    plotting.label_lowest(used, _COLUMNS, "best ROC AUC τ")
    figure.tight_layout()
    plotting.legend_above(figure, used)
    plotting.footnote(figure, data.notes)
    return figure


def _held_out_notes(evaluation: pd.DataFrame) -> list[str]:
    failing = evaluation[evaluation["splits_failed"] > 0].to_dict("records")
    carrying = evaluation[results.carries_labels(evaluation)].to_dict("records")
    return [
        f"{_run(row)}: the best program fails on {row['splits_failed']} of {row['splits'] + row['splits_failed']} "
        "held-out splits; its held-out score is the mean over the others."
        for row in failing
    ] + [
        f"{_run(row)}: the best program scores {row['dealt_auc']:.3f} with the training labels dealt to other rows, so "
        "its score is not learned; its held-out score is refused."
        for row in carrying
    ]


def _dealt_note(ran: pd.DataFrame) -> list[str]:
    """What the best programs score where the training labels say nothing; empty if no program ran."""
    if ran["dealt_auc"].isna().all():
        return []
    highest = ran.sort_values("dealt_auc", ascending=False).to_dict("records")[0]
    flagged = int(results.carries_labels(ran).sum())
    return [
        "With the training labels dealt to other rows, a program has nothing to learn, and one that carries labels "
        f"keeps its score. The best programs then have {ran['dealt_auc'].mean():.3f} on average and at most "
        f"{highest['dealt_auc']:.3f} ({_run(highest)}). Found to carry labels: {flagged} of {len(ran)}."
    ]


def _run(row: Mapping[Any, Any]) -> str:
    return f"{label(row['method'])} on {row['task']}, seed {row['seed']}"


def _cell(on_task: pd.DataFrame, method: str) -> str:
    """A cell of the shown table, from the rows of its task."""
    found = on_task[on_task["method"] == method].to_dict("records")
    if not found or found[0]["n"] == 0:
        return NOT_RUN
    row, top = found[0], on_task["best_mean"].max()
    text = f"{row['best_mean']:.3f}"
    text = f"**{text}**" if text == f"{top:.3f}" and top > 0 else text
    text += f" ± {row['best_std']:.3f}" if row["n"] > 1 else ""
    return text + _in_parentheses(row["held_out_mean"])


def _last_row(data: MainTable) -> list[str]:
    average = data.shared_scores.groupby("method")[["best", "held_out_score"]].mean()
    cells = [f"mean of {counted(len(data.tasks), 'task')}"]
    for method in data.methods:
        if method not in average.index or not data.tasks:
            cells.append(NOT_RUN)
            continue
        text, top = f"{average['best'][method]:.3f}", f"{average['best'].max():.3f}"
        text = f"**{text}**" if text == top and not top.startswith("-") else text
        cells.append(text + _in_parentheses(float(average["held_out_score"][method])))
    return cells


def _in_parentheses(score: float) -> str:
    return "" if np.isnan(score) else f" ({score:.3f})"


def _mean_gap(gaps: pd.DataFrame, generator: np.random.Generator) -> Interval:
    if gaps.empty:
        return statistics.NO_INTERVAL
    return statistics.bootstrap(statistics.strata_of(gaps, "gap"), statistics.mean_over_tasks, generator)
