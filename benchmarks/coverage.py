"""How often does each interval hold the truth, at the design of the study?

Differences of two methods in pairs are drawn as the study's runs spread: normal within a task, with a mean of its own
for each task, and in the lines "broken" one pair in twenty is far below the others. For each design and interval the
table has the share of simulated studies whose interval holds the truth, and how wide the interval is on average.

    python -m benchmarks.coverage --csv coverage.csv

For these tasks the truth is the value of the same tasks with endlessly many seeds, for tasks in general the mean over
endlessly many tasks. The last column is the standard error of the coverage, in points.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from etpo_core.errors import one_line_errors
from etpo_paper.report import inference, statistics

DESIGNS = [(14, 5), (14, 3), (8, 5), (4, 5)]  # tasks, seeds
WITHIN, BETWEEN, BROKEN = 0.068, 0.04, 0.05  # standard deviation in a task, of the tasks' means; share of broken runs
MANY = 2_000  # seeds of a task that stand for endlessly many


def pairs(tasks: np.ndarray, seeds: int, broken: bool, generator: np.random.Generator) -> list[np.ndarray]:
    """Differences [seeds] of each task with the given mean; a broken run loses about 1.2."""
    found = tasks[:, None] + WITHIN * generator.standard_normal((len(tasks), seeds))
    if broken:
        lost = 1.2 + 0.2 * generator.standard_normal(found.shape)
        found = np.where(generator.random(found.shape) < BROKEN, found - lost, found)
    return list(found)


def usual(strata: list[np.ndarray]) -> statistics.Interval:
    """The t-interval of the mean over tasks with equally many seeds, with the pooled variance within tasks."""
    point, tasks, seeds = float(np.mean(strata)), len(strata), len(strata[0])
    error = (np.mean([runs.var(ddof=1) for runs in strata]) / (tasks * seeds)) ** 0.5
    reach = stats.t.ppf(0.975, tasks * (seeds - 1)) * error
    return statistics.Interval(*(np.asarray(x) for x in (point, point - reach, point + reach)))


def measure(studies: int) -> Iterator[dict[str, Any]]:
    """A row for each design, kind of run and interval."""
    generator = np.random.default_rng(0)
    for count, seeds in DESIGNS:
        for broken in (False, True):
            in_general = -1.2 * BROKEN if broken else 0.0
            held: dict[str, list[bool]] = {}
            widths: dict[str, list[float]] = {}
            for _ in tqdm(range(studies), desc=f"{count} x {seeds}{' broken' if broken else ''}"):
                tasks = BETWEEN * generator.standard_normal(count)
                truth = pairs(tasks, MANY, broken, generator)
                strata = pairs(tasks, seeds, broken, generator)
                mean, iqm = float(np.mean(tasks)) + in_general, float(statistics.pooled_iqm(truth))
                found = {
                    "mean, these tasks: bootstrap-t": (inference.mean_of_these_tasks(strata, generator, 500), mean),
                    "mean, these tasks: t": (usual(strata), mean),
                    "mean, these tasks: percentile": (
                        statistics.bootstrap(strata, statistics.mean_over_tasks, generator, 500),
                        mean,
                    ),
                    "mean, tasks in general: t": (inference.tasks_in_general(strata), in_general),
                    "IQM, these tasks: bootstrap-t": (inference.iqm_of_these_tasks(strata, generator, 500), iqm),
                    "IQM, these tasks: percentile": (
                        statistics.bootstrap(strata, statistics.pooled_iqm, generator, 500),
                        iqm,
                    ),
                }
                for name, (interval, value) in found.items():
                    held.setdefault(name, []).append(bool(interval.low <= value <= interval.high))
                    widths.setdefault(name, []).append(float(interval.high - interval.low))
            for name, each in held.items():
                share = sum(each) / len(each)
                yield {
                    "tasks": count,
                    "seeds": seeds,
                    "broken runs": f"{BROKEN:.0%}" if broken else "none",
                    "interval": name,
                    "coverage %": round(100 * share, 1),
                    "width": round(float(np.mean(widths[name])), 4),
                    "error": round(100 * (share * (1 - share) / len(each)) ** 0.5, 1),
                }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000, help="simulated for each line")
    parser.add_argument("--csv", type=Path, help="file for the table")
    arguments = parser.parse_args()
    with one_line_errors():
        table = pd.DataFrame(measure(arguments.studies))
        print(table.to_string(index=False))
        if arguments.csv:
            table.to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
