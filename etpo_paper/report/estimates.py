"""What estimators of a token's advantage are worth: the third figure and table of the notebook `learning`.

The stage `estimates` enumerates small worlds with actions of different lengths. Noise is shown as the number of actions
at which the noise of a batch's gradient equals the gradient: fewer are better, and twice as many need twice the work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from etpo_paper.base.settings import Benchmark, load_settings
from etpo_paper.report import notebook, plotting, results
from etpo_paper.report.names import counted, label
from etpo_paper.report.tables import Table

HALFWAY, REFERENCE = "halfway", "reference"
SOFT = {"etpo_1": "λ = 1", "etpo_0": "λ = 0", "etpo_1_late": "λ = 1, V lags", "etpo_0_late": "λ = 0, V lags"}
DRAWN = ("ppo_kl", "grpo", "ntpo", "poad", "etpo_1", "etpo_0", "etpo_0_late", "vine_1", "vine_9")
OWN = {"etpo_0_late": "#E69F00", "etpo_0": "#8C2D04", "vine_1": "#999999", "vine_9": "#000000"}


@dataclass(frozen=True, eq=False)
class Estimates:
    """What the notebook shows.

    Attributes:
        rows: see `results.load_estimates`, the mean over worlds, a row for each kind, policy, length and estimator.
        titles: of the kinds, by name, in their order.
        plan: the section `worlds.benchmark` of the settings.
    """

    rows: pd.DataFrame
    titles: Mapping[str, str]
    plan: Benchmark

    @property
    def longest(self) -> int:
        """Tokens of the longest actions."""
        return int(self.rows["length"].max())

    @property
    def notes(self) -> list[str]:
        """Where this was computed."""
        worlds = counted(len(self.plan.worlds), "world")
        return [
            f"Means over {worlds} of each kind, β = {self.plan.beta}. All numbers are sums over all actions; nothing "
            "is drawn. Every estimator is given the exact value of the policy at hand; where V lags, the reference's."
        ]

    def of(self, kind: str, policy: str, length: int | None = None) -> pd.DataFrame:
        """The rows of a kind, a policy and, if given, a length, by estimator."""
        rows = self.rows[(self.rows["kind"] == kind) & (self.rows["policy"] == policy)]
        return rows[rows["length"] == length].set_index("estimator") if length else rows


def name_of(estimator: str) -> str:
    """The words for an estimator."""
    if estimator in SOFT:
        return f"{label('etpo')}, {SOFT[estimator]}"
    if estimator.startswith("vine_"):
        return f"VinePPO, {counted(int(estimator.removeprefix('vine_')), 'continuation')}"
    return f"{label('oreo')}, {label('poad')} with λ = 1" if estimator == "oreo" else label(estimator)


def load(scale: str, titles: Mapping[str, str]) -> Estimates:
    """Reads the estimates of a scale.

    Args:
        scale: whose results.
        titles: of the kinds of worlds, by name.

    Raises:
        UserError: they were not computed; the message says how to.
    """
    rows = results.load_estimates(scale)
    results.require_rows(rows, "estimates", scale, "estimates")
    keys = ["kind", "policy", "length", "estimator"]
    means = rows.groupby(keys, sort=False).mean(numeric_only=True).drop(columns="world").reset_index()
    titles = {kind: title for kind, title in titles.items() if kind in set(rows["kind"])}
    return Estimates(means, titles, load_settings(scale).worlds.benchmark)


def answer(data: Estimates) -> str:
    """Actions that each of a few needs until the signal equals the noise, and what the Monte-Carlo value costs."""
    parts = []
    for kind, title in data.titles.items():
        rows = data.of(kind, HALFWAY, data.longest)
        found = "; ".join(f"{name_of(e)} {rows['actions'][e]:.1f}" for e in DRAWN)
        parts.append(f"{title}: {found}")
    drawn = rows["drawn"]["vine_9"]
    return notebook.answer(
        f"Actions of {data.longest} tokens, halfway to the optimum: how many of them it takes until the "
        "gradient equals its noise. "
        + ". ".join(parts)
        + f". The Monte-Carlo value with 9 continuations draws {drawn:.1f} times the tokens."
    )


def figure(data: Estimates) -> Figure:
    """Bias, noise of a token's advantage and noise of a batch's gradient over the length, a row for each kind."""
    columns = {
        "bias": "bias of an advantage",
        "deviation": "its deviation",
        "actions": "actions until the\nsignal equals the noise",
    }
    figure, panels = plt.subplots(
        len(data.titles), len(columns), figsize=(plotting.PAGE_WIDTH, 4.6), sharex=True, squeeze=False
    )
    for line, (kind, title) in zip(panels, data.titles.items(), strict=True):
        rows = data.of(kind, HALFWAY)
        for axes, (column, words) in zip(line, columns.items(), strict=True):
            for place, estimator in enumerate(DRAWN):
                curve = rows[rows["estimator"] == estimator].sort_values("length")
                axes.plot(curve["length"], curve[column], **_look(estimator, place))
            axes.set(xscale="log", title=f"{title}:\n{words}")
            axes.set_xticks(sorted(rows["length"].unique()), [str(x) for x in sorted(rows["length"].unique())])
            axes.minorticks_off()
            if column == "actions":
                axes.set_yscale("log")
    for axes in panels[-1]:
        axes.set_xlabel("tokens of an action")
    figure.tight_layout()
    plotting.legend_above(figure, [panels[0, 0]])
    meaning = (
        "Root mean squares over tokens, in units of reward, at a policy with half the reference's regret; a batch's "
        "gradient is that of the logits of each prefix. Where all tokens of a prefix share a bias, as in PPO-KL, the "
        "gradient is right on average. Of VinePPO's the tokens of the continuations are not counted."
    )
    plotting.footnote(figure, [meaning, *data.notes])
    return figure


def table(data: Estimates) -> Table:
    """The longest actions, halfway: bias, noise, the gradient's error, actions that are needed, and tokens drawn."""
    shown = pd.DataFrame()
    for kind, title in data.titles.items():
        rows = data.of(kind, HALFWAY, data.longest)
        if shown.empty:
            shown["Estimator"] = [name_of(str(e)) for e in rows.index]
        for column, words in (("bias", "bias"), ("deviation", "deviation"), ("off", "gradient off by")):
            shown[f"{title}: {words}"] = [f"{x:.2f}" for x in rows[column]]
        shown[f"{title}: actions"] = [f"{x:.1f}" for x in rows["actions"]]
    shown["Tokens drawn"] = [f"{x:.1f}" for x in rows["drawn"]]
    caption = (
        f"Estimators of a token's advantage, actions of {data.longest} tokens, halfway to the optimum: bias and "
        "deviation in units of reward; error of the mean gradient, in lengths of the true one; actions until the "
        "gradient equals its noise; tokens drawn for each token of the batch."
    )
    return Table(data.rows, caption, shown, data.notes)


def _look(estimator: str, place: int) -> dict[str, Any]:
    base = "etpo" if estimator in SOFT else estimator
    return {
        "color": OWN.get(estimator, plotting.colour(base)),
        "linestyle": plotting.DASHES[place % len(plotting.DASHES)],
        "marker": plotting.MARKERS[place % len(plotting.MARKERS)],
        "markersize": 3.5,
        "label": name_of(estimator),
    }
