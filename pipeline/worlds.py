"""Stage `worlds`: trains every method where the optimum is known and writes how far from it each stays.

    python -m pipeline.worlds --scale laptop

Writes evaluations/{scale}/regret.csv. Each variant has the same budget of tuning: its learning rate is the one with the
least regret at the end of training on a world that is not reported.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from tqdm import tqdm

from etpo_paper.base import paths
from etpo_paper.base.provenance import write_rows
from etpo_paper.base.settings import load_settings
from etpo_paper.methods import build_method
from etpo_paper.report.results import REGRET_COLUMNS
from etpo_paper.tabular.learning import learn
from etpo_paper.tabular.worlds import random_world
from pipeline import entry
from pipeline.resolve import resolve, variant_section

RATES = {"policy_lr": 1.0, "critic_lr": 3.0, "value_lr": 3.0}
POINTS = 60  # of a curve that are written


def run_one(scale: str, variant: str, world: int, rate: float) -> list[float]:
    """The regret of one run, before its first update and after each."""
    torch.set_num_threads(1)  # the tables are tiny, and several runs share the machine
    settings = load_settings(scale)
    w = settings.worlds
    name, section = variant_section(settings, variant)
    rates = {key: factor * rate for key, factor in RATES.items() if key in section}
    return learn(
        build_method(name, section.plain() | rates),
        random_world(world, w.states, w.vocabulary, w.longest),
        updates=w.updates,
        count=w.environments,
        steps=w.steps,
        seed=world,
        beta=w.beta,
        gamma=w.gamma,
    )


def at_the_end(curve: list[float]) -> float:
    """Mean regret over the last tenth of a run."""
    last = curve[-max(1, len(curve) // 10) :]
    return sum(last) / len(last)


def run(scale: str) -> None:
    """Tunes each variant, runs it on the reported worlds and writes all curves."""
    settings = resolve(scale)
    w, variants = settings.worlds, list(settings.worlds.variants)
    for variant in variants:  # a finished round of tuning need not have the methods of all variants
        variant_section(settings, variant)
    rows = []
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        bar = tqdm(total=len(variants) * (len(w.learning_rates) + len(w.seeds)), unit="run", desc="worlds")

        def curves(purpose: str, jobs: list[tuple[str, int, float]]) -> dict[tuple[str, int, float], list[float]]:
            futures = {job: pool.submit(run_one, scale, *job) for job in jobs}
            done = {}
            for job, future in futures.items():
                done[job] = future.result()
                bar.update()
                bar.set_postfix(variant=job[0], regret=f"{at_the_end(done[job]):.3f}")
                every = max(1, w.updates // POINTS)
                rows.extend((job[0], purpose, job[1], job[2], u, done[job][u]) for u in range(0, w.updates + 1, every))
            return done

        try:
            tuning = curves("tuning", [(v, w.tuning_seed, rate) for v in variants for rate in w.learning_rates])
            best = {v: min(w.learning_rates, key=lambda r: at_the_end(tuning[v, w.tuning_seed, r])) for v in variants}
            curves("reported", [(v, seed, best[v]) for v in variants for seed in w.seeds])
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        bar.close()
    path = paths.EVALUATIONS / scale / "regret.csv"
    write_rows(path, REGRET_COLUMNS, ((*row[:5], f"{row[5]:.6g}") for row in rows))
    print(f"{len(variants)} variants: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    entry.run_scale(run, __doc__, argv)


if __name__ == "__main__":
    main()
