"""Perplexity before and after training: the figure and tables of the notebook `perplexity`.

The stage `perplexity` measures three kinds of text that have nothing to do with the tasks. The pretrained model is
called "base" there, and "reference" is the model that every method starts from.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from etpo_paper.data.corpora import CORPORA
from etpo_paper.report import notebook, plotting, results
from etpo_paper.report.names import label, ordered, task_label
from etpo_paper.report.tables import Table, number_cell


@dataclass(frozen=True, eq=False)
class Perplexities:
    """What the notebook shows.

    Attributes:
        rows: see `results.load_perplexity`.
        runs: a row for each trained policy and text, see `paired_runs`.
        changes: a row for each method and text, see `before_and_after`.
        methods: methods with trained policies.
        titles: text -> its title, with a dagger if it is a stand-in.
        notes: see `results.notes`, and what is to be said about the texts.
    """

    rows: pd.DataFrame
    runs: pd.DataFrame
    changes: pd.DataFrame
    methods: list[str]
    titles: Mapping[str, str]
    notes: list[str]


def collect(scale: str) -> Perplexities:
    """What the notebook shows, from the table that the stage `perplexity` wrote.

    Raises:
        UserError: nothing was measured.
    """
    rows = results.load_perplexity(scale)
    results.require_rows(rows, "perplexities", scale, "perplexity")
    runs, left_out = paired_runs(rows)
    changes = before_and_after(runs)
    methods = ordered(changes["method"])
    named = rows.dropna(subset="stand_in")
    stand_ins = dict(zip(named["corpus"], named["stand_in"], strict=True))
    titles = {name: task_label(CORPORA[name].title, stand_ins.get(name)) for name in CORPORA}
    notes = [f"{titles[name]}: {text}." for name, text in stand_ins.items()]
    if len(runs):
        notes = results.notes(scale, runs, methods, intervals=False) + notes
    else:
        notes.append("No trained policy was measured: their weights are not on this disk.")
    if left_out:
        notes.append(f"{left_out} rows are not shown: they were measured on another text than the reference.")
    return Perplexities(rows, runs, changes, methods, titles, notes)


def paired_runs(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Puts each trained policy beside the model that its training started from.

    Args:
        rows: evaluations/{scale}/perplexity.csv, as `results.load_perplexity` reads it.

    Returns:
        A frame with a row for each run and corpus: method, task, seed, corpus, tokens, nll, base and reference (the
        nll of these two models) and change (of the perplexity, after / before - 1); and the number of rows that were
        left out because they were measured on another text or with other windows than the reference.
    """
    rows = rows.copy()
    # The end of a key identifies text, window and precision. Rows without keys are taken to belong together.
    rows["text"] = rows["key"].astype(str).str.rsplit("-", n=1).str[-1] if "key" in rows else ""
    place = ["corpus", "text"]
    base = rows.loc[rows["model"] == "base", [*place, "nll"]].rename(columns={"nll": "base"})
    own = rows.loc[rows["model"] == "reference", place].merge(base, "left", place)
    runs = rows[~rows["model"].isin(["base", "reference"])]
    paired = runs.rename(columns={"model": "method", "before_nll": "reference"}).merge(own, on=place)
    paired["change"] = np.expm1((paired["nll"] - paired["reference"]).astype(float))
    names = "method task seed corpus tokens nll base reference change"
    return paired[names.split()], len(runs) - len(paired)


def before_and_after(paired: pd.DataFrame) -> pd.DataFrame:
    """Summarises what training changed, by method and text.

    Args:
        paired: the frame that `paired_runs` returns.

    Returns:
        A row for each method and corpus, over its runs: method, corpus, runs, tokens (scored in each run), base
        (perplexity before the warm start), before (perplexity of the reference), after (exp of the mean nll), change
        (after / before - 1), change_low and change_high (the smallest and largest change of a run).
    """
    table = []
    for (method, corpus), group in paired.groupby(["method", "corpus"]):
        before, after = group["reference"].mean(), group["nll"].mean()
        table.append(
            {
                "method": method,
                "corpus": corpus,
                "runs": len(group),
                "tokens": int(group["tokens"].iloc[0]),
                "base": math.exp(group["base"].mean()),
                "before": math.exp(before),
                "after": math.exp(after),
                "change": math.expm1(after - before),
                "change_low": group["change"].min(),
                "change_high": group["change"].max(),
            }
        )
    names = "method corpus runs tokens base before after change change_low change_high"
    return pd.DataFrame(table, columns=names.split())


