"""Statistics for few seeds, as pure functions of arrays.

Scores come as *strata*: one array for each task, whose first axis is the runs (seeds) of that task and whose further
axes, if any, are points of a curve. Aggregates follow Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice" (arXiv 2108.13264): the interquartile mean instead of mean or median, percentile intervals from a
bootstrap that resamples seeds *within* each task, the probability that a run of one method beats a run of another, and
performance profiles. All random numbers come from a generator that the caller passes. A task with one run says
nothing about how much runs differ: the ends of intervals are NaN if there is such a task, and figures show no band.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

LEVEL = 0.95
DRAWS = 2000
_PORTION = 500_000  # at most so many numbers of one task are resampled at once

Statistic = Callable[[Sequence[np.ndarray]], np.ndarray]


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval; each a number or a curve."""

    point: np.ndarray
    low: np.ndarray
    high: np.ndarray


NO_INTERVAL = Interval(*(np.asarray(np.nan) for _ in range(3)))


def best_so_far(rewards: np.ndarray) -> np.ndarray:
    """The best reward within the first K steps, for every K: max(r_1, ..., r_K).

    Args:
        rewards: [..., steps].

    Returns:
        [..., steps], never decreasing along the last axis.
    """
    return np.maximum.accumulate(np.asarray(rewards, dtype=float), axis=-1)


def interquartile_mean(scores: ArrayLike) -> np.ndarray:
    """The mean of the middle half (IQM): a quarter of the values, rounded down, is dropped at either end.

    Args:
        scores: [runs, ...]; fewer than four runs give the plain mean.

    Returns:
        [...].
    """
    # scipy.stats.trim_mean(scores, 0.25) drops the same values, but adds the others in the order in which a partial
    # sort leaves them: its last bit depends on the order of the runs, and has changed the sixth decimal of a table.
    scores = np.sort(np.asarray(scores, dtype=float), axis=0)
    cut = len(scores) // 4
    return np.asarray(scores[cut : len(scores) - cut].mean(axis=0))


def mean_over_tasks(strata: Sequence[np.ndarray]) -> np.ndarray:
    """The mean over tasks of the mean over each task's runs, so that every task weighs the same."""
    return np.mean([np.mean(runs, axis=0) for runs in strata], axis=0)


def pooled_iqm(strata: Sequence[np.ndarray]) -> np.ndarray:
    """The interquartile mean over all runs of all tasks."""
    return interquartile_mean(np.concatenate([np.asarray(runs, dtype=float) for runs in strata]))


def has_repeats(strata: Sequence[np.ndarray]) -> bool:
    """Whether every task has two or more runs; a single run would be taken for one that never varies."""
    return all(len(runs) > 1 for runs in strata)


