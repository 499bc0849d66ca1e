"""Which settings a variant of a method changes, and how well its runs did: the notebook `tuning`.

A variant is a section of settings under a name of its own that says which method it is (`method: etpo`). The settings
that a finished run used are read from its card, not from `params.yaml`: after a choice the sections there change, and
the runs that led to the choice must keep their labels.

Standard errors are of the mean over the actions of *one* run. The actions of a batch are written by one policy, and
many repair an earlier one, so they are not independent: whole batches are resampled, not single actions.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from etpo_core.errors import UserError
from etpo_paper.base.settings import Settings, load_settings, scales
from etpo_paper.base.upgrades import upgrade
from etpo_paper.report import notebook, plotting, results
from etpo_paper.report.names import counted, label, ordered
from etpo_paper.report.statistics import DRAWS, budget
from etpo_paper.report.tables import Table, number_cell

SCORES = ["mean", "last_half", "last_quarter", "last_quarter_runs"]
UNCHANGED = "as in params.yaml"
# A panel for each of them that a scale has variants of.
METHODS = ("etpo", "etpo_tried", "etpo_memory", "ppo_kl", "ppo_kl_memory")
SMOOTHED = 3  # updates in a running mean
_LEGEND_WIDTH = 38  # characters in a line


def method_of(name: str, section: Mapping[str, Any]) -> str:
    """The method that a section of settings belongs to: the one that it names, otherwise the section's own name."""
    return section.get("method", name)


