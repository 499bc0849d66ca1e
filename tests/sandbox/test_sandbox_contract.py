"""What a program must do to count, where it takes several splits to tell; `corpus.py` has the rest."""

import gc
import os
import threading
import time

from programs import INNOCENT, body, children

from etpo_core.sandbox import Status
from etpo_core.sandbox.worker import Worker


def test_a_failing_first_split_ends_the_job(pool, table):
    failing = body("import time; time.sleep(0.05); raise ValueError('first')")
    outcome = pool.score(failing, *table, range(5))
    assert outcome.status is Status.SNIPPET_ERROR and outcome.scores == ()
    assert outcome.wall_s < pool.score(body("import time; time.sleep(0.05)"), *table, range(5)).wall_s


def test_the_error_of_what_is_closed_says_so(pool, table):
    message = pool.score(body("open('data.csv')"), *table, [0]).message
    closed = "programs may use no files, sockets, processes or signals"
    assert message == f"[Errno 13] Permission denied: 'data.csv'; {closed}"
    assert closed in pool.score(body("import asyncio; asyncio.new_event_loop()"), *table, [0]).message


def test_a_program_begun_ahead_is_found_under_way_and_runs_once(pool, table, monkeypatch):
    seen, run = [], Worker.run
    monkeypatch.setattr(
        Worker, "run", lambda self, source, *rest: seen.append(source.decode()) or run(self, source, *rest)
    )
    first, second = (body(f"import time; time.sleep(0.05)  # ahead {n}") for n in range(2))
    with pool.ahead(*table, range(2)) as start:
        start(second)
        until = time.monotonic() + 20
        while not seen and time.monotonic() < until:
            time.sleep(0.01)
        assert set(seen) == {second}
        outcomes = pool.score_many([first, second], *table, range(2))
    assert [o.status for o in outcomes] == [Status.OK] * 2
    assert sorted(seen) == sorted([first, second] * 2)  # each once on each of the two splits
    assert pool.score_many([first, second], *table, range(2)) == outcomes


def test_many_runs_leave_the_host_as_it_was(pool, table):
    def state():
        gc.collect()
        below = descendants(os.getpid())
        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(os.listdir("/proc/self/task")),
            below,
            [len(os.listdir(f"/proc/{pid}/fd")) for pid in below] if os.getuid() == 0 else 0,
        )

    def descendants(pid):
        return [other for child in children(pid) for other in (child, *descendants(child))]

    mixture = [
        INNOCENT,
        body("raise ValueError"),
        body("import os; os._exit(0)"),
        body("import os; os.write(3, b'x' * 99)"),
        body("import ctypes; ctypes.string_at(0)"),
        body("np.ones(10 ** 10)"),
        body("open('/etc/passwd')"),
        "(",
    ]
    pool.score_many([source + "# warm" for source in mixture], *table, [0])
    before = state()
    sources = [f"{source}# {i}" for i in range(8) for source in mixture]
    outcomes = pool.score_many(sources, *table, [0])
    assert len(outcomes) == 64 and state() == before
    for offset in range(len(mixture)):
        assert len({outcome.status for outcome in outcomes[offset :: len(mixture)]}) == 1
    assert Status.INFRASTRUCTURE_FAULT not in {outcome.status for outcome in outcomes}
