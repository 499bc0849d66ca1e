"""What all stages share: the form of their command line, and mistakes told in one line.

A stage that takes a scale and nothing else looks like this:

    def main(argv: Sequence[str] | None = None) -> None:
        entry.run_scale(run, __doc__, argv)  # `run(scale)` begins with its settings, see pipeline/resolve.py
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from etpo_core import errors


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are told like all others: in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """`etpo_core.errors.one_line_errors`, and a line at the start where Ctrl-C has no effect.

    A command that a script starts in the background inherits that the signal of Ctrl-C is ignored, and Python leaves it
    so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        stop = f"`kill {os.getpid()}` stops it"
        print(f"note: Ctrl-C has no effect here, what started this command switched it off; {stop}", file=sys.stderr)
    with errors.one_line_errors():
        yield


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
