"""Makes several runs of a scale in one process, which share the model's weights and the executor.

    python -m pipeline.group --scale study etpo/kidney-stone/0 etpo/kidney-stone/1 ppo_kl/kidney-stone/0

Each pass of the model writes the next tokens of all runs (`etpo_paper.model.trunk`), so ten runs are made in a fraction
of the time that they take one after another. A run has the same files, to the last byte but for the clock, as
`pipeline.train` gives it alone; methods, tasks and seeds mix. Each run has a checkpoint of its own: it can be stopped
here and gone on with alone or in another group. A run that fails is named at the end, and the others are finished. A
run that another process is at is passed over and named, with exit status 75.
"""

import sys
from collections.abc import Callable, Sequence

from etpo_core.errors import UserError
from etpo_paper.base import distributed
from etpo_paper.base.lock import HELD, HeldError
from etpo_paper.base.lockstep import Lockstep
from etpo_paper.base.machine import one_heap
from etpo_paper.base.settings import Settings
from etpo_paper.data.tasks import check_task
from etpo_paper.model.trunk import Part, Passed, Trunk
from etpo_paper.report.names import counted
from etpo_paper.training.agents import Asks, Common
from etpo_paper.training.run import Run
from pipeline import entry
from pipeline.resolve import resolve
from pipeline.train import run_stage

Request = tuple[Trunk, Part]


def make(runs: Sequence[Run]) -> list[Exception | None]:
    """Makes runs side by side.

    Returns:
        For each run the exception that ended it, or None.
    """
    if distributed.size() > 1:
        raise UserError("a group of runs is made by one process; start it without torchrun")
    settings = {run: resolve(run.scale, run.method) for run in runs}
    steps = sum(of_run.training.env_steps for of_run in settings.values())
    one_heap()
    with Common(steps, counted(len(runs), "run")) as common:

        def job(run: Run, of_run: Settings) -> Callable[[Asks], None]:
            return lambda ask: run_stage(run, of_run, common, ask)

        return Lockstep(passes).run([job(run, of_run) for run, of_run in settings.items()])


def passes(requests: list[Request]) -> list[Passed]:
    """One pass of each trunk for all that ask for it."""
    trunks = list(dict.fromkeys(trunk for trunk, _ in requests))
    passed = {trunk: iter(trunk.forward([part for t, part in requests if t is trunk])) for trunk in trunks}
    return [next(passed[trunk]) for trunk, _ in requests]


def named(scale: str, text: str) -> Run:
    """The run that is written METHOD/TASK/SEED.

    Raises:
        UserError: it is written otherwise.
    """
    parts = text.split("/")
    if len(parts) != 3 or not parts[2].isdecimal():
        raise UserError(f"run {text!r}: expected METHOD/TASK/SEED, e.g. etpo/diabetes/0")
    method, task, seed = parts
    check_task(task)
    return Run(scale, method, task, int(seed))


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the runs of the command line."""
    parser = entry.parser(__doc__, scale="study")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="METHOD/TASK/SEED, e.g. etpo/kidney-stone/0")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        runs = list(dict.fromkeys(named(arguments.scale, text) for text in arguments.runs))
        errors = {run: error for run, error in zip(runs, make(runs), strict=True) if error is not None}
        for error in errors.values():
            if not isinstance(error, UserError):
                raise error
        for run, error in errors.items():
            print(
                f"error: {error}" if isinstance(error, HeldError) else f"error: {run.folder}: {error}", file=sys.stderr
            )
        if errors:
            sys.exit(HELD if all(isinstance(error, HeldError) for error in errors.values()) else 2)


if __name__ == "__main__":
    main()
