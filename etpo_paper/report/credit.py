"""Credit token by token: which tokens of an action a method considers good or bad; the notebook `credit`.

A method that trains stores with each sample the text of its tokens (`pieces`) and a number for each of them (`credit`):
how much better the method considers the token to be than the policy's mean, in units of reward. From these samples this
module takes what the figures show: a few actions of the first and the last fifth of training, chosen by a fixed rule,
and what the table shows: one number for how concentrated an action's credit is. All of it is about the tasks and seeds
that every method shown has, so that methods are compared on the same runs.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from etpo_core.errors import UserError
from etpo_paper.report import notebook, plotting, results, statistics
from etpo_paper.report.ablations import notes_on_seeds
from etpo_paper.report.coloured_code import LINEAR, code_height, coloured_code, credit_colours
from etpo_paper.report.names import counted, label, ordered, task_label
from etpo_paper.report.results import EARLY, LATE, period
from etpo_paper.report.tables import Table, interval_cells

METHODS = ("ppo_kl", "etpo", "etpo_action_level")
OUTCOMES = {False: "failed", True: "ran"}  # of an action, by whether it ran
PERIODS = {EARLY: "First fifth of training", LATE: "Last fifth of training"}

_RUN = ["method", "task", "seed"]
# Sizes of a figure in inches.
_TITLE_LINE, _GAP, _HEAD, _BAR, _BELOW_BAR = 0.13, 0.13, 0.32, 0.1, 0.42
_LETTERS = 88  # of an error message in a line


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
        samples: see `with_credit`; only tasks and seeds that all methods have.
        methods: methods with finished runs that kept credit.
        stand_ins: see `results.stand_ins`.
        seeds: see `ablations.notes_on_seeds`.
        older: see `left_out`.
    """

    scale: str
    samples: pd.DataFrame
    methods: list[str]
    stand_ins: dict[str, str]
    seeds: list[str]
    older: list[str]

    @property
    def notes(self) -> list[str]:
        """What a reader must know beside the table."""
        return [*results.notes(self.scale, self.samples, METHODS), *self.seeds, *self.older]


def load(scale: str) -> Credit:
    """Reads the samples of a scale.

    Raises:
        UserError: no method has a finished run, none kept credit, or the methods have no task and seed in common.
    """
    samples = results.load_samples(scale)
    samples = samples[samples["method"].isin(results.finished_methods(samples, METHODS))]
    kept = with_credit(samples, scale)
    methods = results.finished_methods(kept, METHODS)
    common = results.common_runs(kept, methods)
    if common.empty:
        raise UserError(f"no task and seed of scale {scale} has finished runs of all of {', '.join(methods)}")
    steps = results.load_steps(scale)
    seeds = notes_on_seeds(common, statistics.run_scores(steps[steps["method"].isin(methods)]))
    stand_ins = results.stand_ins(results.load_cards(scale))
    return Credit(scale, common, methods, stand_ins, seeds, left_out(samples))


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


def figures(data: Credit) -> dict[str, Figure]:
    """Actions with the credit of each token as its background: those that failed, and those that ran.

    The task is the first that all methods have. Both figures have the same colours, so that methods, times and figures
    can be compared.

    Returns:
        Name of the file -> figure.
    """
    task = sorted(data.samples["task"].unique())[0]
    on_task = data.samples[data.samples["task"] == task]
    chosen = examples(on_task).to_dict("records")
    colours = credit_colours(max([1.0, *(largest(action["credit"]) for action in chosen)]))
    seeds = ", ".join(map(str, sorted(on_task["seed"].unique())))
    own = results.notes(data.scale, on_task, METHODS)[1:]  # the first is about averages, of which there are none here
    notes = [
        f"Task {task_label(task, task in data.stand_ins)}; seeds that all methods have: {seeds}.",
        "Each action is the last one of its period, by update, step and seed.",
        "Orange tokens are worse than the policy's mean, blue ones better. All actions share one scale of colours, "
        f"linear up to ±{LINEAR} and logarithmic beyond.",
        *own,
        *data.older,
    ]
    found = {}
    for ran, outcome in OUTCOMES.items():
        shown = {(action["when"], action["method"]): action for action in chosen if action["ran"] == ran}
        found[f"tokens_{outcome}"] = _figure(data.methods, outcome, shown, colours, notes)
    return found


def _figure(
    methods: Sequence[str],
    outcome: str,
    actions: Mapping[tuple[str, str], Mapping[Any, Any]],
    colours: ScalarMappable,
    notes: Sequence[str],
) -> Figure:
    """Actions below one another: an early and a late one of each method.

    Letters have one fixed size, so the place of everything follows from the number of lines.

    Args:
        methods: in the order in which they are shown.
        outcome: of all actions, a value of `OUTCOMES`.
        actions: (when, method) -> action, see `examples`.
        colours: of the tokens.
        notes: lines under the figure.
    """
    width = plotting.PAGE_WIDTH
    errors = {at: _error(action) for at, action in actions.items()}
    heights = {at: code_height(action["pieces"], width) for at, action in actions.items()}
    lines = {(when, m): 1 + len(errors.get((when, m), [])) for when in PERIODS for m in methods}
    blocks = [lines[at] * _TITLE_LINE + heights.get(at, 0.0) + _GAP for at in lines]
    high = len(PERIODS) * _HEAD + sum(blocks) + 2 * _GAP + _BAR + _BELOW_BAR
    figure = plt.figure(figsize=(width, high))

    def place(top: float, height: float, left: float = 0.0, wide: float = width) -> Axes:
        """Axes `top` inches below the upper edge."""
        return figure.add_axes((left / width, 1 - (top + height) / high, wide / width, height / high))

    def write(top: float, text: str, **look: Any) -> None:
        figure.text(0, 1 - top / high, text, ha="left", va="top", parse_math=False, **look)

    top = 0.0
    for when, title in PERIODS.items():
        write(top + 0.08, f"{title}, actions that {outcome}", fontsize=9, fontweight="bold")
        top += _HEAD
        for method in methods:
            at = when, method
            write(top, _title(method, actions.get(at)), fontsize=7.5, fontweight="bold")
            for line in errors.get(at, []):
                top += _TITLE_LINE
                write(top, line, fontsize=7)
            top += _TITLE_LINE
            if at in actions:
                coloured_code(place(top, heights[at]), actions[at]["pieces"], actions[at]["credit"], colours)
                top += heights[at]
            top += _GAP
    ends = 0.25  # room for half a number on either side
    bar = figure.colorbar(colours, cax=place(top + _GAP, _BAR, ends, width - 2 * ends), orientation="horizontal")
    ticks = [-1, -0.1, -LINEAR, 0, LINEAR, 0.1, 1]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.minorticks_off()
    bar.set_label("credit of a token, in units of reward")
    bar.outline.set_linewidth(0.4)
    plotting.footnote(figure, notes)
    return figure


def _title(method: str, action: Mapping[Any, Any] | None) -> str:
    """Who wrote the action, when, and what it earned."""
    if action is None:
        return f"{label(method)}: no such action is among those kept"
    when = f"update {action['update'] + 1}, step {action['step']}, seed {action['seed']}"
    return f"{label(method)}: {when}, reward {action['reward']:.3f}"


def _error(action: Mapping[Any, Any]) -> list[str]:
    """The error of an action that failed, on up to two lines."""
    return [] if action["ran"] else textwrap.wrap(action["error"] or "", _LETTERS, max_lines=2, placeholder=" …")
