"""Figure and tables of the notebook `consistency`: what a discount inside an action does to the value of a policy, and
which estimator of the KL has which gradient."""

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from etpo_paper.report import plotting
from etpo_paper.report.names import counted
from etpo_paper.report.tables import Table

DISCOUNTS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
LONGEST_ACTIONS = (1, 2, 3, 4)
GRADIENTS = {
    ("action", "loss", "full"): "∇ KL[π‖ρ]: what is wanted",
    ("action", "loss", "k1"): "0",
    ("action", "loss", "k2"): "∇ KL[π‖ρ]",
    ("action", "loss", "k3"): "∇ KL[ρ‖π]",
    ("action", "reward", "k1"): "∇ KL[π‖ρ]",
    ("action", "reward", "k2"): "neither",
    ("action", "reward", "k3"): "∇ KL[π‖ρ] - ∇ KL[ρ‖π]",
    ("token", "loss", "k1"): "0",
    ("token", "loss", "k2"): "∇ KL[π‖ρ] at fixed prefixes",
    ("token", "loss", "k3"): "∇ KL[ρ‖π] at fixed prefixes",
    ("token", "loss", "k3 with ratio"): "∇ KL[π‖ρ] at fixed prefixes",
    ("token", "loss", "full"): "∇ KL[π‖ρ] at fixed prefixes",
    ("token", "reward", "k1"): "∇ KL[π‖ρ]",
    ("token", "reward", "k2"): "neither",
    ("token", "reward", "k3"): "neither",
    ("token", "reward", "full"): "the rest of ∇ KL[π‖ρ]",
}  # of what, where and which; what its mean gradient is
ROUNDING = 1e-12  # gaps below are rounding errors, which differ from machine to machine


def gaps(
    gap: Callable[[int, float], float],
    longest_actions: Sequence[int] = LONGEST_ACTIONS,
    discounts: Sequence[float] = DISCOUNTS,
) -> pd.DataFrame:
    """The gap between the token level and the action level for each longest action and inner discount.

    Args:
        gap: maps the tokens of the longest action and the discount inside an action to the largest error of V(s).
        longest_actions: worlds to look at.
        discounts: discounts inside an action.

    Returns:
        Columns longest_action, inner_discount and gap, which is 0 where it is only a rounding error.
    """
    table = pd.DataFrame(
        {"longest_action": longest, "inner_discount": discount, "gap": gap(longest, discount)}
        for longest in longest_actions
        for discount in discounts
    )
    table.loc[table["gap"] < ROUNDING, "gap"] = 0.0
    return table


def figure(found: pd.DataFrame) -> Figure:
    """The gap over the inner discount, a curve for each longest action.

    Args:
        found: see `gaps`.
    """
    figure, axes = plt.subplots(figsize=(plotting.PAGE_WIDTH, 3.2))
    longest = found["longest_action"].map(lambda tokens: counted(tokens, "token")).rename("longest action")
    count = longest.nunique()
    seaborn.lineplot(
        found,
        x="inner_discount",
        y="gap",
        hue=longest,
        style=longest,
        palette=[plt.get_cmap("viridis")(place / 4) for place in range(count)],
        markers=list(plotting.MARKERS[:count]),
        dashes=[("", (5, 1.5), (1.5, 1), (6, 1, 1, 1))[place % 4] for place in range(count)],
        errorbar=None,
        markersize=5,
        markeredgecolor="white",
        ax=axes,
    )
    axes.set(xlabel="discount inside an action", ylabel="largest error of V(s),\nin units of reward")
    meaning = (
        "The error of the token-level backup against an enumeration of whole actions, the largest over the states of "
        "one random world under one random policy. It is 0 at a discount of exactly 1."
    )
    figure.tight_layout()
    plotting.footnote(figure, [meaning])
    return figure


def table(found: pd.DataFrame) -> Table:
    """The gaps, a row for each inner discount and a column for each longest action.

    Args:
        found: see `gaps`.
    """
    wide = found.pivot(index="inner_discount", columns="longest_action", values="gap")
    wide = wide.rename_axis(index="inner discount", columns=None).reset_index()
    wide = wide.rename(columns={longest: counted(longest, "token") for longest in found["longest_action"].unique()})
    caption = "Largest error of V(s) against brute force, by the longest action; 0.000 is below 1e-12."
    return Table(wide, caption, digits={"inner discount": 2})


def kl_table(found: Sequence[pd.Series], nats: float) -> Table:
    """What the gradient of each estimator of the KL is, and how far it is from the one that is wanted.

    Args:
        found: of each world, the projection on and the cosine with the gradient of KL[π‖ρ] of whole actions: columns
            along and cosine, by the keys of `GRADIENTS`.
        nats: KL of an action in these worlds.
    """
    numbers = pd.concat(found).groupby(level=[0, 1, 2]).mean().loc[list(GRADIENTS)].reset_index()
    numbers.columns = ["of", "as", "estimator", "along", "cosine"]
    # A gradient of 0 has no direction, and rounding differs from machine to machine.
    nothing = numbers["along"].abs() < ROUNDING
    numbers.loc[nothing, ["along", "cosine"]] = [0.0, float("nan")]
    shown = numbers.assign(gradient=list(GRADIENTS.values()))
    caption = (
        f"Mean gradient of each estimator of the KL, {counted(len(found), 'random world')} with {nats} nats an action: "
        "its length along the gradient of KL[π‖ρ] of whole actions, in units of that, and the cosine between them."
    )
    return Table(numbers, caption, shown[["of", "as", "estimator", "gradient", "along", "cosine"]])
