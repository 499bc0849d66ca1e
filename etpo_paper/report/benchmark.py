"""Which method is right in which kind of world: the second figure and table of the notebook `learning`.

The stage `worlds` trains every method in several worlds of each kind, several times in each. What is shown is the share
of the reference's regret that is left at the end: 0 is the optimum, 1 is as good as not learning, more is worse.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from etpo_paper.base.settings import Benchmark, load_settings
from etpo_paper.report import notebook, plotting, results, statistics
from etpo_paper.report.learning import name_of
from etpo_paper.report.names import counted, ordered
from etpo_paper.report.tables import Table, number_cell

MEAN = "mean"  # over the kinds
FLOOR, CEILING = 3e-3, 3.0  # of the logarithmic axis


@dataclass(frozen=True, eq=False)
class Shares:
    """What is left of the regret.

    Attributes:
        left: a row for each kind (and `MEAN`) and variant: left, left_low, left_high, and middle, halfway through.
        titles: of the kinds, by name, in their order.
        plan: the section `worlds.benchmark` of the settings.
        rates: learning rate of each variant.
    """

    left: pd.DataFrame
    titles: Mapping[str, str]
    plan: Benchmark
    rates: Mapping[str, float]

    @property
    def variants(self) -> list[str]:
        """In the order of every table; variants without a label follow."""
        return ordered(self.left["variant"].unique())

    @property
    def notes(self) -> list[str]:
        """What was trained on."""
        plan = self.plan
        runs = f"{counted(len(plan.worlds), 'world')} of each kind, {counted(len(plan.seeds), 'run')} in each"
        actions = f"{plan.updates} updates of {plan.environments * plan.steps} actions, β = {plan.beta}"
        return [
            f"{runs}, {actions}; intervals hold 95 % of resamplings of the runs within each world. One learning rate "
            "for a method, chosen on a further world of each kind from "
            f"{', '.join(map(str, plan.learning_rates))}."
        ]

    def of(self, kind: str) -> pd.DataFrame:
        """The rows of a kind, by variant."""
        return self.left[self.left["kind"] == kind].set_index("variant")

    def undecided(self, kind: str) -> list[str]:
        """The variants whose interval reaches the best one's."""
        rows = self.of(kind)
        best = rows.sort_values("left").iloc[0]
        return list(rows.index[rows["left_low"].fillna(rows["left"]) <= max(best["left"], best["left_high"])])


def load(scale: str, titles: Mapping[str, str]) -> Shares:
    """Reads the benchmark of a scale.

    Args:
        scale: whose results.
        titles: of the kinds, by name.

    Raises:
        UserError: it was not run; the message says how to.
    """
    rows = results.load_benchmark(scale)
    results.require_rows(rows, "benchmark runs", scale, "worlds")
    rows = rows[rows["purpose"] == "reported"].copy()
    rows["task"] = rows["kind"] + rows["world"].astype(str)
    for point in ("middle", "end"):
        rows[point] /= rows["start"]
    both = pd.concat([rows, rows.assign(kind=MEAN)])
    generator, found = np.random.default_rng(0), []
    for (kind, variant), runs in both.groupby(["kind", "variant"]):
        interval = statistics.bootstrap(statistics.strata_of(runs, "end"), statistics.mean_over_tasks, generator)
        row = {"kind": kind, "variant": variant, **statistics.named("left", interval)}
        found.append(row | {"middle": runs["middle"].mean()})
    rates = {str(v): float(rate) for v, rate in rows.groupby("variant")["learning_rate"].first().items()}
    titles = {kind: title for kind, title in titles.items() if kind in set(rows["kind"])}
    return Shares(pd.DataFrame(found), titles, load_settings(scale).worlds.benchmark, rates)


def answer(data: Shares) -> str:
    """The best methods on average, and where the best one of each kind is someone else."""
    mean = data.of(MEAN)["left"].sort_values()
    first = "; ".join(f"{name_of(v)} {mean[v]:.2f}" for v in mean.index[:4])
    best = {title: data.of(kind)["left"].sort_values().index[0] for kind, title in data.titles.items()}
    each = "; ".join(f"{title}: {name_of(variant)}" for title, variant in best.items())
    return notebook.answer(f"Least regret left, on average over the kinds: {first}. Least in each: {each}.")


def figure(data: Shares) -> Figure:
    """The share of the regret that is left, a panel for each kind and one for their mean, a row for each method."""
    kinds = {**data.titles, MEAN: "mean over kinds"}
    columns = 4
    figure, panels = plt.subplots(
        -(-len(kinds) // columns), columns, figsize=(plotting.PAGE_WIDTH, 5.2), sharex=True, sharey=True, squeeze=False
    )
    places = {variant: -place for place, variant in enumerate(data.variants)}
    for axes, (kind, title) in zip(panels.flat, kinds.items(), strict=False):
        for variant, row in data.of(kind).iterrows():
            y, colour = places[str(variant)], plotting.colour(str(variant))
            ends = [row["left_low"], row["left_high"]]
            axes.plot(np.clip(ends, FLOOR, CEILING), [y, y], color=colour, linewidth=2.2, solid_capstyle="butt")
            axes.plot(np.clip([row["middle"]], FLOOR, CEILING), [y], "o", color=colour, markersize=3, mfc="white")
            axes.plot(np.clip([row["left"]], FLOOR, CEILING), [y], "o", color=colour, markersize=3.5)
        axes.axvline(1.0, color="#BBBBBB", linewidth=0.8, zorder=0)
        axes.set(xscale="log", xlim=(FLOOR / 1.3, CEILING * 1.3), title=title)
        axes.set_yticks(list(places.values()), [name_of(v) for v in places])
    for axes in panels.flat[len(kinds) :]:
        axes.set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("share left")
    figure.tight_layout()
    meaning = (
        "The share of the reference's regret that is left at the end (full, with its interval) and halfway (hollow). "
        f"The grey line is not having learnt. Shares below {FLOOR} and above {CEILING:g} are drawn there."
    )
    plotting.footnote(figure, [meaning, *data.notes])
    return figure


def table(data: Shares) -> Table:
    """The share that is left, a row for each method and a column for each kind."""
    kinds = {**data.titles, MEAN: "Mean"}
    best = {kind: set(data.undecided(kind)) for kind in kinds}
    rows = []
    for variant in data.variants:
        row = {"Method": name_of(variant)}
        for kind, title in kinds.items():
            cell = number_cell(data.of(kind)["left"].get(variant), ".2f")
            row[title] = f"**{cell}**" if variant in best[kind] else cell
        rows.append(row | {"Rate": f"{data.rates[variant]:g}"})
    caption = (
        f"Share of the regret left after {data.plan.updates} updates; "
        "bold: the least, and those whose interval reaches it."
    )
    numbers = data.left.assign(learning_rate=data.left["variant"].map(data.rates))
    return Table(numbers, caption, pd.DataFrame(rows), data.notes)
