"""Makes several runs of a scale in one process.

    python -m pipeline.group --scale study etpo/kidney-stone/0 ppo_kl/kidney-stone/0

A run is written METHOD/TASK/SEED. Finished runs are kept, stopped ones go on, and those that another process holds are
passed over, with exit status 75 at the end. A run that fails does not keep the others from being made.
"""

import sys
from collections.abc import Sequence

from etpo_core.errors import UserError
from etpo_paper.base.lock import HELD, HeldError
from etpo_paper.training.run import Run
from pipeline import entry
from pipeline.resolve import resolve
from pipeline.train import run_stage


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the runs from the command line."""
    parser = entry.parser(__doc__, scale="study")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="METHOD/TASK/SEED, e.g. etpo/kidney-stone/0")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        held: list[HeldError] = []
        failed: list[str] = []
        for text in arguments.runs:
            method, task, seed = text.split("/")
            run = Run(arguments.scale, method, task, int(seed))
            try:
                run_stage(run, resolve(run.scale, run.method))
            except HeldError as error:
                held.append(error)
            except UserError as error:
                failed.append(f"{run.folder}: {error}")
        if failed:
            raise UserError(failed[0])
        if held:
            print(f"error: {held[0]}", file=sys.stderr)
            sys.exit(HELD)


if __name__ == "__main__":
    main()
