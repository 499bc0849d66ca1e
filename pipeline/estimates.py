"""Stage `estimates`: what estimators of a token's advantage are worth where the truth is known, by length of actions.

    python -m pipeline.estimates --scale laptop

Writes evaluations/{scale}/estimates.csv: bias, noise and a batch's gradient (`etpo_paper.tabular.advantages`) for every
estimator, in the worlds of the benchmark that can have actions of any length (`etpo_paper.tabular.kinds.BY_LENGTH`), at
the reference and at a policy halfway to the optimum. Nothing is drawn: all numbers are sums over all actions.
"""

from collections.abc import Iterator, Sequence

import torch

from etpo_paper.base import paths
from etpo_paper.base.provenance import write_rows
from etpo_paper.base.settings import Settings
from etpo_paper.report.results import ESTIMATE_COLUMNS
from etpo_paper.tabular import advantages
from etpo_paper.tabular.kinds import BY_LENGTH
from pipeline import entry
from pipeline.resolve import resolve

LENGTHS = (1, 2, 4, 8)  # tokens of an action
GROUP = 8  # actions that GRPO and RLOO compare with one another


def rows(settings: Settings) -> Iterator[tuple]:
    """A row for each kind, length, policy, world and estimator."""
    w, b = settings.worlds, settings.worlds.benchmark
    lam = settings.methods["poad"].plain()["lam"]
    for kind, draw in BY_LENGTH.items():
        for length in LENGTHS:
            for number in b.worlds:
                world = draw(number, length)
                policies = {"reference": world.reference_logits, "halfway": advantages.halfway(world, b.beta)}
                late = advantages.truth(world, world.reference_logits, b.beta).value
                for name, logits in policies.items():
                    of = advantages.truth(world, logits, b.beta)
                    found = advantages.estimators(of, late, lam=lam, discount=w.gamma, group=GROUP)
                    for estimator, weights in found.items():
                        quality = advantages.quality(of, weights, b.environments * b.steps)
                        # What is 0 by the equations is rounding, which differs from machine to machine.
                        cells = (f"{0.0 if abs(x) < 1e-9 else x:.6g}" for x in quality)
                        yield (kind, length, name, number, estimator, *cells)


def run(scale: str) -> None:
    """Writes the file."""
    torch.set_num_threads(1)  # the tables are small
    settings, path = resolve(scale), paths.EVALUATIONS / scale / "estimates.csv"
    write_rows(path, ESTIMATE_COLUMNS, rows(settings))
    print(f"estimators of the advantage: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    entry.run_scale(run, __doc__, argv)


if __name__ == "__main__":
    main()
