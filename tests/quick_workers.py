"""Workers of the executor that start in a tenth of the time, for tests that are not about what programs compute."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from etpo_core.sandbox import worker


def quick_inside(folder: Path) -> Path:
    """A copy of the program that a worker runs, which loads numpy where the original loads all of scikit-learn.

    The walls, the watching and the protocol are those of the original.
    """
    inside = folder / "inside"
    shutil.copytree(worker._INSIDE, inside)
    with (inside / "preload.py").open("a") as file:
        file.write("\n\ndef preload(extra):\n    import numpy.ma, numpy.random\n")
    return inside


@contextmanager
def workers_from(inside: Path) -> Iterator[None]:
    """Has all workers that are started within run the program in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_INSIDE", inside)
        yield
