"""The statistics against values worked out by hand, and intervals against their known coverage."""

import numpy as np
import pandas as pd
import pytest

from etpo_paper.report import statistics as st


def rng():
    return np.random.default_rng(7)


def test_best_so_far_by_hand():
    rewards = np.array([[-1.0, 0.6, 0.5, 0.8], [0.7, -1.0, 0.7, 0.1]])
    expected = [[-1.0, 0.6, 0.6, 0.8], [0.7, 0.7, 0.7, 0.7]]
    np.testing.assert_array_equal(st.best_so_far(rewards), expected)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([9, 0, 1, 1, 9, 1, 1, 0], 1.0),  # the two lowest and the two highest of eight go
        ([100, 2, 4], 106 / 3),  # fewer than four: the plain mean
        ([-50, 1, 3, 80], 2.0),
        ([5.0], 5.0),
    ],
)
def test_interquartile_mean_by_hand(scores, expected):
    assert st.interquartile_mean(np.array(scores)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("runs", [1, 3, 4, 8, 13, 20])
def test_interquartile_mean_is_scipys_trimmed_mean(runs):
    from scipy.stats import trim_mean

    scores = rng().normal(size=(runs, 3))
    np.testing.assert_allclose(st.interquartile_mean(scores), trim_mean(scores, 0.25), rtol=0, atol=1e-14)


def test_interquartile_mean_does_not_depend_on_the_order_of_the_runs():
    scores = rng().normal(size=11)
    assert len({float(st.interquartile_mean(np.roll(scores, shift))) for shift in range(11)}) == 1


def test_mean_over_tasks_weighs_tasks_and_not_runs():
    assert st.mean_over_tasks([np.array([0.0]), np.array([1.0, 1.0, 1.0])]) == 0.5
    assert st.pooled_iqm([np.array([0.0]), np.array([1.0, 1.0, 1.0])]) == 1.0  # 0 and one 1 are cut


def test_probability_of_improvement_by_hand():
    # Task 1: pairs 3>2, 3>1, 1<2, 1=1 -> 2.5 of 4. Task 2: always below -> 0.
    first, second = [np.array([3, 1]), np.array([0])], [np.array([2, 1]), np.array([5])]
    assert st.probability_of_improvement(first, second) == pytest.approx(0.3125, rel=1e-15)
    assert st.probability_of_improvement(second, first) == pytest.approx(1 - 0.3125, rel=1e-15)


def test_std_over_seeds_by_hand():
    assert st.std_over_seeds([np.array([1.0, 3.0]), np.array([0.0, 0.0])]) == pytest.approx(1.0)  # variances 2 and 0
    assert np.isnan(st.std_over_seeds([np.array([1.0])]))
    twice = st.bootstrap_std_ratio([np.array([2.0, 4.0, 9.0])], [np.array([1.0, 2.0, 4.5])], rng())
    assert twice.point == pytest.approx(2.0) and twice.low < 2.0 < twice.high
    assert np.isnan(st.bootstrap_std_ratio([np.array([1.0])], [np.array([1.0, 2.0])], rng())).all()
    still = st.bootstrap_std_ratio([np.zeros(3)], [np.zeros(3)], rng())
    assert tuple(still) == (1.0, 1.0, 1.0)


def test_std_ratio_covers_the_truth():
    generator, inside = rng(), 0
    for _ in range(200):
        first, second = ([generator.normal(0, s, 8) for _ in range(4)] for s in (1.0, 2.0))
        interval = st.bootstrap_std_ratio(first, second, generator, draws=200)
        inside += interval.low <= 0.5 <= interval.high
    assert inside > 170  # 190 of 200 for an exact interval; a percentile bootstrap of eight runs is too narrow


def test_a_fall_is_one_beyond_the_interval():
    curve = st.Interval(np.array([0.0, 0.5, 0.3, 0.1]), np.array([-0.1, 0.4, 0.2, 0.0]), np.array([0.1, 0.6, 0.4, 0.2]))
    assert st.falls(curve).tolist() == [False, False, False, True]
    assert not st.falls(st.Interval(curve.point, np.full(4, np.nan), np.full(4, np.nan))).any()


def test_performance_profile_by_hand():
    strata = [np.array([0.2, 0.8]), np.array([0.5])]
    np.testing.assert_allclose(
        st.performance_profile(strata, np.array([0.1, 0.2, 0.6, 0.9])), [1.0, 0.75, 0.25, 0.0], rtol=1e-15
    )


def test_bootstrap_covers_the_mean():
    generator, hits = rng(), 0
    for _ in range(300):
        strata = [generator.normal(loc, 1.0, size=20) for loc in (0.0, 5.0, -2.0)]
        interval = st.bootstrap(strata, st.mean_over_tasks, generator, draws=400)
        hits += interval.low <= 1.0 <= interval.high
    # 95 % nominal, a little less at n=20; four standard errors of 300 trials are 0.05.
    assert 0.88 <= hits / 300 <= 0.985


def test_bootstrap_draws_within_tasks():
    # Tasks far apart, runs of a task equal: drawing across tasks would give a wide interval.
    interval = st.bootstrap([np.array([0.0, 0.0]), np.array([100.0, 100.0])], st.mean_over_tasks, rng())
    assert interval == (50.0, 50.0, 50.0)


def test_bootstrap_of_two_runs_by_hand():
    # Two runs, 0 and 1: means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4, so the 95 % interval is all of [0, 1].
    interval = st.bootstrap([np.array([0.0, 1.0])], st.mean_over_tasks, rng())
    assert interval == (0.5, 0.0, 1.0)
    assert st.bootstrap([np.array([0.0, 1.0])], st.mean_over_tasks, rng(), level=0.4).low == 0.5


def test_the_level_is_the_mass_between_the_ends():
    # The first run drawn of 0..99 is uniform: 95 % of the draws lie between 2.5 and 97.5, less half a step.
    interval = st.bootstrap([np.arange(100.0)], lambda strata: strata[0][0], rng(), draws=20_000)
    assert interval.low == pytest.approx(2.0, abs=0.6) and interval.high == pytest.approx(97.0, abs=0.6)


def test_bootstrap_is_the_same_for_the_same_generator_and_for_curves_in_portions(monkeypatch):
    strata = [rng().normal(size=(4, 6)), rng().normal(size=(3, 6))]
    one = st.bootstrap(strata, st.mean_over_tasks, rng(), draws=100)
    two = st.bootstrap(strata, st.mean_over_tasks, rng(), draws=100)
    np.testing.assert_array_equal(one, two)
    assert one.low.shape == (6,) and (one.low < one.high).all()
    monkeypatch.setattr(st, "_PORTION", 24 * 7)
    many = st.bootstrap(strata, st.mean_over_tasks, rng(), draws=4000)
    whole = st.bootstrap(strata, st.mean_over_tasks, np.random.default_rng(8), draws=4000)
    np.testing.assert_allclose(many.low, whole.low, atol=0.1)


@pytest.mark.parametrize("second", [[0.5], [0.4, 0.6]], ids=["one run a task", "one task with one run"])
def test_a_task_with_one_run_leaves_no_interval(second):
    interval = st.bootstrap([np.array([0.3]), np.array(second)], st.mean_over_tasks, rng())
    assert interval.point == pytest.approx(0.4)
    assert np.isnan(interval.low) and np.isnan(interval.high)
    assert st.interval_text(*map(float, interval)) == "0.400"


def test_interval_text():
    assert st.interval_text(0.8123, 0.79, 0.8349) == "0.812 [0.790, 0.835]"
    assert st.interval_text(-0.0001, -0.0004, 0.001) == "0.000 [0.000, 0.001]"
    assert st.interval_text(float("nan"), float("nan"), float("nan")) == "–"


def runs():
    rows = [("a", "t1", 0, 0.9), ("a", "t1", 1, 0.5), ("b", "t1", 0, 0.8), ("b", "t1", 1, 0.45), ("a", "t2", 0, 1.0)]
    rows += [("b", "t2", 0, 0.5), ("b", "t2", 1, 0.0)]
    return pd.DataFrame(rows, columns=["method", "task", "seed", "score"])


def test_paired_differences_take_only_pairs():
    first, second = st.paired_differences(runs(), "score", "a", "b")
    np.testing.assert_allclose(first, [0.1, 0.05], atol=1e-15)
    np.testing.assert_allclose(second, [0.5], atol=1e-15)
    assert st.paired_differences(runs(), "score", "a", "nobody") == []


def test_compare_by_hand():
    table = st.compare(runs(), "score", ["a", "b"], "a", rng()).set_index("method")
    assert table.loc["a", "runs"] == 3 and table.loc["b", "runs"] == 4
    assert table.loc["a", "iqm"] == pytest.approx(0.8)
    assert np.isnan(table.loc["a", "difference"])
    assert table.loc["b", "difference"] == pytest.approx(0.65 / 3)
    # t1: 0.9 beats both, 0.5 beats 0.45 only -> 3/4; t2: 1.0 beats both -> 1.
    assert table.loc["b", "improvement"] == pytest.approx(0.875)
    assert np.isnan(table.loc["b", "difference_low"])  # of t2 there is one pair
    more = pd.concat([runs(), pd.DataFrame([("a", "t2", 1, 0.4)], columns=["method", "task", "seed", "score"])])
    row = st.compare(more, "score", ["a", "b"], "a", rng()).set_index("method").loc["b"]
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]


