"""Workers of the executor that start in a tenth of the time, for tests that are not about what programs compute."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etpo_core.sandbox import worker

PRELOAD = """

def preload(extra):
    import numpy.ma, numpy.random
    for name in extra:
        _load(name)
"""


def quick_inside(folder: Path) -> Path:
    """A copy of the program that a worker runs, which loads numpy where the original loads all of scikit-learn.

    The walls, the watching and the protocol are those of the original.
    """
    inside = folder / "inside"
    shutil.copytree(worker._INSIDE, inside)
    with (inside / "preload.py").open("a") as file:
        file.write(PRELOAD)
    return inside


@contextmanager
def workers_from(inside: Path) -> Iterator[None]:
    """Has all workers that are started within run the program in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_INSIDE", inside)
        yield
