"""Intervals and tests for few tasks with few seeds each, which cover what they say.

A percentile bootstrap that resamples five seeds within each task is too narrow: a resample of n runs varies less than
n runs do, by (n - 1) / n, and its quantiles ignore that the spread itself is estimated. The bootstrap-t divides by the
spread of each resample instead. `benchmarks.coverage` shows by simulation how often each interval here holds the truth,
at the design of the study, beside the percentile bootstrap and the usual t-interval.

Scores, or differences of two methods in pairs, come as *strata* as in `statistics`: an array [runs] for each task. Two
questions need two intervals. "These tasks": what would further seeds of the same tasks give? Only seeds vary. "Tasks in
general": what would another task give? The tasks are a sample as well, and with few of them the interval is wide.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from etpo_paper.report.statistics import DRAWS, LEVEL, Interval, has_repeats, mean_over_tasks, pooled_iqm

Strata = Sequence[np.ndarray]


def mean_of_these_tasks(
    strata: Strata, generator: np.random.Generator, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """The mean over tasks with its bootstrap-t interval for these tasks (Efron 1981).

    In each resample, the distance from the mean of the data is divided by the resample's own standard error, and the
    quantiles of these ratios take the place of those of the t distribution.

    Args:
        strata: an array [runs] for each task.
        generator: source of the random numbers.
        draws: how many times the runs of every task are resampled, with replacement.
        level: probability mass of the interval.

    Returns:
        The mean and its interval, whose ends are NaN if a task has only one run or nothing varies, and may be infinite
        for two or three runs in all.
    """
    return _bootstrap_t(strata, mean_over_tasks, _error_of_mean, generator, draws, level)


def iqm_of_these_tasks(
    strata: Strata, generator: np.random.Generator, draws: int = DRAWS, level: float = LEVEL
) -> Interval:
    """The interquartile mean over all runs with its bootstrap-t interval, as `mean_of_these_tasks`."""
    return _bootstrap_t(strata, pooled_iqm, _error_of_iqm, generator, draws, level)


def tasks_in_general(strata: Strata, level: float = LEVEL) -> Interval:
    """The mean over tasks with its t-interval for tasks in general: the tasks' means are a sample.

    Args:
        strata: an array [runs] for each task; tasks with equal numbers of runs have means of equal variance.
        level: probability mass of the interval.

    Returns:
        The mean and its interval, whose ends are NaN for one task.
    """
    means = np.array([np.mean(runs) for runs in strata])
    point, reach = np.asarray(means.mean()), np.asarray(np.nan)
    if len(means) > 1:
        reach = stats.t.ppf((1 + level) / 2, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5
    return Interval(point, np.asarray(point - reach), np.asarray(point + reach))


def p_value(strata: Strata, generator: np.random.Generator, draws: int = 10 * DRAWS) -> float:
    """The two-sided p value of an interquartile mean of 0: the level at which `iqm_of_these_tasks` begins to hold 0.

    Args:
        strata: an array [runs] for each task.
        generator: source of the random numbers.
        draws: how many times the runs are resampled; the least p value is 2 / (draws + 1).

    Returns:
        The p value; NaN where there is no interval.
    """
    point, error, ratios = _ratios(strata, pooled_iqm, _error_of_iqm, generator, draws)
    if not error > 0:
        return np.nan
    beyond = min(np.sum(ratios <= point / error), np.sum(ratios >= point / error))
    return min(1.0, float(2 * (beyond + 1) / (draws + 1)))


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


def _bootstrap_t(
    strata: Strata,
    statistic: Callable[[Strata], np.ndarray],
    error_of: Callable[[Strata], np.ndarray],
    generator: np.random.Generator,
    draws: int,
    level: float,
) -> Interval:
    point, error, ratios = _ratios(strata, statistic, error_of, generator, draws)
    if not error > 0:
        return Interval(np.asarray(point), np.asarray(np.nan), np.asarray(np.nan))
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return Interval(np.asarray(point), np.asarray(point - high * error), np.asarray(point - low * error))


def _ratios(
    strata: Strata,
    statistic: Callable[[Strata], np.ndarray],
    error_of: Callable[[Strata], np.ndarray],
    generator: np.random.Generator,
    draws: int,
) -> tuple[float, float, np.ndarray]:
    """The statistic, its standard error, and the distances of resamples in units of their own errors, [draws]."""
    strata = [np.asarray(runs, dtype=float) for runs in strata]
    point = float(statistic(strata))
    if not has_repeats(strata) or not (error := float(error_of([runs[:, None] for runs in strata])[0])) > 0:
        return point, np.nan, np.empty(0)
    drawn = [runs[generator.integers(len(runs), size=(len(runs), draws))] for runs in strata]
    distances, errors = statistic(drawn) - point, error_of(drawn)
    # A resample in which nothing varies has no ratio; it says that the quantile lies further out.
    beyond = np.where(distances == 0, 0.0, np.copysign(np.inf, distances))
    return point, error, np.where(errors > 0, distances / np.where(errors > 0, errors, 1), beyond)


def _error_of_mean(strata: Strata) -> np.ndarray:
    """The standard error [draws] of the mean over tasks of strata [runs, draws]."""
    return np.sqrt(sum(np.var(runs, axis=0, ddof=1) / len(runs) for runs in strata)) / len(strata)


def _error_of_iqm(strata: Strata) -> np.ndarray:
    """The standard error [draws] of the interquartile mean of strata [runs, draws] by winsorised values (Tukey 1963).

    Values beyond the quarter that is dropped at either end are set to the last one that is kept.
    """
    pooled = np.sort(np.concatenate(strata), axis=0)
    count = len(pooled)
    cut = count // 4
    low, high = pooled[cut], pooled[count - cut - 1]
    variance = sum(len(runs) * np.var(np.clip(runs, low, high), axis=0, ddof=1) for runs in strata)
    return np.sqrt(variance) / (count - 2 * cut)
