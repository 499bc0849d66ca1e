"""Intervals and tests for few tasks with few seeds each, which cover what they say.

A percentile bootstrap that resamples five seeds within each task is too narrow: a resample of n runs varies less than
n runs do, by (n - 1) / n, and its quantiles ignore that the spread itself is estimated. `benchmarks.coverage` shows by
simulation how often each interval here holds the truth, at the design of the study, beside that bootstrap.

Scores, or differences of two methods in pairs, come as *strata* as in `statistics`: an array [runs] for each task. Two
questions need two intervals. "These tasks": what would further seeds of the same tasks give? Only seeds vary. "Tasks in
general": what would another task give? The tasks are a sample as well, and with few of them the interval is wide.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from etpo_paper.report.statistics import DRAWS, LEVEL, Interval, has_repeats, mean_over_tasks, pooled_iqm


def these_tasks(strata: Sequence[np.ndarray], level: float = LEVEL) -> Interval:
    """The mean over tasks with its t-interval for these tasks (Welch 1938): variances are those within tasks.

    Args:
        strata: an array [runs] for each task, of any numbers of runs.
        level: probability mass of the interval.

    Returns:
        The mean and its interval, whose ends are NaN if a task has only one run.
    """
    point, error, freedom = _within(strata)
    return _t_interval(point, error, freedom, level)


def tasks_in_general(strata: Sequence[np.ndarray], level: float = LEVEL) -> Interval:
    """The mean over tasks with its t-interval for tasks in general: the tasks' means are a sample.

    Args:
        strata: an array [runs] for each task; tasks with equal numbers of runs have means of equal variance.
        level: probability mass of the interval.

    Returns:
        The mean and its interval, whose ends are NaN for one task.
    """
    means = np.array([np.mean(runs) for runs in strata])
    if len(means) < 2:
        return _t_interval(float(means.mean()), np.nan, np.nan, level)
    return _t_interval(float(means.mean()), float(means.std(ddof=1)) / len(means) ** 0.5, len(means) - 1, level)


def iqm_of_these_tasks(
    strata: Sequence[np.ndarray], generator: np.random.Generator, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """The interquartile mean over all runs with its bootstrap-t interval for these tasks (Efron 1981).

    In each resample, the distance from the interquartile mean of the data is divided by the resample's own standard
    error, and the quantiles of these ratios take the place of those of the t distribution.

    Args:
        strata: an array [runs] for each task.
        generator: source of the random numbers.
        draws: how many times the runs of every task are resampled, with replacement.
        level: probability mass of the interval.

    Returns:
        The interquartile mean and its interval, whose ends are NaN if a task has only one run or nothing varies, and
        may be infinite for two or three runs in all.
    """
    point = np.asarray(pooled_iqm(strata))
    if not has_repeats(strata):
        return Interval(point, np.asarray(np.nan), np.asarray(np.nan))
    drawn = [runs[generator.integers(len(runs), size=(len(runs), draws))] for runs in map(np.asarray, strata)]
    error, errors = _error_of_iqm([np.asarray(runs)[:, None] for runs in strata])[0], _error_of_iqm(drawn)
    if not error > 0:
        return Interval(point, np.asarray(np.nan), np.asarray(np.nan))
    distances = pooled_iqm(drawn) - point
    # A resample in which nothing varies has no ratio; it says that the quantile lies further out.
    beyond = np.where(distances == 0, 0.0, np.copysign(np.inf, distances))
    ratios = np.where(errors > 0, distances / np.where(errors > 0, errors, 1), beyond)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Interval(point, np.asarray(point - high * error), np.asarray(point - low * error))


def p_value(strata: Sequence[np.ndarray]) -> float:
    """The two-sided p value of a mean over tasks of 0, for these tasks; it belongs to `these_tasks`."""
    point, error, freedom = _within(strata)
    if not error > 0:
        return np.nan
    return float(2 * stats.t.sf(abs(point) / error, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): all those below α may be rejected at level α together.

    Args:
        p_values: of the hypotheses of one family; NaN, for what could not be tested, stays NaN and still counts.
    """
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values, kind="stable")  # NaN comes last
    factors = len(values) - np.arange(len(values))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(p) for p in corrected]


def _within(strata: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The mean over tasks, its standard error by the spread within tasks, and the degrees of freedom (Satterthwaite)."""
    point = float(mean_over_tasks(strata))
    if not has_repeats(strata):
        return point, np.nan, np.nan
    parts = np.array([np.var(runs, ddof=1) / len(runs) for runs in strata]) / len(strata) ** 2
    squares = sum(part**2 / (len(runs) - 1) for part, runs in zip(parts, strata, strict=True))
    return point, float(parts.sum() ** 0.5), float(parts.sum() ** 2 / squares) if squares > 0 else np.nan


def _t_interval(point: float, error: float, freedom: float, level: float) -> Interval:
    reach = stats.t.ppf((1 + level) / 2, freedom) * error if error > 0 else np.nan
    return Interval(*(np.asarray(x) for x in (point, point - reach, point + reach)))


def _error_of_iqm(strata: Sequence[np.ndarray]) -> np.ndarray:
    """The standard error [draws] of the interquartile mean of strata [runs, draws] by winsorised values (Tukey 1963).

    Values beyond the quarter that is dropped at either end are set to the last one that is kept.
    """
    pooled = np.sort(np.concatenate(strata), axis=0)
    count = len(pooled)
    cut = count // 4
    low, high = pooled[cut], pooled[count - cut - 1]
    variance = sum(len(runs) * np.var(np.clip(runs, low, high), axis=0, ddof=1) for runs in strata)
    return np.sqrt(variance) / (count - 2 * cut)
