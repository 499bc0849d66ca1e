"""Scores of programs on a table of one's own: on the splits that give a reward, and on held-out ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from etpo_core.errors import UserError
from etpo_core.sandbox import Outcome, SandboxPool, Status
from etpo_paper.base.settings import load_defaults
from etpo_paper.data.tasks import Task
from etpo_paper.environment.executor import open_executor
from etpo_paper.use.program import read_program
from etpo_paper.use.table import OwnTable, read_table


@dataclass(frozen=True)
class Splits:
    """Seeds of the 50/50 splits: those that give a reward, and those that never do."""

    reward: tuple[int, ...]
    held_out: tuple[int, ...]


def splits(count: int | None = None) -> Splits:
    """The splits of `params.yaml`, or with `count` as many of either kind.

    Raises:
        UserError: the count is not possible.
    """
    settings = load_defaults()
    reward, held_out = settings.environment.split_seeds, settings.evaluation.held_out_seeds
    if count is None:
        return Splits(reward, held_out)
    if not 1 <= count <= 100:
        raise UserError(f"--splits {count}: expected 1 to 100")
    return Splits(tuple(range(count)), tuple(range(100, 100 + count)))


def show(table: OwnTable, path: Path) -> None:
    """Prints what a table is and what was done with its columns."""
    task, counts = table.task, table.task.class_counts
    classes = ", ".join(f"{label} {count}" for label, count in zip(table.labels, counts, strict=True))
    print(f"{path}: {task.rows} rows, {len(table.plan)} columns as {task.features} numbers; {table.target}: {classes}")
    for note in table.notes:
        print(f"  {note}")


def outcome_text(outcome: Outcome, above: int = 0) -> str:
    """A score, or how the program failed; its lines are counted without those `above` what the user sees."""
    if outcome.status is Status.OK:
        return f"mean ROC AUC {outcome.score:.4f}"
    seen = outcome if outcome.line is None else replace(outcome, line=outcome.line - above)
    return f"fails, {outcome.status}: {seen.error_text}"


def score_many(executor: SandboxPool, programs: Sequence[str], task: Task, seeds: Sequence[int]) -> list[Outcome]:
    """The outcomes of programs.

    Raises:
        UserError: the sandbox failed, and not a program.
    """
    outcomes = executor.score_many(programs, task.x, task.y, seeds)
    for outcome in outcomes:
        if outcome.status is Status.INFRASTRUCTURE_FAULT:
            raise UserError(f"the sandbox failed: {outcome.error_text}; `etpo doctor` says what is wrong")
    return outcomes


def score(program: Path, path: Path, target: str, count: int | None) -> bool:
    """Prints the score of one program on a table.

    Returns:
        Whether it ran on every split.
    """
    (source, above), seeds = read_program(program), splits(count)
    table = read_table(path, target, (*seeds.reward, *seeds.held_out))
    show(table, path)
    with open_executor(load_defaults().sandbox) as executor:
        found = [score_many(executor, [source], table.task, part)[0] for part in (seeds.reward, seeds.held_out)]
    for name, outcome, part in zip(("reward", "held-out"), found, (seeds.reward, seeds.held_out), strict=True):
        each = " ".join(f"{value:.3f}" for value in outcome.scores)
        print(f"{len(part)} {name} splits: {outcome_text(outcome, above)}{f' ({each})' if each else ''}")
    return all(outcome.status is Status.OK for outcome in found)
