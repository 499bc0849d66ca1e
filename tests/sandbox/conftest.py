"""A pool for the whole session, a pool without a wall for positive controls, and a small table."""

import itertools
import os
import warnings

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from programs import INNOCENT, LIMITS, WALL  # noqa: E402

from etpo_core.sandbox import SandboxPool, Status  # noqa: E402
from etpo_core.sandbox import pool as pool_module
from etpo_core.sandbox.filter import Unavailable  # noqa: E402

_number = itertools.count()


@pytest.fixture(scope="session")
def table():
    """A fixed two-class table, 120 x 4, on which GaussianNB scores well but not perfectly."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 120)
    return rng.normal(size=(120, 4)) + 0.8 * y[:, None], y


@pytest.fixture(scope="session")
def pool():
    """Two workers behind the wall (tier C), or without one where this machine has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SandboxPool(2, LIMITS, allow_unsafe=not WALL) as opened:
            yield opened


@pytest.fixture(scope="session")
def open_pool():
    """One worker without a wall: what it lets through shows that an attack is a real one."""

    def no_filter():
        raise Unavailable("switched off for a positive control")

    kept = pool_module.compile_filter
    pool_module.compile_filter = no_filter
    try:
        with pytest.warns(RuntimeWarning, match="WITHOUT a sandbox"):
            opened = SandboxPool(1, LIMITS, allow_unsafe=True)
    finally:
        pool_module.compile_filter = kept
    with opened:
        yield opened


@pytest.fixture(scope="session")
def honest(pool, table):
    """The innocent program's score."""
    outcome = pool.score(INNOCENT, *table, [0])
    assert outcome.status is Status.OK and 0.7 < outcome.score < 1
    return outcome.score


@pytest.fixture
def run(pool, table, honest):
    """Runs a program on one split, then checks that the innocent one still scores as before on both workers."""

    def once(source, seeds=(0,)):
        outcome = pool.score(source, *table, list(seeds))
        fresh = [
            f"{INNOCENT}# {next(_number)}" for _ in range(2)
        ]  # a new text each: nothing comes from the cache
        assert [o.score for o in pool.score_many(fresh, *table, [0])] == [honest] * 2
        return outcome

    return once