def test_curves_keep_what_all_runs_have():
    rows = [(seed, step, float(seed * 10 + step)) for seed, length in ((0, 3), (1, 2)) for step in range(length)]
    frame = pd.DataFrame(rows, columns=["seed", "step", "reward"]).assign(task="t", method="m")
    shuffled = frame.sample(frac=1, random_state=0)
    np.testing.assert_array_equal(st.curves_of(shuffled, "step", "reward")["t"], [[0, 1], [10, 11]])
    curve = st.aggregate_curves(shuffled, "step", "reward", ["m"], ["t"], rng())["m"]
    np.testing.assert_array_equal(curve.point, [5, 6])


def test_run_scores_by_hand():
    rewards = [-1.0, 0.5, -1.0, 0.7, 0.7, 0.6, -1.0, 0.9, 0.8, 0.6, 0.99]
    frame = pd.DataFrame({"step": range(1, 12), "reward": rewards})
    frame["status"] = ["ok" if reward > -1 else "timeout" for reward in rewards]
    frame = frame.assign(method="m", task="t", seed=0)
    assert st.budget(frame) == 11
    row = st.run_scores(frame.sample(frac=1, random_state=1), limit=10).iloc[0]
    assert row["best"] == 0.9  # 0.99 lies beyond the limit
    assert row["mean"] == pytest.approx(0.18, abs=1e-12)
    assert row["runs"] == pytest.approx(0.7)
    assert row["last_mean"] == pytest.approx(0.7) and row["last_runs"] == 1.0
    early = st.run_scores(frame, limit=7).iloc[0]  # its last fifth is one step, which fails
    assert (early["last_mean"], early["last_runs"], early["last_level"]) == (-1.0, 0.0, -1.0)
    frame["reward"], frame["status"] = [*rewards[:9], -1.0, 0.99], ["ok"] * 9 + ["timeout", "ok"]
    whole = st.run_scores(frame).iloc[0]
    assert whole["last_mean"] == pytest.approx(-0.005) and whole["last_level"] == pytest.approx(0.99)


def test_mean_and_std_by_hand():
    frame = pd.DataFrame({"method": "m", "task": ["a", "a", "b"], "best": [0.80, 0.84, 0.5]})
    table = st.mean_and_std(frame, "best").set_index("task")
    assert table.loc["a", "mean"] == pytest.approx(0.82)
    assert table.loc["a", "std"] == pytest.approx(0.02 * 2**0.5)
    assert table.loc["b", "n"] == 1 and np.isnan(table.loc["b", "std"])
