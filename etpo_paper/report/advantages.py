"""How well gradients of small batches agree with that of many actions: figure and table of the notebook `advantages`.

The stage `gradients` measures cosines between the two, for advantages that are alike for all tokens of an action, and
for λ-returns less a value V(prefix) that was fitted to some number of other actions.
"""

from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from etpo_core.errors import UserError
from etpo_paper.base.settings import load_settings
from etpo_paper.report import notebook, plotting, results
from etpo_paper.report.names import counted
from etpo_paper.report.tables import Table


@dataclass(frozen=True, eq=False)
class Cosines:
    """What the notebook shows.

    Attributes:
        rows: see `results.load_gradients`.
        batch: actions of a batch.
        model: the model that wrote the actions.
        draws: batches that the means are over, None if the scale does not say how many.
    """

    rows: pd.DataFrame
    batch: int
    model: str
    draws: int | None

    @property
    def alike(self) -> dict[Any, Any]:
        """The row in which all tokens of an action have the same advantage."""
        return self.rows[self.rows["known"].isna()].to_dict("records")[0]

    @property
    def each(self) -> pd.DataFrame:
        """The rows in which each token has an advantage of its own."""
        return self.rows[self.rows["known"].notna()].astype({"known": int})

    @property
    def compared(self) -> int:
        """How many actions give the direction that batches are compared with."""
        return int(self.alike["actions"]) // 3

    @property
    def note(self) -> str:
        """Whose actions these are."""
        alike = self.alike
        model = self.model if self.model == "codellama" else f"{self.model}, a stand-in for CodeLlama-7B"
        return (
            f"{int(alike['actions'])} actions of the untrained model ({model}) on {alike['task']}, a task on "
            "which settings are chosen and nothing is reported."
        )


def load(scale: str) -> Cosines:
    """Reads the cosines of a scale.

    Raises:
        UserError: they were not measured; the message says how to.
    """
    rows = results.load_gradients(scale)
    if rows.empty:
        command = f"python -m pipeline.gradients --scale {scale}"
        raise UserError(f"evaluations/{scale}/gradients.csv is not there; make it: {command}")
    settings = load_settings(scale)
    batch = settings.training.environments * settings.training.steps_per_update
    return Cosines(rows, batch, settings.model, settings.gradients.draws if settings.gradients else None)


def answer(data: Cosines) -> str:
    """The best cosine with advantages of each token's own, beside that of advantages that are alike."""
    alike, each = data.alike, data.each
    best = each.nlargest(1, "cosine").to_dict("records")[0]
    blind = each[(each["known"] == 0) & (each["lam"] < 1)]
    return notebook.answer(
        f"A batch of {data.batch} actions, all tokens of an action weighed alike: cosine {alike['cosine']:.2f} ± "
        f"{alike['error']:.2f}. With a value fitted to {best['known']} other actions and λ = {best['lam']:g}: "
        f"{best['cosine']:.2f} ± {best['error']:.2f}. With λ < 1 and no value yet: at most "
        f"{blind['cosine'].max():.2f}.",
        [data.note],
    )


def figure(data: Cosines) -> Figure:
    """The cosine over λ, a curve for each number of actions that V was fitted to."""
    alike, each = data.alike, data.each
    figure, axes = plt.subplots(figsize=(plotting.PAGE_WIDTH, 3.6))
    shades = plt.get_cmap("viridis")
    numbers = sorted(each["known"].unique())
    for place, known in enumerate(numbers):
        rows = each[each["known"] == known].sort_values("lam")
        axes.errorbar(
            rows["lam"],
            rows["cosine"],
            rows["error"],
            color=shades(0.85 * (1 - place / max(1, len(numbers) - 1))),
            marker=plotting.MARKERS[place % len(plotting.MARKERS)],
            linestyle=plotting.DASHES[place % len(plotting.DASHES)],
            markersize=4,
            label="V = 0" if known == 0 else f"V fitted to {counted(known, 'action')}",
        )
    axes.axhline(alike["cosine"], color=plotting.colour("ppo_kl"), linestyle="-.", label="all tokens alike")
    ends = alike["cosine"] - alike["error"], alike["cosine"] + alike["error"]
    axes.axhspan(*ends, color=plotting.colour("ppo_kl"), alpha=0.15)
    axes.set_xlabel("λ of the returns inside an action")
    axes.set_ylabel(f"cosine of a batch of {data.batch} actions\nwith {data.compared} others, mean over batches")
    figure.tight_layout()
    plotting.legend_above(figure, [axes])
    errors = f"Bars and band are one standard error of the mean over {data.draws or 'the'} batches."
    plotting.footnote(figure, [errors, data.note])
    return figure


def table(data: Cosines) -> Table:
    """The cosines, a row for each number of actions and a column for each λ."""
    shown = data.each.pivot(index="known", columns="lam", values="cosine").reset_index()
    shown.columns = pd.Index(["actions known", *(f"λ = {lam:g}" for lam in shown.columns[1:])])
    alike = data.alike["cosine"]
    caption = f"Cosine of a batch with {data.compared} other actions; all tokens alike: {alike:.2f}."
    return Table(data.rows, caption, shown, digits=2)
