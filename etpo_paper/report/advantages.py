"""How well gradients of small batches agree with that of many actions: figure and table of the notebook `advantages`.

The stage `gradients` measures cosines between the two, for advantages that are alike for all tokens of an action, for
λ-returns less a value V(prefix) that was fitted to some number of other actions, and for what each of the other methods
would do in its first update.
"""

from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from etpo_core.errors import UserError
from etpo_paper.base.settings import load_settings
from etpo_paper.report import notebook, plotting, results
from etpo_paper.report.names import counted, label, ordered
from etpo_paper.report.tables import NO_VALUE, Table


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
        return self.rows[(self.rows["method"] == "ppo_kl") & self.rows["known"].isna()].to_dict("records")[0]

    @property
    def each(self) -> pd.DataFrame:
        """The rows of ETPO, in which each token has an advantage of its own."""
        return self.rows[self.rows["method"] == "etpo"].astype({"known": int})

    @property
    def methods(self) -> pd.DataFrame:
        """A row for each method: cosine and error before the first update, and with the value fitted to most actions.

        Both are of λ = 1 for ETPO, as it runs; a method without a value network has no second pair.
        """
        rows = self.rows[(self.rows["method"] != "etpo") | (self.rows["lam"] == 1)]
        rows = rows[(rows["method"] != "ppo_kl") | rows["known"].notna()]
        first = rows[rows["known"].isna() | (rows["known"] == 0)].set_index("method")[["cosine", "error"]]
        later = rows[rows["known"] == self.each["known"].max()].set_index("method")[["cosine", "error"]]
        return first.join(later.add_suffix("_later")).loc[ordered(first.index)]

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
    rows = data.rows
    numbers = rows[(rows["method"] == "etpo") | ((rows["method"] == "ppo_kl") & rows["known"].isna())]
    return Table(numbers.drop(columns="method"), caption, shown, digits=2)


def methods_figure(data: Cosines) -> Figure:
    """The cosine of each method's first update, and the one with a value that is known."""
    rows = data.methods
    figure, axes = plt.subplots(figsize=(plotting.PAGE_WIDTH, 3.2))
    most = int(data.each["known"].max())
    for place, (method, row) in enumerate(rows.iterrows()):
        colour = plotting.colour(str(method))
        for column, face, end in (("cosine", "white", ""), ("cosine_later", colour, "_later")):
            axes.errorbar(
                [row[column]], [-place], xerr=[row[f"error{end}"]], color=colour, marker="o", markersize=5, mfc=face
            )
    axes.set_yticks([-place for place in range(len(rows))], [label(str(method)) for method in rows.index])
    axes.axvline(0.0, color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.set_xlabel(f"cosine of a batch of {data.batch} actions with {data.compared} others, mean over batches")
    figure.tight_layout()
    meaning = (
        "Hollow: the first update, when a value network says 0 (and V of TBRM is that of the logits). Full: with a "
        f"value fitted to {most} other actions, of methods that have one. ETPO has λ = 1, POAD and NTPO λ = 0.95. "
        "Bars are one standard error. ETPO without the token-level backup has the first gradient of ETPO with λ = 1."
    )
    plotting.footnote(figure, [meaning, data.note])
    return figure


def methods_table(data: Cosines) -> Table:
    """The cosine of each method's first update, and the one with a value that is known."""
    rows = data.methods.reset_index()
    most = int(data.each["known"].max())
    shown = pd.DataFrame({"Method": [label(method) for method in rows["method"]]})
    for words, end in (("first update", ""), (f"V fitted to {counted(most, 'action')}", "_later")):
        pairs = zip(rows[f"cosine{end}"], rows[f"error{end}"], strict=True)
        shown[words] = [NO_VALUE if pd.isna(mean) else f"{mean:.2f} ± {error:.2f}" for mean, error in pairs]
    caption = f"Cosine of each method's first gradient, of {data.batch} actions, with {data.compared} other actions."
    return Table(rows, caption, shown, [data.note])
