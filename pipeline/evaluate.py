"""Stage `evaluate`: held-out scores of the best code of every finished run.

    python -m pipeline.evaluate --scale laptop

Writes evaluations/{scale}/held_out.csv. `etpo_paper.measure.evaluation` says what is scored and why.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache

from tqdm import tqdm

from etpo_core.errors import UserError
from etpo_core.sandbox import SandboxPool, Status
from etpo_paper.base.settings import deciding, load_settings
from etpo_paper.data.tasks import Task
from etpo_paper.environment.executor import open_executor
from etpo_paper.measure import evaluation
from etpo_paper.report.results import require_results
from pipeline import data, entry


def run(scale: str) -> None:
    """Scores what has not been scored yet and writes the table."""
    settings = load_settings(scale)
    sandbox = settings.sandbox
    require_results(scale)
    split_seeds = list(settings.evaluation.held_out_seeds)
    failed = settings.environment.failure_reward

    def content(task: str) -> str:
        return json.dumps([data.table(task).sha256, deciding(sandbox)], sort_keys=True)

    with ExitStack() as stack:

        @cache
        def pool() -> SandboxPool:
            # Opened only when a program has not been scored before.
            return stack.enter_context(open_executor(sandbox))

        def score(task: str, programs: Sequence[str]) -> list[evaluation.Scores]:
            return on_splits(pool(), data.table(task), programs, split_seeds)

        frame = evaluation.evaluate(scale, split_seeds, score, content, failed)
    path = evaluation.write(frame, scale)
    print(f"{len(frame)} runs: {path}")


def on_splits(
    pool: SandboxPool, table: Task, programs: Sequence[str], split_seeds: Sequence[int]
) -> list[evaluation.Scores]:
    """Scores programs on each split of a table by itself, with the true labels and with dealt ones.

    Raises:
        UserError: the sandbox failed.
    """
    scores: list[evaluation.Scores] = [([], []) for _ in programs]
    with tqdm(desc=f"held-out {table.spec.name}", unit="fit", total=2 * len(programs) * len(split_seeds)) as bar:
        for seed in split_seeds:  # one split at a time, because a failure on one says nothing about another
            for which, y in enumerate((table.y, evaluation.deal(table.x, table.y, seed))):
                for own, outcome in zip(scores, pool.score_iter(programs, table.x, y, [seed]), strict=True):
                    if outcome.status == Status.INFRASTRUCTURE_FAULT:
                        raise UserError(
                            f"the sandbox failed on {table.spec.name}: {outcome.error_text}; run the stage again"
                        )
                    own[which].append(float(outcome.score) if outcome.status == Status.OK else None)
                    bar.update()
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    entry.run_scale(run, __doc__, argv)


if __name__ == "__main__":
    main()
