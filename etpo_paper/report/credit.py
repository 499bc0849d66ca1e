"""Credit token by token: which tokens of an action a method holds to be good or bad.

Beside each sample that a run keeps, a method that trains leaves the text of its tokens (`pieces`) and a number for each
of them (`credit`): how much better than the policy's mean the method holds the token, in units of reward
(`methods.common.Learnt.credit`). From these samples this module takes what the figures show: the first and the last
fifth of training, a few actions chosen by a fixed rule, and one number for how concentrated an action's credit is.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from etpo_core.errors import UserError
from etpo_paper.report.plotting import counted, label, ordered
from etpo_paper.report.results import EARLY, LATE, period

_RUN = ["method", "task", "seed"]


def with_credit(samples: pd.DataFrame, scale: str) -> pd.DataFrame:
    """The samples of the runs that hold credit, told apart by time and outcome.

    Args:
        samples: of `results.load_samples`.
        scale: where they come from; named in the error.

    Returns:
        The samples of the runs of which every sample has `pieces` and `credit`, with two columns more: when (see
        `results.period`) and ran (whether the status is "ok").

    Raises:
        UserError: no run has them; says how to make them.
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
    """A line for each method of which `with_credit` leaves out runs.

    Args:
        samples: of `results.load_samples`.
    """
    runs = samples[~_complete(samples)].drop_duplicates(_RUN)["method"].value_counts()
    return [
        f"{label(method)}: {counted(runs[method], 'run')} left out, made by an older version that kept no credit."
        for method in ordered(runs.index)
    ]


def examples(samples: pd.DataFrame) -> pd.DataFrame:
    """Actions to look at: of each method early and late, one that failed and one that ran.

    The rule leaves nothing to choose: the last in the order of update, step and seed. (The first early ones would say
    nothing: a critic that still is the reference holds no token better than another.)

    Args:
        samples: of `with_credit`, of one task.

    Returns:
        At most one row for each method, when and ran.
    """
    frame = samples.sort_values(["update", "step", "seed"])
    shown = frame[frame["when"].isin([EARLY, LATE])]
    return shown.drop_duplicates(["method", "when", "ran"], keep="last").reset_index(drop=True)


def concentration(credit: Sequence[float]) -> float:
    """The share of an action's total |credit| that a tenth of its tokens carries, those with the most of it.

    Args:
        credit: a number a token, [tokens], in any unit. Where a tenth of the tokens is no whole number, the last of
            them counts in part.

    Returns:
        0.1 if all tokens are alike, up to 1 if a tenth of them has everything; NaN if there is no credit at all.
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
        credit: a number a token, [tokens].
    """
    return float(np.max(np.abs(np.asarray(credit, dtype=float))))


def by_run(samples: pd.DataFrame) -> pd.DataFrame:
    """Each run's credit in numbers, early and late, for actions that failed and actions that ran.

    Args:
        samples: of `with_credit`.

    Returns:
        Columns method, task, seed, when, ran, actions (count) and, means over these actions, tokens (count),
        concentration (see there) and largest (see there). Actions without any credit have no concentration and are
        not counted.
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
    # A run that was stopped and gone on with by a newer version has credit in its later part only: that is no
    # comparison of early with late.
    has = samples["credit"].notna() & samples["pieces"].notna()
    return has.groupby([samples[column] for column in _RUN]).transform("all").astype(bool)
