"""Credit token by token: which tokens of an action a method considers good or bad; the notebook `credit`.

A method that trains stores with each sample the text of its tokens (`pieces`) and a number for each of them (`credit`):
how much better the method considers the token to be than the policy's mean, in units of reward. From these samples this
module takes what the figure shows: a few actions of the first and the last fifth of training, chosen by a fixed rule,
and what the table shows: one number for how concentrated an action's credit is.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from etpo_core.errors import UserError
from etpo_paper.report import notebook, plotting, results, statistics
from etpo_paper.report.coloured_code import code_height, coloured_code
from etpo_paper.report.names import counted, label, ordered, task_label
from etpo_paper.report.results import EARLY, LATE, period
from etpo_paper.report.tables import Table, interval_cells

METHODS = ("ppo_kl", "etpo", "etpo_action_level")
OUTCOMES = {False: "failed", True: "ran"}  # of an action, by whether it ran
ROWS = [(when, ran) for when in (EARLY, LATE) for ran in OUTCOMES]  # of the figure

_RUN = ["method", "task", "seed"]
# Sizes of the figure in inches. A panel is 76 letters wide.
_WIDTH, _GAP, _HEAD, _TITLE_LINE, _BAR, _BELOW_CODE = 4.56, 0.5, 0.3, 0.125, 0.1, 0.75


def with_credit(samples: pd.DataFrame, scale: str) -> pd.DataFrame:
    """The samples of the runs that kept credit, marked by time and outcome.

    Args:
        samples: see `results.load_samples`.
        scale: where they come from; named in the error.

    Returns:
        The samples of the runs in which every sample has `pieces` and `credit`, with two more columns: when (see
        `results.period`) and ran (whether the status is "ok").

    Raises:
        UserError: no run has them; the message says how to make them.
    """
    frame = samples[_complete(samples)].reset_index(drop=True)
    if frame.empty:
        folders = " ".join(f"results/{scale}/{method}" for method in ordered(samples["method"]))
        raise UserError(
            f"the samples of scale {scale} hold no credit of tokens, because an older version made them; "
            f"make them again: rm -r {folders}; make repro SCALE={scale}"
        )
    return frame.assign(when=period(frame["update"]), ran=frame["status"] == "ok")


def left_out(samples: pd.DataFrame) -> list[str]:
    """A line for each method that has runs which `with_credit` leaves out.

    Args:
        samples: see `results.load_samples`.
    """
    runs = samples[~_complete(samples)].drop_duplicates(_RUN)["method"].value_counts()
    return [
        f"{label(method)}: {counted(runs[method], 'run')} left out, made by an older version that kept no credit."
        for method in ordered(runs.index)
    ]


def examples(samples: pd.DataFrame) -> pd.DataFrame:
    """Actions to look at: for each method, early and late, one that failed and one that ran.

    They are chosen by a fixed rule: the last action in the order of update, step and seed. (The very first actions
    would show nothing: a critic that still equals the reference considers all tokens alike.)

    Args:
        samples: see `with_credit`; of one task.

    Returns:
        At most one row for each method, when and ran.
    """
    frame = samples.sort_values(["update", "step", "seed"])
    shown = frame[frame["when"].isin([EARLY, LATE])]
    return shown.drop_duplicates(["method", "when", "ran"], keep="last").reset_index(drop=True)


def concentration(credit: Sequence[float]) -> float:
    """The share of an action's total |credit| that belongs to the tenth of its tokens with the largest |credit|.

    Args:
        credit: a number for each token, [tokens], in any unit. If a tenth of the tokens is not a whole number, the last
            of them counts in part.

    Returns:
        0.1 if all tokens are alike, up to 1 if a tenth of them has all the credit; NaN if all credit is 0.
    """
    sizes = np.sort(np.abs(np.asarray(credit, dtype=float)))[::-1]
    total = sizes.sum()
    if not total > 0:
        return float("nan")
    whole, tenths = divmod(len(sizes), 10)
    return float((sizes[:whole].sum() + tenths / 10 * sizes[whole : whole + 1].sum()) / total)


def largest(credit: Sequence[float]) -> float:
    """The largest |credit| of an action's tokens, in units of reward.

    Args:
        credit: a number for each token, [tokens].
    """
    return float(np.max(np.abs(np.asarray(credit, dtype=float))))


def by_run(samples: pd.DataFrame) -> pd.DataFrame:
    """Each run's credit in numbers, early and late, for actions that failed and for actions that ran.

    Args:
        samples: see `with_credit`.

    Returns:
        Columns method, task, seed, when, ran, actions (their number) and the means over these actions of tokens (their
        number), concentration (see there) and largest (see there). Actions whose credit is 0 throughout have no
        concentration and are not counted.
    """
    frame = samples[samples["when"].isin([EARLY, LATE])]
    measured = frame[[*_RUN, "when", "ran"]].assign(
        tokens=[len(pieces) for pieces in frame["pieces"]],
        concentration=[concentration(values) for values in frame["credit"]],
        largest=[largest(values) for values in frame["credit"]],
    )
    groups = measured.dropna().groupby([*_RUN, "when", "ran"])
    return groups.agg(
        actions=("tokens", "size"),
        tokens=("tokens", "mean"),
        concentration=("concentration", "mean"),
        largest=("largest", "mean"),
    ).reset_index()


def _complete(samples: pd.DataFrame) -> pd.Series:
    # A run that an older version began and a newer one resumed has credit in its later part only, so that its early
    # and late parts cannot be compared.
    has = samples["credit"].notna() & samples["pieces"].notna()
    return has.groupby([samples[column] for column in _RUN]).transform("all").astype(bool)


@dataclass(frozen=True, eq=False)
class Credit:
    """What the notebook shows.

    Attributes:
        scale: whose runs they are.
        samples: see `with_credit`.
        methods: methods with finished runs that kept credit.
        stand_ins: see `results.stand_ins`.
        older: see `left_out`.
    """

    scale: str
    samples: pd.DataFrame
    methods: list[str]
    stand_ins: dict[str, str]
    older: list[str]

    @property
    def notes(self) -> list[str]:
        """What a reader must know beside the table."""
        return [*results.notes(self.scale, self.samples, METHODS), *self.older]


def load(scale: str) -> Credit:
    """Reads the samples of a scale.

    Raises:
        UserError: no method has a finished run, or none kept credit.
    """
    samples = results.load_samples(scale)
    samples = samples[samples["method"].isin(results.finished_methods(samples, METHODS))]
    kept = with_credit(samples, scale)
    stand_ins = results.stand_ins(results.load_cards(scale))
    return Credit(scale, kept, results.finished_methods(kept, METHODS), stand_ins, left_out(samples))


def by_method(data: Credit, generator: np.random.Generator) -> pd.DataFrame:
    """Concentration and largest credit of each method, early and late, for failed actions and for those that ran.

    Args:
        data: what the notebook shows.
        generator: source of the random numbers for the intervals.

    Returns:
        Columns method, outcome, when, actions (their number) and, each with the ends of its interval, concentration
        and largest: means over actions, then over the runs of a task, then over tasks.
    """
    runs = by_run(data.samples)
    rows = []
    for method in data.methods:
        for ran, outcome in OUTCOMES.items():
            for when in (EARLY, LATE):
                group = runs[(runs["method"] == method) & (runs["ran"] == ran) & (runs["when"] == when)]
                row = {"method": method, "outcome": outcome, "when": when, "actions": int(group["actions"].sum())}
                for name in ("concentration", "largest"):
                    strata = statistics.strata_of(group, name)
                    mean = statistics.mean_over_tasks
                    interval = statistics.bootstrap(strata, mean, generator) if strata else statistics.NO_INTERVAL
                    row |= statistics.named(name, interval)
                rows.append(row)
    return pd.DataFrame(rows)


def answer(data: Credit, found: pd.DataFrame) -> str:
    """How concentrated the credit of failed actions is at the end of training.

    Args:
        data: what the notebook shows.
        found: see `by_method`.
    """
    late = found[(found["outcome"] == OUTCOMES[False]) & (found["when"] == LATE)]
    shares = zip(late["method"], late["actions"], interval_cells(late, "concentration"), strict=True)
    return notebook.answer(
        "In actions that fail in the last fifth of training, the tenth of the tokens with the most credit holds this "
        "share of it: "
        + "; ".join(f"{label(method)} {text if count else '(no action failed)'}" for method, count, text in shares)
        + ". All tokens alike would be 0.100.",
        data.notes,
    )


def table(data: Credit, found: pd.DataFrame) -> Table:
    """Concentration and largest credit, a row for each method, outcome and time.

    Args:
        data: what the notebook shows.
        found: see `by_method`.
    """
    shown = pd.DataFrame(
        {
            "Method": [label(method) for method in found["method"]],
            "Actions that": found["outcome"],
            "When": found["when"],
            "Actions": found["actions"],
            "Share of credit on the top tenth of tokens": interval_cells(found, "concentration"),
            "Largest credit of a token, in size": interval_cells(found, "largest"),
        }
    )
    caption = "How concentrated credit is in an action (0.1 is all tokens alike), and how large, in units of reward."
    return Table(found, caption, shown, data.notes)


def figure(data: Credit) -> Figure:
    """Actions of one task with the credit of each token as its background.

    Columns are methods; rows are an early and a late action that failed and one that ran, see `examples`. The task is
    the first that all methods have. Text has one fixed size, so the place of everything follows from the number of
    lines.
    """
    methods = data.methods
    task = (results.common_tasks(data.samples, methods) or sorted(data.samples["task"].unique()))[0]
    on_task = data.samples[data.samples["task"] == task]
    actions = {(a["method"], a["when"], a["ran"]): a for a in examples(on_task).to_dict("records")}

    titles = {(method, *row): _title(*row, actions.get((method, *row))) for method in methods for row in ROWS}
    above = [max(titles[m, *row].count("\n") + 1 for m in methods) * _TITLE_LINE + 0.2 for row in ROWS]
    codes = [[actions[m, *row]["pieces"] for m in methods if (m, *row) in actions] for row in ROWS]
    below = [max((code_height(pieces, _WIDTH) for pieces in in_row), default=0.1) for in_row in codes]
    wide, high = len(methods) * (_WIDTH + _GAP) - _GAP, _HEAD + sum(above) + sum(below) + _BELOW_CODE
    figure = plt.figure(figsize=(wide, high))

    def place(column: int, top: float, height: float) -> Axes:
        """Axes in a column, `top` inches below the upper edge."""
        left, bottom = column * (_WIDTH + _GAP) / wide, 1 - (top + height) / high
        return figure.add_axes((left, bottom, _WIDTH / wide, height / high))

    for column, method in enumerate(methods):
        middle = (column * (_WIDTH + _GAP) + _WIDTH / 2) / wide
        figure.text(middle, 1, label(method), ha="center", va="top", fontsize=11, color=plotting.colour(method))
        full = max((largest(a["credit"]) for (m, *_), a in actions.items() if m == method), default=0) or 1.0
        top, colours = _HEAD, None
        for row, title_height, height in zip(ROWS, above, below, strict=True):
            top += title_height
            axes = place(column, top, height)
            top += height
            axes.set_axis_off()
            axes.set_title(titles[method, *row], loc="left", fontsize=7.5, pad=3, parse_math=False)
            if (method, *row) in actions:
                action = actions[method, *row]
                colours = coloured_code(axes, action["pieces"], action["credit"], full)
        if colours is not None:
            bar = figure.colorbar(colours, cax=place(column, top + 0.25, _BAR), orientation="horizontal")
            bar.set_ticks([-full, 0, full], labels=[f"-{full:.2g}", "0", f"{full:.2g}"])
            bar.set_label("credit, in units of reward")
            bar.outline.set_linewidth(0.4)
    notes = results.notes(data.scale, on_task, METHODS)[1:]  # the first is about averages, of which there are none here
    plotting.footnote(figure, [f"Task: {task_label(task, task in data.stand_ins)}.", *notes, *data.older])
    return figure


def _title(when: str, ran: bool, action: Mapping[Any, Any] | None) -> str:
    """When the action was written, its reward, and its error, if any, on up to two lines."""
    text = f"{when}, {OUTCOMES[ran]}: "
    if action is None:
        return text + "none of the actions kept"
    text += f"update {action['update'] + 1}, step {action['step']}, reward {action['reward']:.3f}"
    return text if ran else text + "\n" + textwrap.fill(action["error"] or "", 76, max_lines=2, placeholder=" …")
