"""The frontier of reward and KL: cases that can be enumerated, and policies that cannot pass it."""

import math

import numpy as np
import pandas as pd
import pytest

from etpo_paper.report.frontier import LEAST_EFFECTIVE, frontier, kl_needed, phases, soft_optimum


def test_two_programs_can_be_weighed_by_hand():
    # exp(1/β) : exp(-1/β) = 3 : 1 for β = 2 / ln 3.
    found = soft_optimum(np.array([1.0, -1.0]), 2 / math.log(3))
    assert found.reward == pytest.approx(0.75 - 0.25)
    assert found.kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert found.effective == pytest.approx(1 / (0.75**2 + 0.25**2))


def test_a_dear_nat_leaves_the_reference_and_a_cheap_one_takes_the_best():
    rewards = np.array([-1.0, -1.0, 0.5, 0.8])
    dear, cheap = soft_optimum(rewards, 1e6), soft_optimum(rewards, 1e-6)
    assert dear.reward == pytest.approx(rewards.mean(), abs=1e-5) and dear.kl == pytest.approx(0, abs=1e-9)
    assert cheap.reward == pytest.approx(0.8) and cheap.kl == pytest.approx(math.log(4)) and cheap.effective == 1


def test_equal_rewards_need_no_move():
    assert soft_optimum(np.full(7, 0.3), 0.01) == pytest.approx((0.3, 0.0, 7.0))


def test_no_other_weights_of_the_same_kl_earn_more():
    generator = np.random.default_rng(0)
    rewards = generator.uniform(-1, 1, 40)
    for beta in (0.1, 0.3, 1.0):
        best = soft_optimum(rewards, beta)
        # reward - β KL is what the optimum maximises, so nothing drawn may exceed it there.
        for weights in generator.dirichlet(np.full(40, 0.5), 200):
            kl = float((weights * np.log(np.maximum(40 * weights, 1e-300))).sum())
            assert weights @ rewards - beta * kl <= best.reward - beta * best.kl + 1e-12


def test_the_frontier_rises_and_ends_where_too_few_programs_carry_it():
    rewards = np.concatenate([np.full(60, -1.0), np.linspace(0.5, 0.9, 40)])
    table = frontier(rewards)
    assert (table["kl"].diff().dropna() >= 0).all() and (table["reward"].diff().dropna() >= -1e-12).all()
    assert table["reward"].iloc[0] == pytest.approx(rewards.mean(), abs=0.01)
    last = table["beta"].iloc[-1]
    assert soft_optimum(rewards, last).effective >= LEAST_EFFECTIVE > soft_optimum(rewards, last * 0.8).effective


def test_the_kl_that_a_reward_needs():
    table = pd.DataFrame({"beta": [2.0, 1.0, 0.5], "reward": [0.0, 0.4, 0.6], "kl": [0.0, 0.5, 1.5]})
    assert kl_needed(table, 0.5) == pytest.approx(1.0)
    assert kl_needed(table, -0.2) == 0.0
    assert math.isnan(kl_needed(table, 0.7)) and math.isnan(kl_needed(table.iloc[:0], 0.1))


def test_phases_are_means_within_runs_and_then_over_them():
    one = pd.DataFrame(
        {"seed": 0, "update": [3, 0, 1, 2], "kl_per_action": [6.0, 0, 2, 4], "mean_reward": [1.0, -1, 0, 1]}
    )
    two = pd.DataFrame({"seed": 1, "update": [0, 1], "kl_per_action": [1.0, 3.0], "mean_reward": [-1.0, 0.0]})
    table = phases(pd.concat([one, two]), 2)
    assert table["kl"].tolist() == [1.0, 4.0]  # (1 + 1) / 2 and (5 + 3) / 2
    assert table["reward"].tolist() == [-0.75, 0.5]


@pytest.mark.parametrize(("rewards", "beta", "message"), [([], 1.0, "rewards are empty"), ([0.0], 0.0, "beta is 0.0")])
def test_bad_input_is_named(rewards, beta, message):
    with pytest.raises(ValueError, match=message):
        soft_optimum(np.array(rewards), beta)
