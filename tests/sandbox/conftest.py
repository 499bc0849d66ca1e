"""A pool for the whole session, a pool of each tier, quick workers, and a small table."""

import itertools
import os
import warnings

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from programs import INNOCENT, LIMITS, WALL, open_tier  # noqa: E402
from quick_workers import workers_from  # noqa: E402

from etpo_core.sandbox import Limits, SandboxPool, Status  # noqa: E402

_number = itertools.count()


@pytest.fixture(scope="session")
def table():
    """A fixed two-class table, 120 x 4, on which GaussianNB scores well but not perfectly."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 120)
    return rng.normal(size=(120, 4)) + 0.8 * y[:, None], y


@pytest.fixture(scope="session")
def pool():
    """Two workers behind all walls of this machine, or without one where it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SandboxPool(2, LIMITS, allow_unsafe=not WALL) as opened:
            yield opened


@pytest.fixture(scope="session")
def pandas_pool():
    """A worker that loads pandas, with the limits of the experiments."""
    with SandboxPool(1, Limits(), preload=["pandas"]) as opened:
        yield opened


@pytest.fixture(scope="session")
def tier_pool():
    """A function that returns the pool of one worker that holds programs in by a tier, opened at its first use.

    Tier D lets everything through: it shows that an attack is a real one.
    """
    opened = {}

    def of(tier):
        if tier not in opened:
            try:
                opened[tier] = open_tier(tier)
            except (pytest.skip.Exception, pytest.fail.Exception) as refusal:
                opened[tier] = refusal
        if isinstance(opened[tier], BaseException):
            raise opened[tier]
        return opened[tier]

    yield of
    for one in opened.values():
        if not isinstance(one, BaseException):
            one.close()


@pytest.fixture
def quick_workers(quick_program):
    """Has the workers that are started in a test load numpy only, for tests that are not about scikit-learn."""
    with workers_from(quick_program):
        yield quick_program


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
        fresh = [f"{INNOCENT}# {next(_number)}" for _ in range(2)]  # a new text each: nothing comes from the cache
        assert [o.score for o in pool.score_many(fresh, *table, [0])] == [honest] * 2
        return outcome

    return once
