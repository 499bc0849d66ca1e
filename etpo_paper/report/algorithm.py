"""One update of ETPO as a table of steps and as a drawing: what the notebook `algorithm` shows beside its numbers."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from etpo_paper.report import plotting
from etpo_paper.report.tables import Table

_AGENT, _WORLD, _LEARN, _FROZEN = "#F6C9A8", "#CFE0EE", "#D3EBDD", "#E4E4E4"


def steps() -> Table:
    """One update in eight steps, each with the function that computes it."""
    numbers = pd.DataFrame(
        [
            ("1 write", "draw the action token by token from the policy, given the state", "rollout"),
            ("2 execute", "run the code: reward r, done, next state s' (the error, if it failed)", "environment"),
            ("3 divergence", "KL(policy, reference) at each prefix, full vocabulary", "bellman.kl_divergence"),
            ("4 worth", "V = mean of target Q under the policy - β KL, at each prefix", "bellman.soft_value"),
            (
                "5 targets",
                "V of the next prefix; r + gamma (1 - done) V(s') at the last token",
                "bellman.token_targets",
            ),
            ("6 critic", "minimise (Q - target) squared at the tokens written", "losses.critic_loss"),
            ("7 policy", "minimise KL(policy, reference exp(Q/β) / Z) at each prefix", "losses.policy_loss"),
            ("8 target critic", "target Q = tau target Q + (1 - tau) Q; back to 1", "agent"),
        ],
        columns=["step", "what is done", "where"],
    )
    return Table(numbers, "ETPO, one update in eight steps.")


def workflow() -> Figure:
    """The loop from a state to the policy's update, with the backup of values inside an action."""
    figure = plt.figure(figsize=(6.2, 2.9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 18.4), ylim=(0, 8.4))
    axes.axis("off")

    _box(axes, 0.2, 5.3, 3.4, 1.5, "state $s_t$\ntask prompt, or failed\ncode with its error", _WORLD)
    _box(axes, 4.7, 5.3, 3.2, 1.5, "policy $\\pi$\nlanguage model\nthat learns", _AGENT)
    _box(axes, 9.7, 5.3, 3.2, 1.5, "action $a_t$\n$w^1\\; w^2\\, \\cdots\\; w^L$\ncode, run as a whole", _AGENT)
    _box(axes, 14.3, 5.3, 3.6, 1.5, "executor\nruns the code,\nscores the classifier", _WORLD)
    _arrow(axes, (3.7, 6.05), (4.6, 6.05))
    _arrow(axes, (8.0, 6.05), (9.6, 6.05), "token\nby token", (0, 0.5))
    _arrow(axes, (13.0, 6.05), (14.2, 6.05))
    fails = "it fails: reward -1, and the next state $s_{t+1}$ shows the error"
    _arrow(axes, (16.1, 6.9), (1.9, 6.9), fails, (0, 0.98), bend=0.08)

    axes.add_patch(FancyBboxPatch((9.1, 0.9), 9.0, 2.8, boxstyle="round,pad=0.05", fc=_LEARN, ec="#444444", lw=0.9))
    axes.text(12.3, 3.3, "per-token soft Bellman backup", ha="center", va="center", fontsize=7.5)
    _box(axes, 9.3, 1.8, 1.4, 0.8, "$Q(w^1)$", "white")
    _box(axes, 11.4, 1.8, 1.4, 0.8, "$Q(w^2)$", "white")
    _box(axes, 13.5, 1.8, 1.4, 0.8, "$Q(w^L)$", "white")
    _box(axes, 15.5, 1.8, 2.4, 0.8, "$r_t+\\gamma V(s_{t+1})$", "white")
    for x in (11.35, 13.45, 15.45):
        _arrow(axes, (x, 2.2), (x - 0.6, 2.2))
    axes.text(13.15, 2.45, "$\\cdots$", ha="center", va="center", fontsize=9)
    inside = "$V = \\mathbb{E}_\\pi[\\bar Q]-\\beta\\,$KL of the next prefix, no discount"
    axes.text(12.6, 1.35, inside, ha="center", va="center", fontsize=7)
    _arrow(axes, (16.7, 5.2), (16.7, 2.7), "reward $r_t$", (-0.85, 0.65))

    _box(axes, 4.6, 1.5, 3.4, 1.4, "policy update\n$\\pi \\to \\rho\\,\\exp(Q/\\beta)\\,/\\,Z$", _LEARN)
    _box(axes, 0.5, 1.5, 2.8, 1.4, "reference $\\rho$\nlanguage model,\nfrozen", _FROZEN)
    _arrow(axes, (9.0, 2.2), (8.1, 2.2), "$Q$")
    _arrow(axes, (3.4, 2.2), (4.5, 2.2), "$\\rho$")
    _arrow(axes, (1.9, 1.4), (9.0, 1.15), "$\\mathrm{KL}[\\pi\\|\\rho]$", (0, -0.95), bend=0.14)
    _arrow(axes, (6.3, 3.0), (6.3, 5.2), "learn", (-0.65, 0), colour="#D55E00", width=1.6)
    meaning = (
        "The environment is blue, the agent orange, what learns from a batch green, and what stays fixed grey. "
        "γ discounts from action to action, β is the price of the KL, $\\bar Q$ follows Q slowly, and Z normalises."
    )
    plotting.footnote(figure, [meaning])
    return figure


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    """A rounded box with centred text."""
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.05", fc=colour, ec="#444444", lw=0.9)
    axes.add_patch(shape)
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=7)


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    offset: tuple[float, float] = (0, 0.25),
    bend: float = 0.0,
    colour: str = "#333333",
    width: float = 1.1,
) -> None:
    """An arrow, with words beside its middle."""
    style = {"arrowstyle": "-|>", "lw": width, "color": colour, "connectionstyle": f"arc3,rad={bend}"}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
    x, y = ((a + b) / 2 + o for a, b, o in zip(start, end, offset, strict=True))
    axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
