"""What a discount inside an action does to the value of a policy: figure and table of the notebook `consistency`."""

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
