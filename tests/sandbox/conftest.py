"""A pool for the whole session, a pool of each tier, and a small table."""

import itertools
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from programs import INNOCENT, LIMITS, WALL, open_tier  # noqa: E402
from unprivileged import NOBODY, command_as_nobody  # noqa: E402

from etpo_core.sandbox import SandboxPool, Status  # noqa: E402

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


@pytest.fixture(scope="session", autouse=True)
def elsewhere(request, tmp_path_factory):
    """Runs of the corpus beside all other tests of the folder: by name, the process, or why it is not there."""
    if not any(item.name.startswith("test_the_corpus_elsewhere") for item in request.session.items):
        yield {}
        return
    here = Path(__file__).parent
    corpus = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", "--confcutdir", str(here)]
    corpus += [str(here / "test_corpus.py"), "--basetemp"]
    once = [*corpus, str(tmp_path_factory.mktemp("b") / "pytest"), "-k", "not test_positive_control"]
    runs = {"tier B": _started(tmp_path_factory, once, CORPUS="B")}
    drop, why_not = command_as_nobody() if os.geteuid() == 0 else (None, "these tests run as an ordinary user already")
    folder = Path(f"/tmp/etpo-nobody-{os.getpid()}")  # below tmp_path_factory's folder it could not be reached
    if drop:
        folder.mkdir(mode=0o700)
        os.chown(folder, NOBODY, NOBODY)
        home = {"HOME": str(folder), "TMPDIR": str(folder), "CORPUS": "AC"}
        runs["ordinary user"] = _started(tmp_path_factory, [*drop, *corpus, str(folder / "pytest")], **home)
    else:
        runs["ordinary user"] = why_not
    yield runs
    for process in runs.values():
        if not isinstance(process, str):
            process.kill()
            process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _started(tmp_path_factory, command, **environment):
    output = tmp_path_factory.mktemp("elsewhere") / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, "COLUMNS": "200"},
            cwd=Path(__file__).parents[2],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    process.output = output
    return process
