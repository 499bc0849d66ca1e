"""The same program has the same score on any worker, in any order, under any load."""

import os

import numpy as np
import pytest
from programs import INNOCENT, LIMITS, body

from etpo_core.sandbox import SandboxPool, Status
from etpo_core.sandbox.worker import Worker

UNSEEDED = {
    "forest": "from sklearn.ensemble import RandomForestClassifier as M\n"
    "def build_model(a, b):\n    return M(8).fit(a, b)\n",
    "network": "from sklearn.neural_network import MLPClassifier as M\n"
    "def build_model(a, b):\n    return M(9, max_iter=9).fit(a, b)\n",
    "generator": body("x_train += np.random.default_rng().normal(size=x_train.shape)"),
    "state": body("x_train += np.random.RandomState().normal(size=x_train.shape)"),
    "random": body("import random\nx_train += [[random.gauss(0, 1) for _ in row] for row in x_train]"),
    "hash": body("x_train[:, 0] = [hash(str(v)) % 97 for v in x_train[:, 0]]"),
}


@pytest.fixture(scope="module")
def other_pool():
    """A pool that was started by a process with other habits."""
    kept = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2", PYTHONHASHSEED="7", JOBLIB_MULTIPROCESSING="1")
    try:
        with SandboxPool(1, LIMITS, allow_unsafe=True) as opened:
            yield opened
    finally:
        os.environ.clear()
        os.environ.update(kept)


def test_unseeded_programs_repeat(pool, other_pool, table):
    sources = list(UNSEEDED.values())
    first = [outcome.scores for outcome in pool.score_many(sources, *table, [0, 1])]
    assert all(first)
    again = [source + "#" for source in sources]
    assert [o.scores for o in pool.score_many(again[::-1], *table, [0, 1])][::-1] == first
    assert [o.scores for o in other_pool.score_many(sources, *table, [0, 1])] == first


def test_the_seed_is_what_decides(pool, table):
    source = UNSEEDED["generator"]
    assert pool.score(source, *table, [0], seed=1).score != pool.score(source, *table, [0], seed=2).score


def test_messages_repeat_too(pool, other_pool, table):
    source = body("raise ValueError(object())")
    assert pool.score(source, *table, [0]).error_text == other_pool.score(source, *table, [0]).error_text


def test_order_is_kept_and_equals_serial(pool, table):
    sources = [
        INNOCENT,
        body("raise ValueError('a')"),
        *UNSEEDED.values(),
        "x",
        INNOCENT + "# b",
        body("1 / 0"),
    ] * 2
    together = pool.score_many(sources, *table, [0])
    fresh = [source + "# serial" for source in sources]
    alone = [pool.score(source, *table, [0]) for source in fresh]
    assert [(o.status, o.scores, o.error_text) for o in together] == [(o.status, o.scores, o.error_text) for o in alone]
    assert [o.scores for o in pool.score_iter(sources, *table, [0])] == [o.scores for o in together]


def test_identical_jobs_run_once(pool, table, monkeypatch):
    ran = []
    run = Worker.run
    monkeypatch.setattr(Worker, "run", lambda self, *job: ran.append(job) or run(self, *job))
    source = INNOCENT + "# once"
    first = pool.score_many([source] * 5, *table, [0, 1])
    assert len(ran) == 2 and len(set(first)) == 1  # one program, two splits
    assert pool.score(source, *table, [0, 1]) is first[0] and len(ran) == 2
    for other in (dict(split_seeds=[0]), dict(split_seeds=[0, 1], seed=1)):
        pool.score(source, *table, **other)
    x, y = table
    pool.score(source, x + 1, y, [0, 1])
    pool.score(source, x, 1 - y, [0, 1])
    assert len(ran) == 2 + 1 + 2 + 2 + 2


def test_one_thread_and_one_kernel_set(pool, table):
    probe = """
from sklearn.utils.parallel import _get_threadpool_controller
info = _get_threadpool_controller().info()
assert info and all(library['num_threads'] == 1 for library in info), info
raise ValueError(sorted({library.get('architecture') for library in info} - {None}))"""
    message = pool.score(body(probe), *table, [0]).error_text
    assert message.startswith("ValueError: ["), message
    if " avx2 " in open("/proc/cpuinfo").read():
        assert message.startswith("ValueError: ['Haswell']")


def test_equal_values_are_sorted_alike_on_every_processor(pool, table):
    found = "np.show_config(mode='dicts')['SIMD Extensions'].get('found', [])"
    probe = body(f"raise ValueError([f for f in {found} if f == 'X86_V4' or f.startswith('AVX512')])")
    assert pool.score(probe, *table, [0]).message == "[]"


def test_a_batch_of_failures_and_successes_is_all_there(pool, table):
    rng = np.random.default_rng(5)
    sources = [body(f"v = {rng.integers(9)}") if i % 2 else body(f"raise ValueError({i})") for i in range(30)]
    outcomes = pool.score_many(sources, *table, [0])
    assert [o.status for o in outcomes] == [Status.SNIPPET_ERROR, Status.OK] * 15