def changes(section: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in which a variant differs from its method's section, in that section's order.

    Those that it overrides in the section `training` are under the key `training`.

    Args:
        section: settings of the variant; `method`, which says whose variant it is, does not count as a setting.
        base: settings of the method.
    """
    order = [*base, *(key for key in section if key not in base)]
    return {
        key: section[key]
        for key in order
        if key != "method" and key in section and (key not in base or section[key] != base[key])
    }


def describe(changed: Mapping[str, Any]) -> str:
    """Changes as a label, e.g. "policy_lr 0.0003, critic_lr 0.001"; `UNCHANGED` if there are none."""
    flat = {key: value for key, value in changed.items() if key != "training"} | changed.get("training", {})
    texts = [f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in flat.items()]
    return ", ".join(texts) or UNCHANGED


def used_settings(card: Path, name: str) -> dict[str, Any]:
    """The settings of the method in a run card, in today's words.

    Args:
        card: the file.
        name: the run's method.

    Raises:
        UserError: the card does not hold them.
    """
    parameters = json.loads(card.read_text(encoding="utf-8")).get("parameters") or {}
    if "method" not in parameters:
        raise UserError(f"{card} does not say which settings the run used; delete its folder and run again")
    return upgrade(parameters, name)["method"]


def variants(cards: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The variants that have finished runs: which method they belong to, and what they change.

    Args:
        cards: see `results.load_cards`.
        settings: of the scale; changes are counted from the sections of its methods.

    Returns:
        Columns name (the run's `method`), method and changes (text), a row for each variant.

    Raises:
        UserError: a card does not say which settings were used, or runs of one name used different ones.
    """
    rows: dict[str, tuple[str, str]] = {}
    for card in cards[cards["status"] == "finished"].to_dict("records"):
        name, folder = card["method"], card["folder"]
        section = used_settings(folder / "run_card.json", name)
        method = method_of(name, section)
        row = (method, describe(changes(section, settings.methods[method].plain())))
        if rows.setdefault(name, row) != row:
            raise UserError(f"runs of {name} used different settings; delete {folder} and run again")
    return pd.DataFrame([(name, *row) for name, row in rows.items()], columns=["name", "method", "changes"])


def planned(settings: Settings) -> pd.DataFrame:
    """The variants that a scale asks for, with the columns of `variants`."""
    rows = []
    for name in settings.method_names:
        section = settings.methods[name].plain()
        method = method_of(name, section)
        rows.append((name, method, describe(changes(section, settings.methods[method].plain()))))
    return pd.DataFrame(rows, columns=["name", "method", "changes"])


def missing_notes(status: pd.DataFrame, settings: Settings, methods: Sequence[str]) -> list[str]:
    """One line for each method with planned variants that are not finished: which they are.

    Args:
        status: see `results.run_status`.
        settings: of the scale.
        methods: methods whose variants count.
    """
    unfinished = set(status.loc[status["status"] != "finished", "method"])
    notes = []
    for method in methods:
        wanted = planned(settings).query("method == @method")
        missing = wanted[wanted["name"].isin(unfinished)]
        if len(missing):
            count = f"{len(missing)} of {counted(len(wanted), 'variant')} not finished"
            notes.append(f"{label(method)}: {count} ({'; '.join(missing['changes'])}).")
    return notes


def standard_error(
    values: np.ndarray, batches: np.ndarray, generator: np.random.Generator, draws: int = DRAWS
) -> float:
    """The standard error of the mean of dependent values, by a bootstrap over the batches that they belong to.

    A resample has one batch fewer than there are. The standard deviation of means of n batches resampled from n is too
    small by a factor of √((n - 1) / n), which matters for the few batches in a quarter of a run.

    Args:
        values: a number for each environment step, [N].
        batches: the batch of each step, [N].
        generator: source of the random numbers.
        draws: how many times the batches are resampled, with replacement.

    Returns:
        The error in the units of `values`; NaN for a single batch.
    """
    by_batch = pd.Series(np.asarray(values, dtype=float)).groupby(np.asarray(batches)).agg(["sum", "count"]).to_numpy()
    if len(by_batch) < 2:
        return float("nan")
    drawn = by_batch[generator.integers(len(by_batch), size=(draws, len(by_batch) - 1))].sum(axis=1)
    return float((drawn[:, 0] / drawn[:, 1]).std())


def run_scores(steps: pd.DataFrame, updates: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """How well each run did within the environment steps that all runs have, a row for each run.

    Args:
        steps: see `results.load_steps`.
        updates: see `results.load_updates`; of the same runs.
        generator: source of the random numbers for the standard errors, used run by run in the order of the rows.

    Returns:
        Columns method, task and seed; mean, last_half and last_quarter (mean reward over all steps, their last half and
        their last quarter; ROC AUC, failures -1); last_quarter_runs (share of programs that run); each with a standard
        error, `..._error`; and largest_kl, the largest KL[π‖ρ] per action of any update, in nats.
    """
    limit, rows = budget(steps), []
    runs: Any = steps.sort_values("step").groupby(["method", "task", "seed"], sort=True)
    for key, run in runs:
        run = run.head(limit)
        half, quarter = run.tail(max(1, limit // 2)), run.tail(max(1, limit // 4))
        parts = {
            "mean": (run["reward"], run["update"]),
            "last_half": (half["reward"], half["update"]),
            "last_quarter": (quarter["reward"], quarter["update"]),
            "last_quarter_runs": (quarter["status"] == "ok", quarter["update"]),
        }
        row = dict(zip(["method", "task", "seed"], key, strict=True))
        for name, (values, batches) in parts.items():
            row[name] = float(values.mean())
            row[f"{name}_error"] = standard_error(values.to_numpy(), batches.to_numpy(), generator)
        same = (updates[["method", "task", "seed"]] == list(key)).all(axis=1)
        row["largest_kl"] = float(updates.loc[same & (updates["update"] <= run["update"].max()), "kl_per_action"].max())
        rows.append(row)
    columns = [name + end for name in SCORES for end in ("", "_error")]
    return pd.DataFrame(rows, columns=["method", "task", "seed", *columns, "largest_kl"])


def ranking(scores: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The variants of each method, sorted by their mean reward over the last half of the steps, the highest first.

    A variant with fewer runs than another cannot be compared with it yet, and comes after it.

    Args:
        scores: see `run_scores`.
        known: see `variants`; other runs are left out.

    Returns:
        The columns of `known`, the scores as means over a variant's runs with the standard errors of these means,
        largest_kl over its runs, and runs (their number over tasks and seeds); sorted by method, then by rank.
    """
    groups = scores.groupby("method")
    table = groups[SCORES].mean()
    for name in SCORES:
        # Runs are independent, so the variances of their means add up. How much seeds differ is not part of it.
        table[f"{name}_error"] = groups[f"{name}_error"].agg(lambda errors: float(np.linalg.norm(errors)) / len(errors))
    table["largest_kl"], table["runs"] = groups["largest_kl"].max(), groups.size()
    table = known.merge(table, left_on="name", right_index=True)
    place = {method: rank for rank, method in enumerate(ordered(table["method"]))}
    return table.sort_values(
        ["method", "runs", "last_half", "name"],
        key=lambda column: column.map(place) if column.name == "method" else column,
        ascending=[True, False, False, True],
        ignore_index=True,
    )


@dataclass(frozen=True, eq=False)
class Tuning:
    """What the notebook shows.

    Attributes:
        updates: updates of the known variants.
        untrained: mean reward of the untrained model, or None if it was not run.
        scores: see `run_scores`.
        ranking: see there.
        methods: methods with planned variants, in the order of the panels.
        tasks: tasks of the runs.
        budget: environment steps of the shortest run.
        batch: environment steps between two updates, where a variant does not change it.
        notes: see `results.notes`, and what is to be said about the variants.
    """

    updates: pd.DataFrame
    untrained: float | None
    scores: pd.DataFrame
    ranking: pd.DataFrame
    methods: list[str]
    tasks: list[str]
    budget: int
    batch: int
    notes: list[str]


def load(scale: str, generator: np.random.Generator) -> Tuning:
    """Reads the runs of a scale whose methods are variants.

    Args:
        scale: whose runs to read.
        generator: source of the random numbers for the standard errors.

    Raises:
        UserError: the scale is no round of tuning, or no variant has a finished run; the message says how to make them.
    """
    settings = load_settings(scale)
    if "perplexity" in settings.named:  # as in pipeline/select.py: a round of tuning only trains
        rounds = ", ".join(name for name, file in scales().items() if file != "params.yaml")
        raise UserError(f"scale {scale} compares methods and is no round of tuning; choose one of: {rounds}")
    counts = planned(settings)["method"].value_counts()
    methods = [method for method in METHODS if method in counts]
    known = variants(results.load_cards(scale), settings)
    known = known[known["method"].isin(methods)]
    if known.empty:
        raise UserError(f"no finished run of scale {scale}; make them: python -m pipeline.matrix --scale {scale}")
    steps, updates = results.load_steps(scale), results.load_updates(scale)
    untrained = steps.loc[steps["method"] == "reflection", "reward"]
    steps, updates = (frame[frame["method"].isin(known["name"])] for frame in (steps, updates))
    scores, tasks = run_scores(steps, updates, generator), sorted(steps["task"].unique())

    status = results.run_status(scale)
    notes = results.notes(scale, steps, [], intervals=False)
    notes.append(f"Variants planned: {', '.join(f'{label(method)} {counts[method]}' for method in methods)}.")
    notes += missing_notes(status, settings, methods)
    notes += results.missing_notes(status[status["method"] == "reflection"])
    notes += _shared_tasks(scale, tasks)
    return Tuning(
        updates=updates,
        untrained=float(untrained.mean()) if len(untrained) else None,
        scores=scores,
        ranking=ranking(scores, known),
        methods=methods,
        tasks=tasks,
        budget=budget(steps),
        batch=settings.training.environments * settings.training.steps_per_update,
        notes=notes,
    )


def answer(data: Tuning) -> str:
    """The best variant of each method with its score, and the score of the next one."""

    def best(method: str) -> str:
        rows = data.ranking[data.ranking["method"] == method].to_dict("records")
        if not rows:
            return f"{label(method)} not finished"
        first = f"{label(method)} {_score(rows[0], 'last_half')} ({rows[0]['changes']}"
        return first + (f"; next {_score(rows[1], 'last_half')}: {rows[1]['changes']})" if len(rows) > 1 else ")")

    return notebook.answer(
        f"Highest mean reward over the last half of {data.budget} steps: {'; '.join(map(best, data.methods))}.",
        data.notes,
    )


def figure(data: Tuning) -> Figure:
    """The learning curves of the variants, a panel for each method, with the untrained model as a dotted line.

    The legend of a panel stands on its right, the best variant first, and has the panel's height at most.
    """
    known = data.untrained is not None
    lines = [
        sum(len(textwrap.wrap(text, _LEGEND_WIDTH)) for text in data.ranking.query("method == @method")["changes"])
        for method in data.methods
    ]
    heights = [max(1.4, 0.145 * (count + known)) for count in lines]
    size = (plotting.PAGE_WIDTH, sum(heights) + 0.35 * len(heights) + 0.4)
    figure, grid = plt.subplots(
        len(data.methods), 1, figsize=size, sharex=True, sharey=True, squeeze=False, height_ratios=heights
    )
    panels = list(grid[:, 0])
    for axes, method in zip(panels, data.methods, strict=True):
        _panel(axes, data, method)
        axes.set_ylabel("mean reward of a batch")
    panels[-1].set_xlabel("update")
    figure.tight_layout()
    figure.subplots_adjust(right=0.52)
    plotting.footnote(figure, [f"Curves are running means of {SMOOTHED} updates.", *data.notes])
    return figure


def table(data: Tuning) -> Table:
    """The scores of the variants, sorted by the rule of choice; the chosen one of each method is bold."""
    scores = [
        name + end for name in ("last_half", "mean", "last_quarter", "last_quarter_runs") for end in ("", "_error")
    ]
    numbers = data.ranking[["method", "name", "changes", *scores, "largest_kl", "runs"]]
    best = set(numbers.groupby("method").head(1)["name"])
    rows = numbers.to_dict("records")
    halves = [_score(row, "last_half") for row in rows]
    shown = pd.DataFrame(
        {
            "Method": [label(row["method"]) for row in rows],
            "What it changes": [row["changes"] for row in rows],
            "Last half": [
                f"**{half}**" if row["name"] in best else half for row, half in zip(rows, halves, strict=True)
            ],
            "All steps": [_score(row, "mean") for row in rows],
            "Last quarter": [_score(row, "last_quarter") for row in rows],
            "Runs, last quarter": [_score(row, "last_quarter_runs") for row in rows],
            "Largest KL per action": [f"{row['largest_kl']:.1f}" for row in rows],
            "Runs": [row["runs"] for row in rows],
        }
    )
    if len(data.tasks) > 1:  # what the choice rests on, task by task
        by_task = data.scores.pivot_table(index="method", columns="task", values="last_half").loc[numbers["name"]]
        for place, task in enumerate(data.tasks):
            shown.insert(3 + place, f"On {task}", [number_cell(value, ".2f") for value in by_task[task]])
    caption = (
        f"Variants within {data.budget} environment steps ({data.batch} a batch where nothing else is said) on "
        f"{', '.join(data.tasks)}: mean reward, share of programs that run, KL in nats."
    )
    return Table(numbers, caption, shown, data.notes)


def _panel(axes: Axes, data: Tuning, method: str) -> None:
    rows = data.ranking[data.ranking["method"] == method].to_dict("records")
    shades = plt.get_cmap("plasma")
    for place, row in enumerate(rows):
        curve = data.updates[data.updates["method"] == row["name"]].groupby("update")["mean_reward"].mean()
        smooth = curve.rolling(SMOOTHED, center=True, min_periods=1).mean()
        axes.plot(
            smooth.index + 1,
            smooth,
            color=shades(0.82 * place / max(1, len(rows) - 1)),
            linestyle=plotting.DASHES[place % len(plotting.DASHES)],
            linewidth=2.4 if place == 0 else 1.4,
            zorder=3 - 0.1 * place,
            label=textwrap.fill(row["changes"], _LEGEND_WIDTH),
        )
    if data.untrained is not None:
        look = plotting.line("reflection") | {"linestyle": ":", "label": f"{label('reflection')} (untrained)"}
        axes.axhline(data.untrained, linewidth=1.2, **look)
    axes.set_title(label(method))
    plotting.whole_numbers(axes)
    if rows or data.untrained is not None:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, fontsize=7)


def _score(row: Mapping[Any, Any], name: str) -> str:
    """A score with its standard error as text."""
    error = row[f"{name}_error"]
    return f"{row[name]:.2f}" + (f" ± {error:.2f}" if np.isfinite(error) else "")


def _shared_tasks(scale: str, tasks: Sequence[str]) -> list[str]:
    """A line if the tasks of a scale belong to other scales as well."""
    shared = [name for name in scales() if name != scale and set(load_settings(name).tasks) & set(tasks)]
    if not shared:
        return []
    return [
        f"{', '.join(tasks)} {'is also a task' if len(tasks) == 1 else 'are also tasks'} of other scales "
        f"({', '.join(shared)}), whose results are therefore not independent of this choice."
    ]
