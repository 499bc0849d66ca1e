"""What a program must do to count, where it takes several splits to tell; `corpus.py` has the rest."""

import time

import pytest
from programs import body

from etpo_core.sandbox import Status


def test_a_failing_first_split_ends_the_job(pool, table):
    failing = body("import time; time.sleep(0.05); raise ValueError('first')")
    outcome = pool.score(failing, *table, range(5))
    assert outcome.status is Status.SNIPPET_ERROR and outcome.scores == ()
    assert outcome.wall_s < pool.score(body("import time; time.sleep(0.05)"), *table, range(5)).wall_s


def test_a_program_begun_ahead_is_found_under_way_and_runs_once(pool, table, monkeypatch):
    seen, score = [], pool._score
    monkeypatch.setattr(pool, "_score", lambda job: seen.append(job.source) or score(job))
    first, second = (body(f"import time; time.sleep(0.05)  # ahead {n}") for n in range(2))
    with pool.ahead(*table, range(2)) as start:
        start(second)
        until = time.monotonic() + 20
        while not seen and time.monotonic() < until:
            time.sleep(0.01)
        assert seen == [second]
        outcomes = pool.score_many([first, second], *table, range(2))
    assert [o.status for o in outcomes] == [Status.OK] * 2
    assert sorted(seen) == sorted([first, second])
    assert pool.score_many([first, second], *table, range(2)) == outcomes


def test_what_was_begun_ahead_is_stopped_when_nobody_asks_for_it(pool, table):
    sleeper = body("import time; time.sleep(20)  # ahead")
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="no memory"), pool.ahead(*table, [0]) as start:
        for n in range(4):
            start(f"{sleeper}# {n}")
        time.sleep(0.3)
        raise RuntimeError("no memory")
    # Both workers are free again, and nothing is remembered of what was cut short.
    assert pool.score(body("# after"), *table, [0]).status is Status.OK
    assert time.monotonic() - began < 15
    assert not any("# ahead" in job.source for job in list(pool._jobs.values()))
