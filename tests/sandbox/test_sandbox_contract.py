"""What a program must do to count, where it takes several splits to tell; `corpus.py` has the rest."""

from programs import body

from etpo_core.sandbox import Status


def test_a_failing_first_split_ends_the_job(pool, table):
    failing = body("import time; time.sleep(0.05); raise ValueError('first')")
    outcome = pool.score(failing, *table, range(5))
    assert outcome.status is Status.SNIPPET_ERROR and outcome.scores == ()
    assert outcome.wall_s < pool.score(body("import time; time.sleep(0.05)"), *table, range(5)).wall_s
