"""The stages of dvc.yaml, a thin script each."""

import os
import sys
from types import TracebackType

# Threads that wait for each other must sleep, not spin: where another process wants a core as well - the executor's
# workers, or anything else on a laptop - spinning makes every product of matrices many times slower. The libraries
# read this when they are loaded, which is after this module.
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
