"""What all stages share: the form of their command line, and mistakes told in one line.

A stage that takes a scale and nothing else looks like this:

    def main(argv: Sequence[str] | None = None) -> None:
        entry.run_scale(run, __doc__, argv)  # `run(scale)` begins with its settings, see pipeline/resolve.py
"""

import argparse
from collections.abc import Callable, Sequence

from etpo_paper.base.command_line import Parser, one_line_errors

__all__ = ["Parser", "one_line_errors", "parser", "run_scale"]


def parser(doc: str | None, *, scale: str | None = None) -> Parser:
    """The command line of a stage.

    Args:
        doc: the module's docstring, which is what `--help` shows.
        scale: an example of a scale, for a stage that takes one.
    """
    made = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if scale is not None:
        made.add_argument("--scale", required=True, help=f"one of params.yaml or a finished round, e.g. {scale}")
    return made


def run_scale(
    run: Callable[[str], object], doc: str | None, argv: Sequence[str] | None, example: str = "laptop"
) -> None:
    """The command line of a stage that takes a scale and nothing else.

    Args:
        run: what the stage does for a scale.
        doc: see `parser`.
        argv: the arguments; None takes those of the process.
        example: a scale that it can be run for, for `--help`.
    """
    arguments = parser(doc, scale=example).parse_args(argv)
    with one_line_errors():
        run(arguments.scale)
