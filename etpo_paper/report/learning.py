"""Regret in worlds whose optimum is known: the figure and table of the notebook `learning`.

The stage `worlds` trains every variant of every method there. A variant is shown under the label of its method if it
has one; the variants of the released update mend its departures from the paper one after the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from etpo_paper.base.settings import Worlds, load_settings
from etpo_paper.report import notebook, plotting, results
from etpo_paper.report.names import LABELS, counted, label, ordered
from etpo_paper.report.tables import Table

MENDED = {
    "released": "as it stands",
    "released_1": "+ policy's loss under π",
    "released_2": "+ reference in the target policy",
    "released_3": "+ Q = β (z - z_ρ) instead of z",
    "released_4": "+ KL in time, two-sided Huber",
    "released_5": "+ AdamW, float32",
    "released_6": "+ τ = 0.9, λ = 1",
}
OTHERS = {"etpo_exact": "ETPO, exact policy step", "etpo_residual": "ETPO, residual reading of Q"}
FLOOR = 1e-3  # of the logarithmic axis


@dataclass(frozen=True, eq=False)
class Regrets:
    """What the notebook shows.

    Attributes:
        reported: see `results.load_regret`; only the worlds that no learning rate was chosen on.
        plan: the section `worlds` of the settings.
        final: regret over the last tenth of the updates, a row for each variant: mean, min and max over the worlds.
        start: regret of the reference, where every variant starts.
    """

    reported: pd.DataFrame
    plan: Worlds
    final: pd.DataFrame
    start: float

    @property
    def methods(self) -> list[str]:
        """The variants that have a label of their own, in the order of every table."""
        return ordered(variant for variant in self.final.index if variant in LABELS)

    @property
    def notes(self) -> list[str]:
        """What was trained on."""
        worlds, actions = counted(len(self.plan.seeds), "world"), self.plan.environments * self.plan.steps
        return [f"{worlds}, β = {self.plan.beta}, γ = {self.plan.gamma}, {actions} actions an update."]


def load(scale: str) -> Regrets:
    """Reads the regrets of a scale.

    Raises:
        UserError: they were not measured; the message says how to.
    """
    rows = results.load_regret(scale)
    results.require_rows(rows, "regrets", scale, "worlds")
    reported = rows[rows["purpose"] == "reported"]
    start = reported[reported["update"] == 0].groupby("variant")["regret"].mean().max()
    last = reported[reported["update"] >= 0.9 * reported["update"].max()]
    by_world = last.groupby(["variant", "world"])["regret"].mean()
    return Regrets(
        reported, load_settings(scale).worlds, by_world.groupby("variant").agg(["mean", "min", "max"]), start
    )


def answer(data: Regrets) -> str:
    """The regret of each method after training."""
    plan, final = data.plan, data.final["mean"]
    return notebook.answer(
        f"Regret after {plan.updates} updates, where the reference itself has {data.start:.2f}: "
        + "; ".join(f"{label(method)} {final[method]:.3f}" for method in data.methods)
        + f". Means over random worlds ({len(plan.seeds)}) of {plan.states} states, {plan.vocabulary} tokens and "
        f"actions of up to {plan.longest} tokens; each variant's learning rate was chosen on another world, from the "
        "same candidates."
    )


def figure(data: Regrets) -> Figure:
    """Regret over updates: the methods on the left, the released update as it is mended on the right."""
    shades = plt.get_cmap("viridis")
    mended = [variant for variant in MENDED if variant in data.final.index]
    figure, (left, right) = plt.subplots(1, 2, figsize=(plotting.PAGE_WIDTH, 4.4), sharey=True)
    _draw(left, data, data.methods, lambda place, variant: plotting.line(variant))
    _draw(
        right,
        data,
        mended,
        lambda place, variant: {
            "color": shades(place / len(MENDED)),
            "linestyle": plotting.DASHES[place % len(plotting.DASHES)],
            "label": MENDED[variant],
        },
    )
    left.set_title("methods")
    right.set_title("the released update, mended")
    left.set_ylabel("regret V* - V$^π$, in units of reward")
    figure.tight_layout()
    figure.tight_layout()  # again: the legends hang relative to the height that the first call gave the panels
    meaning = (
        "Lines are means over the worlds. To the right of them is the regret over the last tenth of the updates: "
        "a mark for its mean, and a bar from the best to the worst world."
    )
    mending = "Each variant on the right also has the changes of those above it." if mended else ""
    plotting.footnote(figure, [meaning, mending, *data.notes])
    return figure


def table(data: Regrets) -> Table:
    """Regret after training, a row for each variant."""
    final = data.final.loc[[*data.methods, *(v for v in data.final.index if v not in data.methods)]]
    rates = data.reported.groupby("variant")["learning_rate"].first()
    numbers = pd.DataFrame(
        {
            "variant": final.index,
            "regret": final["mean"].to_numpy(),
            "least": final["min"].to_numpy(),
            "most": final["max"].to_numpy(),
            "worlds": len(data.plan.seeds),
            "learning_rate": rates[final.index].to_numpy(),
        }
    )
    rows = numbers.to_dict("records")
    shown = pd.DataFrame(
        {
            "Variant": [name_of(row["variant"]) for row in rows],
            "Regret": [f"{row['regret']:.3f}" for row in rows],
            "Best and worst world": [f"{row['least']:.3f}, {row['most']:.3f}" for row in rows],
            "Learning rate": [f"{row['learning_rate']:g}" for row in rows],
        }
    )
    caption = (
        f"Regret after {data.plan.updates} updates in worlds where the optimum is known; "
        f"the reference has {data.start:.2f}."
    )
    return Table(numbers, caption, shown, data.notes)


def _draw(axes: Axes, data: Regrets, variants: Sequence[str], look: Callable[[int, str], dict[str, Any]]) -> None:
    last = int(data.reported["update"].max())
    for place, variant in enumerate(variants):
        rows = data.reported[data.reported["variant"] == variant]
        mean = rows.groupby("update")["regret"].mean().clip(lower=FLOOR)
        marker = plotting.MARKERS[place % len(plotting.MARKERS)]
        line = look(place, variant) | {"marker": marker, "markersize": 4}
        axes.plot(mean.index, mean, markevery=(2 * place, 2 * len(plotting.MARKERS)), **line)
        end = data.final.loc[variant].clip(lower=FLOOR)
        x = last * (1.05 + 0.04 * place)  # beside one another, so that no range hides another
        axes.plot([x, x], [end["min"], end["max"]], color=line["color"], linewidth=2.4, solid_capstyle="butt")
        axes.plot([x], [end["mean"]], marker=marker, markersize=4, color=line["color"])
    axes.set_xticks(np.linspace(0, last, 4))
    axes.set_yscale("log")
    axes.set_xlabel("update")
    axes.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.2), borderaxespad=0.0)


def name_of(variant: str) -> str:
    """The words for a variant, whether it has a label or not."""
    if variant in OTHERS:
        return OTHERS[variant]
    if variant in MENDED and variant not in LABELS:
        return f"Released {MENDED[variant]}"
    return label(variant)
