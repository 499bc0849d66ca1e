"""Programs, limits, pools and looks at processes that the executor's tests share."""

import os
import time
import warnings
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import pytest

from etpo_core.errors import UserError
from etpo_core.sandbox import Limits, SandboxPool, Tier
from etpo_core.sandbox.filter import Unavailable, compile_filter
from etpo_core.sandbox.walls import probe

LIMITS = Limits(cpu_s=1.0, wall_s=30.0, memory_mb=512)
INNOCENT = """
from sklearn.naive_bayes import GaussianNB
def build_model(x_train, y_train):
    return GaussianNB().fit(x_train, y_train)
"""
BEST = probe().tier  # the best tier that this machine gives; the corpus runs in full at this one
REQUIRED = os.environ.get("ETPO_SANDBOX_REQUIRE", "")  # the best tier that this machine must give, e.g. "A"
try:
    compile_filter()
    WALL = True
except Unavailable:
    WALL = False
needs_wall = pytest.mark.skipif(not WALL, reason="no system-call filter on this machine")


def body(text: str) -> str:
    """A program whose build_model first runs `text` and then behaves."""
    lines = "".join(f"    {line}\n" for line in text.strip("\n").splitlines())
    return (
        "import numpy as np\nfrom sklearn.naive_bayes import GaussianNB\n"
        f"def build_model(x_train, y_train):\n{lines}    return GaussianNB().fit(x_train, y_train)\n"
    )


def open_tier(tier: str) -> SandboxPool:
    """A pool of one worker that holds programs in by exactly this tier.

    A tier that the machine cannot give skips the test, unless ETPO_SANDBOX_REQUIRE says that it must: a wall that
    silently went missing would otherwise pass for ever.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return SandboxPool(1, LIMITS, tier=Tier(tier), allow_unsafe=tier == "D")
    except UserError as error:
        if REQUIRED and REQUIRED <= tier:
            pytest.fail(f"tier {tier} is required here, and missing: {error}")
        pytest.skip(str(error))


def quick_body(text: str) -> str:
    """The same for workers that load numpy only (see `quick_workers`)."""
    lines = "".join(f"    {line}\n" for line in text.strip("\n").splitlines())
    return f"""
import numpy as np
class Model:
    classes_ = np.array([0, 1])
    def predict_proba(self, x):
        return np.c_[-x[:, 0], x[:, 0]]
def build_model(x_train, y_train):
{lines}    return Model()
"""


HONEST, LOOP = quick_body("pass"), quick_body("while True: pass")


# Processes -----------------------------------------------------------------------------------------------------------


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; of a process that is gone, those of a dead one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", *["0"] * 50]


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return _stat(pid)[0] not in "ZX"


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    user, system = _stat(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Process ids of the children of a process, whichever of its threads started them."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += [int(text) for text in thread.read_text().split()]
    return sorted(found)


def workers_of(host: int, others: Collection[int] = ()) -> list[int]:
    """Process ids of the workers of a host: its children but for `others`, or the child of one that is bubblewrap."""
    found = []
    for pid in set(children(host)) - set(others):
        with suppress(FileNotFoundError, ProcessLookupError):
            found += children(pid) if Path(f"/proc/{pid}/comm").read_text() == "bwrap\n" else [pid]
    return found


def looping_child(host: int, others: Collection[int] = ()) -> tuple[int, int]:
    """Process ids of the only worker of a host (see `workers_of`) and of its child, once that is in its loop."""
    found: list[int] = []

    def looping() -> bool:
        found[:] = [pid for worker in workers_of(host, others) for pid in (worker, *children(worker))]
        return len(found) == 2 and cpu_s(found[1]) > 0.1

    until(looping)
    return found[0], found[1]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Waits until a condition holds; fails if it does not within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
