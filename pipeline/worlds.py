"""Stage `worlds`: trains every method where the optimum is known and writes how far from it each stays.

    python -m pipeline.worlds --scale laptop

Writes two files below evaluations/{scale}/. `regret.csv` has curves in random worlds, of every variant of every method.
Each has the same budget of tuning: its learning rate is the one with the least regret at the end of training on a world
that is not reported. `benchmark.csv` has the regret at the start, in the middle and at the end of runs in each kind of
world (`etpo_paper.tabular.kinds`). There a variant has one learning rate for all kinds: the one that leaves the least
share of the regret, on average over the kinds, in worlds that are not reported. The forms in which the released update
is mended step by step are left out of it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from etpo_core.interfaces import Method
from etpo_paper.base import paths
from etpo_paper.base.provenance import write_rows
from etpo_paper.base.settings import Settings, load_settings
from etpo_paper.methods import build_method
from etpo_paper.report.results import BENCHMARK_COLUMNS, REGRET_COLUMNS
from etpo_paper.tabular.kinds import KINDS
from etpo_paper.tabular.learning import learn
from etpo_paper.tabular.worlds import random_world
from pipeline import entry
from pipeline.resolve import resolve, variant_section

RATES = {"policy_lr": 1.0, "critic_lr": 3.0, "value_lr": 3.0}
POINTS = 60  # of a curve that are written
EVERY = 2  # updates of a run of the benchmark between two looks at the regret

Job = TypeVar("Job", bound=tuple[Any, ...])
Run = TypeVar("Run")


def method_of(settings: Settings, variant: str, rate: float, **changes: float) -> Method:
    """A fresh update rule with a learning rate."""
    torch.set_num_threads(1)  # the tables are tiny, and several runs share the machine
    name, section = variant_section(settings, variant)
    rates = {key: factor * rate for key, factor in RATES.items() if section.get(key, "exact") != "exact"}
    return build_method(name, section.plain() | rates | changes)


def run_one(scale: str, variant: str, world: int, rate: float) -> list[float]:
    """The regret of one run, before its first update and after each."""
    settings = load_settings(scale)
    w = settings.worlds
    return list(
        learn(
            method_of(settings, variant, rate),
            random_world(world, w.states, w.vocabulary, w.longest),
            updates=w.updates,
            count=w.environments,
            steps=w.steps,
            seed=world,
            beta=w.beta,
            gamma=w.gamma,
        )
    )


def run_kind(scale: str, variant: str, kind: str, world: int, rate: float, seeds: Sequence[int]) -> list[list[float]]:
    """The regret of runs in one world of a kind, one for each seed of what is drawn, at every second update."""
    settings = load_settings(scale)
    b, drawn = settings.worlds.benchmark, KINDS[kind].world(world)
    return [
        list(
            learn(
                method_of(settings, variant, rate, beta=b.beta),
                drawn,
                updates=b.updates,
                count=b.environments,
                steps=b.steps,
                seed=seed,
                beta=b.beta,
                gamma=settings.worlds.gamma,
                behaviour=KINDS[kind].behaviour(drawn, world),
                every=EVERY,
            )
        )
        for seed in seeds
    ]


def at_the_end(curve: list[float]) -> float:
    """Mean regret over the last tenth of a run."""
    last = curve[-max(1, len(curve) // 10) :]
    return sum(last) / len(last)


def each(
    pool: ProcessPoolExecutor, what: str, function: Callable[..., Run], jobs: Sequence[Job], scale: str
) -> dict[Job, Run]:
    """What a function of the scale and a job returns for each job, with a bar that says how far it is."""
    futures = {job: pool.submit(function, scale, *job) for job in jobs}
    return {job: future.result() for job, future in tqdm(futures.items(), unit="run", desc=what)}


def regrets(pool: ProcessPoolExecutor, scale: str, settings: Settings) -> None:
    """Tunes each variant on one random world, runs it on others and writes all curves."""
    w, rows = settings.worlds, []
    tuning = each(
        pool, "tuning", run_one, [(v, w.tuning_seed, rate) for v in w.variants for rate in w.learning_rates], scale
    )
    best = {v: min(w.learning_rates, key=lambda r: at_the_end(tuning[v, w.tuning_seed, r])) for v in w.variants}
    reported = each(pool, "worlds", run_one, [(v, seed, best[v]) for v in w.variants for seed in w.seeds], scale)
    for purpose, found in (("tuning", tuning), ("reported", reported)):
        for (variant, world, rate), curve in found.items():
            every = max(1, w.updates // POINTS)
            rows += [(variant, purpose, world, rate, u, f"{curve[u]:.6g}") for u in range(0, w.updates + 1, every)]
    write_rows(paths.EVALUATIONS / scale / "regret.csv", REGRET_COLUMNS, rows)


def benchmark(pool: ProcessPoolExecutor, scale: str, settings: Settings) -> None:
    """Tunes each variant on one world of each kind, runs it on others and writes start, middle and end of all runs."""
    w, b, rows = settings.worlds, settings.worlds.benchmark, []
    variants = [v for v in w.variants if v == "released" or variant_section(settings, v)[0] != "released"]
    some = tuple(b.seeds[:1])
    tuning = each(
        pool,
        "tuning for the benchmark",
        run_kind,
        [(v, k, w.tuning_seed, rate, some) for v in variants for rate in b.learning_rates for k in KINDS],
        scale,
    )

    def left(variant: str, rate: float) -> float:
        curves = (tuning[variant, kind, w.tuning_seed, rate, some][0] for kind in KINDS)
        return sum(at_the_end(curve) / curve[0] for curve in curves)

    best = {v: min(b.learning_rates, key=lambda rate: left(v, rate)) for v in variants}
    jobs = [(v, k, world, best[v], tuple(b.seeds)) for k in KINDS for v in variants for world in b.worlds]
    reported = each(pool, "benchmark", run_kind, jobs, scale)
    for purpose, found in (("tuning", tuning), ("reported", reported)):
        for (variant, kind, world, rate, seeds), curves in found.items():
            for seed, curve in zip(seeds, curves, strict=True):
                points = (curve[0], curve[len(curve) // 2], at_the_end(curve))
                rows.append((kind, variant, purpose, world, seed, rate, *(f"{point:.6g}" for point in points)))
    write_rows(paths.EVALUATIONS / scale / "benchmark.csv", BENCHMARK_COLUMNS, rows)


def run(scale: str) -> None:
    """Writes both files."""
    settings = resolve(scale)
    for variant in settings.worlds.variants:  # a finished round of tuning need not have the methods of all variants
        variant_section(settings, variant)
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        try:
            regrets(pool, scale, settings)
            benchmark(pool, scale, settings)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print(f"{len(settings.worlds.variants)} variants: {paths.EVALUATIONS / scale}/regret.csv and benchmark.csv")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    entry.run_scale(run, __doc__, argv)


if __name__ == "__main__":
    main()
