"""The floor under V that the paper's rule gives a policy that always fails."""

from benchmarks.step_limit import TRIES, learn


def test_five_failures_are_the_least_that_a_state_is_worth_where_the_limit_ends_the_episode():
    shares, values = zip(*learn(False, seed=0, updates=60), strict=True)
    assert sum(shares[:60]) < 6  # it fails nearly always, so V has every reason to sink
    assert -TRIES < min(values) < -TRIES + 1


def test_with_a_bootstrap_at_the_limit_the_value_sinks_through_that_floor():
    _, values = zip(*learn(True, seed=0, updates=60), strict=True)
    assert min(values) < -TRIES - 1