def answer(data: Perplexities) -> str:
    """By how much training changed the perplexity of each text."""
    changes = data.changes.set_index(["method", "corpus"])["change"]
    texts = [
        f"{label(method)} "
        + ", ".join(
            f"{title} {changes[method, name]:+.1%}" for name, title in data.titles.items() if (method, name) in changes
        )
        for method in data.methods
    ]
    return notebook.answer(
        f"Perplexity after training against before: {'; '.join(texts) or 'not measured'}.", data.notes
    )


def untrained(data: Perplexities) -> pd.DataFrame:
    """Perplexity of the pretrained model and of the reference, a row for each text."""
    rows = data.rows[data.rows["model"].isin(["base", "reference"])]
    wide = rows.pivot(index="corpus", columns="model", values="perplexity")
    return wide.reindex(list(CORPORA)).reindex(columns=["base", "reference"]).round(2)


def figure(data: Perplexities) -> Figure:
    """The change of perplexity of each run, a panel for each text and a row for each method, with the method's mean."""
    height = 0.9 + 0.32 * max(1, len(data.methods))
    figure, panels = plt.subplots(1, len(CORPORA), figsize=(plotting.PAGE_WIDTH, height), sharex=True, sharey=True)
    means = data.changes.set_index(["method", "corpus"])["change"]
    for axes, name in zip(panels, CORPORA, strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for row, method in enumerate(data.methods):
            if (method, name) not in means:
                continue
            runs = data.runs[(data.runs["method"] == method) & (data.runs["corpus"] == name)]
            values = 100 * runs["change"].to_numpy(float)
            beside = 0.5 * (np.arange(len(values)) - (len(values) - 1) / 2) / max(1, len(values) - 1)
            look: dict[str, Any] = {"color": plotting.colour(method), "alpha": 0.7, "markeredgewidth": 0, "zorder": 3}
            axes.plot(values, row + beside, "o", markersize=3.5, **look)
            axes.plot([100 * means[method, name]] * 2, [row - 0.38, row + 0.38], color="black", linewidth=1.2)
        axes.set_title(data.titles[name])
    panels[0].set_yticks(range(len(data.methods)), [label(method) for method in data.methods])
    panels[0].set_ylim(max(1, len(data.methods)) - 0.5, -0.5)
    panels[0].xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    panels[1].set_xlabel("change of perplexity by training, %")
    figure.tight_layout()
    meaning = (
        "A dot is the policy of one run; a bar is the perplexity at the mean log-likelihood of a method's runs. "
        "Right of 0 the text is predicted worse than before training."
    )
    plotting.footnote(figure, [meaning if data.methods else "", *data.notes])
    return figure


def table(data: Perplexities) -> Table:
    """Perplexity before and after training, a row for each text and method."""
    order = {name: place for place, name in enumerate([*CORPORA, *data.methods])}
    numbers = data.changes.sort_values(["corpus", "method"], key=lambda column: column.map(order), ignore_index=True)
    rows = numbers.to_dict("records")
    shown = pd.DataFrame(
        {
            "Text": [data.titles[row["corpus"]] for row in rows],
            "Method": [label(row["method"]) for row in rows],
            "Runs": numbers["runs"],
            "Tokens": numbers["tokens"],
            "Base": [number_cell(row["base"], ".2f") for row in rows],
            "Before → after": [f"{row['before']:.2f} → {row['after']:.2f}" for row in rows],
            "Change": [f"{row['change']:+.2%}" for row in rows],
            "Least and most": [f"{row['change_low']:+.2%}, {row['change_high']:+.2%}" for row in rows],
        }
    )
    caption = "Perplexity before and after training: the reference, and the mean over the trained policies."
    return Table(numbers, caption, shown, data.notes, digits=2)