def bootstrap(
    strata: Sequence[np.ndarray],
    statistic: Statistic,
    generator: np.random.Generator,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """A statistic with its stratified percentile-bootstrap interval.

    Args:
        strata: an array for each task, [runs, ...].
        statistic: maps such a sequence to a number or a curve, e.g. `pooled_iqm`; it reduces the first axis of
            the arrays and leaves further axes alone.
        generator: source of the random numbers.
        draws: how many times the runs of every task are resampled, with replacement.
        level: probability mass of the interval, 0.95 for 95 %.

    Returns:
        The statistic of the data and the interval; its ends are NaN if a task has only one run.
    """
    strata = [np.asarray(runs, dtype=float) for runs in strata]
    point = np.asarray(statistic(strata))
    if not has_repeats(strata):
        return Interval(point, np.full_like(point, np.nan, float), np.full_like(point, np.nan, float))
    # Many resamples at once, as an axis behind the runs, but in portions, so that long curves fit in memory.
    portion = max(1, _PORTION // max(1, strata[0][0].size))
    values = []
    for start in range(0, draws, portion):
        shape = min(portion, draws - start)
        drawn = [runs[generator.integers(len(runs), size=(len(runs), shape))] for runs in strata]
        values.append(statistic(drawn))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(point, low, high)


def probability_of_improvement(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """The probability that a run of the first method beats a run of the second on a random task.

    It is the share of pairs (x, y) with x > y, ties counted half, for each task, and the mean of these over tasks.

    Args:
        first: an array for each task, [runs].
        second: the same tasks in the same order, [runs'].
    """
    shares = []
    for x, y in zip(first, second, strict=True):
        difference = np.asarray(x, dtype=float)[:, None] - np.asarray(y, dtype=float)[None, :]
        shares.append(np.mean((difference > 0) + 0.5 * (difference == 0), axis=(0, 1)))
    return np.mean(shares, axis=0)


def bootstrap_improvement(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    generator: np.random.Generator,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """`probability_of_improvement` with its interval; the runs of both methods are resampled.

    Args:
        first: an array for each task, [runs].
        second: the same tasks in the same order, [runs'].
        generator: source of the random numbers.
        draws: number of resamples.
        level: probability mass of the interval.
    """
    return _bootstrap_two(first, second, probability_of_improvement, generator, draws, level)


def _bootstrap_two(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    statistic: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray],
    generator: np.random.Generator,
    draws: int,
    level: float,
) -> Interval:
    tasks = len(first)
    return bootstrap([*first, *second], lambda both: statistic(both[:tasks], both[tasks:]), generator, draws, level)


def std_over_seeds(strata: Sequence[np.ndarray]) -> np.ndarray:
    """The standard deviation over seeds: the root of the mean over tasks of the runs' sample variances (n - 1).

    It is NaN if a task has only one run.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = [np.square(runs - np.mean(runs, axis=0)).sum(axis=0) / np.float64(len(runs) - 1) for runs in strata]
    return np.sqrt(np.mean(squares, axis=0))


def bootstrap_std_ratio(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    generator: np.random.Generator,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Interval:
    """`std_over_seeds` of the first method divided by that of the second, with its interval.

    A ratio below 1 means that the first method varies less. Resampling n of n runs makes a sample variance smaller by
    (n - 1) / n on average, for both methods alike, so that it cancels in the ratio. With two or three seeds a resample
    can consist of one run only, and the interval may reach 0 or infinity.

    Args:
        first: an array for each task, [runs].
        second: the same tasks in the same order, [runs'].
        generator: source of the random numbers.
        draws: number of resamples.
        level: probability mass of the interval.

    Returns:
        The ratio and its interval, all NaN unless every task has two runs of each method.
    """
    if any(len(runs) < 2 for runs in (*first, *second)):
        return NO_INTERVAL

    def share_of_first(one: Sequence[np.ndarray], two: Sequence[np.ndarray]) -> np.ndarray:
        std = std_over_seeds(one)
        total = std + std_over_seeds(two)
        return np.where(total > 0, std / np.where(total > 0, total, 1), 0.5)  # half: nothing varies in either

    # The share one / (one + two) orders resamples as the ratio does and is finite, so that quantiles can be taken.
    shares = _bootstrap_two(first, second, share_of_first, generator, draws, level)
    return Interval(*(np.asarray(share / (1 - share) if share < 1 else np.inf) for share in shares))


def falls(curve: Interval) -> np.ndarray:
    """Where a curve lies below an earlier point of itself by more than its interval allows.

    Args:
        curve: points with their interval, in order.

    Returns:
        bool [points], True where the upper end is below the highest lower end so far. A curve that is False everywhere
        is monotone within its interval; so is a curve without an interval.
    """
    return np.asarray(curve.high) < np.fmax.accumulate(np.asarray(curve.low, dtype=float))


def performance_profile(strata: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """The share of runs with a score above each threshold, averaged over tasks.

    Args:
        strata: an array for each task, [runs].
        thresholds: [points].

    Returns:
        [points], never increasing if the thresholds increase.
    """
    above = [np.asarray(runs, dtype=float)[..., None] > np.asarray(thresholds) for runs in strata]
    return mean_over_tasks(above)


def paired_differences(frame: pd.DataFrame, value: str, first: str, second: str) -> list[np.ndarray]:
    """Differences between two methods on the same task and seed, an array for each task.

    Args:
        frame: columns method, task, seed and `value`, a row for each run.
        value: the column to compare.
        first: method that is counted positive.
        second: method that is subtracted.

    Returns:
        Strata of first - second over the (task, seed) pairs that both methods have, tasks sorted by name.
    """
    wide = frame.pivot(index=["task", "seed"], columns="method", values=value)
    if first not in wide or second not in wide:
        return []
    difference = (wide[first] - wide[second]).dropna()
    return [rows.to_numpy() for _, rows in difference.groupby(level="task", sort=True)]


def strata_of(frame: pd.DataFrame, value: str) -> list[np.ndarray]:
    """The values of one method's runs as strata, tasks sorted by name and seeds in ascending order.

    Args:
        frame: columns task, seed and `value`, a row for each run.
        value: the column to take.
    """
    frame = frame.sort_values(["task", "seed"])
    return [rows[value].to_numpy(dtype=float) for _, rows in frame.groupby("task", sort=True)]


def curves_of(frame: pd.DataFrame, index: str, value: str, length: int | None = None) -> dict[str, np.ndarray]:
    """The runs of one method as curves, an array [runs, points] for each task, tasks sorted by name.

    Args:
        frame: columns task, seed, `index` and `value`; `index` orders the points of a run.
        index: e.g. "step" or "update".
        value: e.g. "reward".
        length: number of points to keep; by default as many as the shortest run has.
    """
    frame = frame.sort_values(["task", "seed", index])
    groups: Any = frame.groupby(["task", "seed"], sort=True)
    runs = {key: rows[value].to_numpy(dtype=float) for key, rows in groups}
    if not runs:
        return {}
    shortest = min(len(run) for run in runs.values())
    length = shortest if length is None else min(length, shortest)
    tasks = sorted({task for task, _ in runs})
    return {task: np.stack([run[:length] for (name, _), run in runs.items() if name == task]) for task in tasks}


def budget(steps: pd.DataFrame) -> int:
    """The number of environment steps that every run has, i.e. the length of the shortest run."""
    if steps.empty:
        return 0
    return int(steps.groupby(["method", "task", "seed"])["step"].count().min())


def run_scores(steps: pd.DataFrame, limit: int | None = None) -> pd.DataFrame:
    """What each run reached within its first `limit` steps, a row for each run.

    Args:
        steps: see `results.load_steps`.
        limit: how many environment steps count; by default `budget(steps)`, the same for all runs.

    Returns:
        Columns method, task, seed, best (highest reward), mean (mean reward over all steps), runs (share of steps
        whose code ran), last_mean and last_runs (the same over the last fifth of the steps), and last_level (mean
        reward of the programs of the last fifth that ran; if none ran, the mean reward of all of them).
    """
    limit = budget(steps) if limit is None else limit
    rows = []
    groups: Any = steps.sort_values("step").groupby(["method", "task", "seed"], sort=True)
    for (method, task, seed), run in groups:
        run = run.head(limit)
        last = run.tail(max(1, len(run) // 5))
        ran = last[last["status"] == "ok"]
        rows.append(
            {
                "method": method,
                "task": task,
                "seed": seed,
                "best": float(run["reward"].max()),
                "mean": float(run["reward"].mean()),
                "runs": float((run["status"] == "ok").mean()),
                "last_mean": float(last["reward"].mean()),
                "last_runs": len(ran) / len(last),
                "last_level": float((ran if len(ran) else last)["reward"].mean()),
            }
        )
    columns = ["method", "task", "seed", "best", "mean", "runs", "last_mean", "last_runs", "last_level"]
    return pd.DataFrame(rows, columns=columns)


def broken(scores: pd.DataFrame) -> pd.DataFrame:
    """The runs in which no program of the last fifth of the steps ran, rows of `run_scores`."""
    return scores[scores["last_runs"] == 0]


def aggregate_curves(
    frame: pd.DataFrame,
    index: str,
    value: str,
    methods: Sequence[str],
    tasks: Sequence[str],
    generator: np.random.Generator,
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> dict[str, Interval]:
    """Curves of methods over the same tasks: the mean over tasks, with its bootstrap interval.

    Args:
        frame: columns method, task, seed, `index` and `value`.
        index: orders the points of a run, e.g. "step".
        value: e.g. "reward".
        methods: methods to draw.
        tasks: tasks to average over.
        generator: source of the random numbers.
        transform: applied to the runs of a task, [runs, points] -> [runs, points], e.g. `best_so_far`.

    Returns:
        For each method a curve with its interval, all as long as the shortest run.
    """
    frame = frame[frame["task"].isin(tasks) & frame["method"].isin(methods)]
    if frame.empty:
        return {}
    length = int(frame.groupby(["method", "task", "seed"])[value].size().min())
    curves = {}
    for method in methods:
        runs = curves_of(frame[frame["method"] == method], index, value, length)
        curves[method] = bootstrap([transform(run) for run in runs.values()], mean_over_tasks, generator)
    return curves


def compare(
    scores: pd.DataFrame,
    value: str,
    methods: Sequence[str],
    reference: str,
    generator: np.random.Generator,
) -> pd.DataFrame:
    """Compares methods on the same tasks, and a reference method with each of them.

    Args:
        scores: columns method, task, seed and `value`, a row for each run; every method has the same tasks.
        value: the column to compare.
        methods: rows of the table.
        reference: method that is compared with each of the others, e.g. "etpo".
        generator: source of the random numbers.

    Returns:
        Columns method, tasks, runs and, each with the ends `_low` and `_high` of its interval: iqm; difference (IQM
        of reference minus method, paired by task and seed); improvement (probability that a run of the reference
        beats one of the method). The ends are NaN if a task has only one seed.
    """
    groups = {method: strata_of(scores[scores["method"] == method], value) for method in methods}
    rows = []
    for method, strata in groups.items():
        row: dict[str, object] = {
            "method": method,
            "tasks": len(strata),
            "runs": sum(len(runs) for runs in strata),
        }
        row |= named("iqm", bootstrap(strata, pooled_iqm, generator))
        pairs = paired_differences(scores, value, reference, method) if method != reference else []
        if pairs:
            row |= named("difference", bootstrap(pairs, pooled_iqm, generator))
            row |= named("improvement", bootstrap_improvement(groups[reference], strata, generator))
        rows.append(row)
    columns = ["method", "tasks", "runs"]
    columns += [name + end for name in ("iqm", "difference", "improvement") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=columns)


def intervals_of(frame: pd.DataFrame, name: str) -> dict[str, Interval]:
    """The intervals of the columns `name`, `name`_low and `name`_high by method; the inverse of `named`.

    Args:
        frame: with a column method, a row for each method.
        name: of the estimate.
    """
    ends = frame[[name, f"{name}_low", f"{name}_high"]].astype(float).to_numpy()
    return {
        method: Interval(*(np.asarray(end) for end in row)) for method, row in zip(frame["method"], ends, strict=True)
    }


def named(name: str, interval: Interval) -> dict[str, float]:
    """An interval as columns of a table: `name`, `name`_low and `name`_high."""
    ends = ("", "_low", "_high")
    return {name + end: float(number) for end, number in zip(ends, interval, strict=True)}


def means_over_tasks(scores: pd.DataFrame, value: str) -> pd.Series:
    """The mean over tasks of the mean over seeds, by method.

    Args:
        scores: columns method and task and the value, a row for each run.
        value: name of the column.
    """
    return scores.groupby(["method", "task"])[value].mean().groupby("method").mean()


def mean_and_std(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """Mean, sample standard deviation (n - 1; NaN for one run) and count by method and task.

    Args:
        frame: columns method, task and `value`, a row for each run.
        value: the column to summarise.

    Returns:
        Columns method, task, mean, std, n.
    """
    groups = frame.groupby(["method", "task"], sort=True)[value]
    return groups.agg(mean="mean", std="std", n="count").reset_index()


def interval_text(point: float, low: float, high: float, digits: int = 3) -> str:
    """An interval as "0.812 [0.790, 0.833]", as "0.812" if it has no ends, and as "–" if there is no value."""
    if np.isnan(point):
        return "–"
    # Adding 0.0 turns the -0.0 of a rounded small number into 0.0.
    point, low, high = (round(value, digits) + 0.0 for value in (point, low, high))
    if np.isnan(low):
        return f"{point:.{digits}f}"
    return f"{point:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
