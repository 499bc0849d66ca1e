"""Which settings a variant of a method changes, and how well its run did.

A variant is a section of `params.yaml` under a name of its own that says which method it is (`method: etpo`). What a
finished run used is read from its card, not from `params.yaml`: once a choice is made, the sections there move on, and
the runs that led to it must keep their labels.

The errors are of the mean over the actions of *one* run. The actions of a batch are written by one policy, and many
repair one another, so they are no independent draws: batches are drawn anew, not actions.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from etpo_core.errors import UserError
from etpo_paper.base.settings import Settings
from etpo_paper.base.upgrades import upgrade
from etpo_paper.report.plotting import counted, label, ordered
from etpo_paper.report.statistics import DRAWS, budget

SCORES = ["mean", "last_half", "last_quarter", "last_quarter_runs"]
UNCHANGED = "as in params.yaml"


def method_of(name: str, section: Mapping[str, Any]) -> str:
    """The method that a section of settings belongs to: the one it names, or else its own name."""
    return section.get("method", name)


def changes(section: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in which a variant departs from its method's section, in that section's order.

    What it overrides of the section `training` stands under `training`.

    Args:
        section: settings of the variant; `method`, which says whose variant it is, is no setting.
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
    """The variants that have finished runs: whose they are, and what they change.

    Args:
        cards: of `results.load_cards`.
        settings: of the scale; their sections are what changes are counted from.

    Returns:
        Columns name (the run's `method`), method and changes (text), a row a variant.

    Raises:
        UserError: a card does not say which settings were used, or runs of one name used different ones.
    """
    rows = {}
    for card in cards[cards["status"] == "finished"].itertuples():
        section = used_settings(Path(card.folder) / "run_card.json", card.method)
        method = method_of(card.method, section)
        row = (method, describe(changes(section, settings.methods[method].plain())))
        if rows.setdefault(card.method, row) != row:
            raise UserError(f"runs of {card.method} used different settings; delete {card.folder} and run again")
    return pd.DataFrame([(name, *row) for name, row in rows.items()], columns=["name", "method", "changes"])


def planned(settings: Settings) -> pd.DataFrame:
    """The variants that a scale asks for: columns as in `variants`."""
    rows = []
    for name in settings.method_names:
        section = settings.methods[name].plain()
        method = method_of(name, section)
        rows.append((name, method, describe(changes(section, settings.methods[method].plain()))))
    return pd.DataFrame(rows, columns=["name", "method", "changes"])


def missing_notes(status: pd.DataFrame, settings: Settings, methods: Sequence[str]) -> list[str]:
    """One line for each method of which not every planned variant is finished: which are not.

    Args:
        status: of `results.run_status`.
        settings: of the scale.
        methods: whose variants count.
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
    """The standard error of the mean of dependent values: bootstrap over the batches that they came in.

    One batch fewer is drawn than there are, since the spread of n drawn from n understates that of a mean by
    √((n - 1) / n), which is much for the few batches of a quarter of a run.

    Args:
        values: [N] one number an environment step.
        batches: [N] the batch of each.
        generator: source of the draws.
        draws: how many times the batches are drawn anew, with replacement.

    Returns:
        In the units of `values`; NaN for a single batch.
    """
    by_batch = pd.Series(np.asarray(values, dtype=float)).groupby(np.asarray(batches)).agg(["sum", "count"]).to_numpy()
    if len(by_batch) < 2:
        return float("nan")
    drawn = by_batch[generator.integers(len(by_batch), size=(draws, len(by_batch) - 1))].sum(axis=1)
    return float((drawn[:, 0] / drawn[:, 1]).std())


def run_scores(steps: pd.DataFrame, updates: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """One row a run: how well it did within the environment steps that all runs have.

    Args:
        steps: of `results.load_steps`.
        updates: of `results.load_updates`, for the same runs.
        generator: source of the draws for the standard errors, used run by run in the order of the rows.

    Returns:
        Columns method, task and seed; mean, last_half and last_quarter (mean reward over all steps, the last half and
        the last quarter of them; ROC AUC, failures -1); last_quarter_runs (share of programs that run); each with a
        standard error, `..._error`; and largest_kl, the largest KL[π‖ρ] per action of any update, in nats.
    """
    limit, rows = budget(steps), []
    for key, run in steps.sort_values("step").groupby(["method", "task", "seed"], sort=True):
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
    """The variants of each method, the best first: highest mean reward over the last half of the steps.

    A variant with fewer runs than another cannot be compared with it yet, and stands below it.

    Args:
        scores: of `run_scores`.
        known: of `variants`; other runs are left out.

    Returns:
        Columns of `known`, the scores as means over a variant's runs with the errors of those means, largest_kl over
        its runs, and runs (their number, tasks and seeds together); sorted by method, then by rank.
    """
    groups = scores.groupby("method")
    table = groups[SCORES].mean()
    for name in SCORES:
        # The runs are independent; how much seeds differ, one run a variant cannot say.
        table[f"{name}_error"] = groups[f"{name}_error"].agg(lambda errors: np.linalg.norm(errors) / len(errors))
    table["largest_kl"], table["runs"] = groups["largest_kl"].max(), groups.size()
    table = known.merge(table, left_on="name", right_index=True)
    place = {method: rank for rank, method in enumerate(ordered(table["method"]))}
    return table.sort_values(
        ["method", "runs", "last_half", "name"],
        key=lambda column: column.map(place) if column.name == "method" else column,
        ascending=[True, False, False, True],
        ignore_index=True,
    )
