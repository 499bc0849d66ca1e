"""The few numbers of each method that `dvc metrics` and `dvc plots` show and compare.

They are means over the finished runs of a scale, tasks and seeds alike, without intervals: they tell at a glance what a
changed setting does. What is claimed stands in the notebooks' tables, with intervals.
"""

from typing import Any

import pandas as pd

from etpo_paper.report import results, statistics
from etpo_paper.report.names import ordered
from etpo_paper.report.perplexity import before_and_after, paired_runs

CURVES = {"reward": "mean_reward", "share_that_runs": "share_runs", "kl_per_action": "kl_per_action"}


def metrics(scale: str) -> dict[str, dict[str, Any]]:
    """The numbers of each method that has finished runs.

    Returns:
        method -> its numbers. "final_reward" is the mean reward over the last fifth of a run's environment steps,
        "mean_reward" that over all of them (the area under the learning curve, divided by its length), and
        "share_that_runs" the share of programs of the last fifth that run. "kl_per_action" is KL[π‖ρ] in nats over the
        updates of the last fifth; a method that does not train has none. "perplexity_change" maps each text to the
        relative change by training, for methods whose policies were measured.
    """
    scores, updates = statistics.run_scores(results.load_steps(scale)), results.load_updates(scale)
    measured = results.load_perplexity(scale)
    changes = before_and_after(paired_runs(measured)[0]).set_index("method") if len(measured) else pd.DataFrame()
    table: dict[str, dict[str, Any]] = {}
    for method in ordered(scores["method"]):
        own, learnt = scores[scores["method"] == method], updates[updates["method"] == method]
        row: dict[str, Any] = {
            "final_reward": _mean(own["last_mean"]),
            "mean_reward": _mean(own["mean"]),
            "share_that_runs": _mean(own["last_runs"]),
        }
        last = learnt["steps"] > 0.8 * learnt.groupby(results.KEYS)["steps"].transform("max")
        if learnt["kl_per_action"].notna().any():
            row["kl_per_action"] = _mean(learnt.loc[last, "kl_per_action"])
        if method in changes.index:
            texts = changes.loc[[method]]
            row["perplexity_change"] = {
                corpus: round(float(change), 6) for corpus, change in zip(texts["corpus"], texts["change"], strict=True)
            }
        table[method] = row
    return table


def curves(scale: str) -> dict[str, pd.DataFrame]:
    """The learning curves of each method: steps, and the columns of `CURVES`, means over the finished runs."""
    updates = results.load_updates(scale)
    return {
        method: updates[updates["method"] == method]
        .groupby("steps")[[*CURVES.values()]]
        .mean()
        .rename(columns={column: name for name, column in CURVES.items()})
        .reset_index()
        for method in ordered(updates["method"])
    }


def _mean(values: pd.Series) -> float:
    return round(float(values.mean()), 6)
