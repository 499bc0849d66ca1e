"""What all commands share: how threads wait, the form of a command line, and mistakes told in one line.

Import it before torch: the libraries read how threads wait when they are loaded.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

from etpo_core import errors

# Threads that wait for each other must sleep, not spin: where another process wants a core as well - the executor's
# workers, or anything else on a laptop - spinning makes every product of matrices many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _told(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tells Ctrl-C in one line while the libraries are loaded, which is before `one_line_errors` is entered."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped before anything was done", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _told


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are told like all others: in one line, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        """Ends the program."""
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


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
