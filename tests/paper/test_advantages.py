"""Estimators of a token's advantage against brute force: every action, group and continuation written out in a loop."""

import itertools
import math

import pytest
import torch

from etpo_paper.tabular.advantages import (
    action_level,
    continued,
    estimators,
    halfway,
    leave_one_out,
    normalised,
    paid,
    quality,
    returned,
    soft,
    truth,
)
from etpo_paper.tabular.kinds import BY_LENGTH, KINDS
from etpo_paper.tabular.worlds import random_policy, random_world

BETA = 0.3
EXACT = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module")
def world():
    """Actions of one or two tokens out of three, the last of which ends them; each has a reward of its own."""
    return random_world(3, states=1, vocabulary=3, longest=2, done_share=1.1)


@pytest.fixture(scope="module")
def of(world):
    return truth(world, random_policy(world, 5), BETA)


class Enumerated:
    """The same world as lists of tuples: no tensor operation is shared with what is tested."""

    def __init__(self, world, logits):
        self.policy, self.reference = (t[0].log_softmax(-1).tolist() for t in (logits, world.reference_logits))
        self.actions = [tuple(a[:n].tolist()) for a, n in zip(world.tokens, world.lengths, strict=True)]
        self.reward = dict(zip(self.actions, world.reward[0].tolist(), strict=True))
        self.row = {
            a[:j]: p[j] for a, p in zip(self.actions, world.prefixes.tolist(), strict=True) for j in range(len(a))
        }

    def ratio(self, action, j):
        row = self.row[action[:j]]
        return self.policy[row][action[j]] - self.reference[row][action[j]]

    def chance(self, action, start=0):
        return math.exp(sum(self.policy[self.row[action[:j]]][action[j]] for j in range(start, len(action))))

    def gain(self, action, start=0):
        """r less β log π/ρ from a token on."""
        return self.reward[action] - BETA * sum(self.ratio(action, j) for j in range(start, len(action)))

    def mean(self, prefix, function):
        """Mean of a function of the action, which goes on from a prefix as the policy does."""
        return sum(self.chance(a, len(prefix)) * function(a) for a in self.actions if a[: len(prefix)] == prefix)

    def value(self, prefix):
        return self.mean(prefix, lambda a: self.gain(a, len(prefix)))

    def advantage(self, action, j):
        return self.mean(action[: j + 1], lambda a: self.gain(a, j)) - self.value(action[:j])

    def score(self, action):
        """∇ log π of an action as a dict of (row, token)."""
        found = {}
        for j, token in enumerate(action):
            row = self.row[action[:j]]
            for w, log_prob in enumerate(self.policy[row]):
                found[row, w] = (w == token) - math.exp(log_prob)
        return found

    def gradient(self, action, weights):
        """Σ_j w_j ∇ log π of the tokens of an action, as a dict of (row, token)."""
        row_weight = {self.row[action[:j]]: w for j, w in enumerate(weights)}
        return {(row, w): row_weight[row] * s for (row, w), s in self.score(action).items()}


def added(gradients):
    total = {}
    for scale, gradient in gradients:
        for key, value in gradient.items():
            total[key] = total.get(key, 0.0) + scale * value
    return total


def norm2(gradient):
    return sum(v * v for v in gradient.values())


@pytest.fixture(scope="module")
def brute(world, of):
    return Enumerated(world, of.logits)


def test_value_and_advantage_are_what_enumeration_says(of, brute):
    for row, action in enumerate(brute.actions):
        for j in range(len(action)):
            assert float(of.value[row, j]) == pytest.approx(brute.value(action[:j]), abs=1e-10)
            assert float(of.advantage[row, j]) == pytest.approx(brute.advantage(action, j), abs=1e-10)


def test_the_advantage_gives_the_gradient_of_the_objective(world, of):
    logits = of.logits.clone().requires_grad_()
    log_prob = world.action_log_prob(logits)
    gain = world.reward - BETA * (log_prob - world.action_log_prob(world.reference_logits))
    (exact,) = torch.autograd.grad((log_prob.exp() * gain).sum(), logits)
    for weights in (of.advantage, returned(of).mean, paid(of, 0.95).mean, soft(of, of.value + BETA * of.kl, 1.0).mean):
        torch.testing.assert_close(of.gradient(weights), exact[0], **EXACT)


def test_with_the_exact_value_the_estimates_of_a_token_are_right_and_that_of_an_action_is_off_by_a_baseline(of):
    exact = of.value + BETA * of.kl
    for weights in [soft(of, exact, lam) for lam in (0.0, 0.5, 1.0)] + [paid(of, lam) for lam in (0.0, 0.95, 1.0)]:
        torch.testing.assert_close(of.given_token(weights.mean), of.advantage, **EXACT)
    torch.testing.assert_close(soft(of, exact, 0.0).mean, of.advantage, **EXACT)  # without any noise
    found = quality(of, returned(of), 32)
    assert found.bias > 0.01 and found.tilt < 1e-10 and found.off < 1e-10


def test_the_return_behind_a_token_is_noisier_with_the_exact_kl_than_with_the_log_ratio_near_the_optimum(world):
    _, log_best = world.improve(BETA, 0.0)
    best = truth(world, log_best, BETA)
    assert best.advantage.abs().max() < 1e-8, "nothing is left to gain"
    assert (
        paid(best, 1.0).mean.abs().max() < 1e-8 < 0.01 < soft(best, best.value + BETA * best.kl, 1.0).mean.abs().max()
    )


def test_the_action_level_target_lacks_the_kl_of_later_tokens(of, brute):
    mean = of.given_token(action_level(of).mean)
    for row, action in enumerate(brute.actions):
        for j in range(len(action)):
            prefix = action[:j]
            kl = brute.mean(prefix, lambda a, j=j: brute.ratio(a, j))
            reward = brute.mean(action[: j + 1], brute.reward.get) - brute.mean(prefix, brute.reward.get)
            expected = reward - BETA * (brute.ratio(action, j) - kl)
            assert float(mean[row, j]) == pytest.approx(expected, abs=1e-10)


def test_a_discount_between_tokens_is_the_return_of_another_problem(of, brute):
    mean, discount = paid(of, 1.0, 0.7).mean, 0.7

    def gain(action, j):
        costs = sum(discount ** (k - j) * BETA * brute.ratio(action, k) for k in range(j, len(action)))
        return discount ** (len(action) - 1 - j) * brute.reward[action] - costs

    for row, action in enumerate(brute.actions):
        for j in range(len(action)):
            value = brute.mean(action[:j], lambda a, j=j: gain(a, j))
            assert float(mean[row, j]) == pytest.approx(gain(action, j) - value, abs=1e-10)
    assert quality(of, paid(of, 0.95, 0.7), 32).off > 0.01


def of_rloo(brute, group):
    gains = [brute.gain(a) for a in group]
    return [[g - (sum(gains) - g) / (len(group) - 1)] * len(a) for a, g in zip(group, gains, strict=True)]


def of_grpo(brute, group):
    rewards = [brute.reward[a] for a in group]
    mean = sum(rewards) / len(rewards)
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards)) + 1e-8
    first = brute.mean((), brute.reward.get)
    scale = math.sqrt(brute.mean((), lambda a: brute.reward[a] ** 2) - first**2)
    return [
        [scale * (r - mean) / deviation - BETA * (1 - math.exp(-brute.ratio(a, j))) for j in range(len(a))]
        for a, r in zip(group, rewards, strict=True)
    ]


@pytest.mark.parametrize(("estimator", "weigh"), [(leave_one_out, of_rloo), (normalised, of_grpo)])
def test_moments_of_groups_are_those_of_all_groups(of, brute, estimator, weigh):
    size, found = 3, estimator(of, 3)
    rows = len(brute.actions)
    mean, square = ([[0.0] * len(a) for a in brute.actions] for _ in range(2))
    pair, whole, power = 0.0, [], 0.0
    for picked in itertools.product(range(rows), repeat=size):
        group = [brute.actions[i] for i in picked]
        chance = math.prod(map(brute.chance, group))
        weights = weigh(brute, group)
        first, others = picked[0], chance / brute.chance(group[0])
        for j, w in enumerate(weights[0]):
            mean[first][j] += others * w
            square[first][j] += others * w * w
        gradients = [brute.gradient(a, w) for a, w in zip(group, weights, strict=True)]
        shared = set(gradients[0]) & set(gradients[1])
        pair += chance * sum(gradients[0][key] * gradients[1][key] for key in shared)
        of_group = added((1 / size, g) for g in gradients)
        whole.append((chance, of_group))
        power += chance * norm2(of_group)
    for row, action in enumerate(brute.actions):
        torch.testing.assert_close(found.mean[row, : len(action)], found.mean.new_tensor(mean[row]), **EXACT)
        torch.testing.assert_close(found.square[row, : len(action)], found.mean.new_tensor(square[row]), **EXACT)
    assert found.pair == pytest.approx(pair, abs=1e-10)
    # The noise of one group is a third of what is said of an action.
    signal = norm2(added(whole))
    assert quality(of, found, 3).actions == pytest.approx(size * (power - signal) / signal, rel=1e-9)


def test_two_actions_of_a_group_are_the_least(of, brute):
    found = leave_one_out(of, 2)
    expected = [sum(brute.chance(b) * of_rloo(brute, [a, b])[0][0] for b in brute.actions) for a in brute.actions]
    torch.testing.assert_close(found.mean[:, 0], found.mean.new_tensor(expected), **EXACT)


@pytest.mark.parametrize("count", [1, 2])
def test_a_value_from_continuations_is_unbiased_with_the_variance_of_all_continuations(of, brute, count):
    """The oracle: every way to continue each prefix, `count` times over."""

    def values(prefix):
        """(chance, value) of all that the continuations of a prefix can say."""
        ends = [a for a in brute.actions if a[: len(prefix)] == prefix]
        for picked in itertools.product(ends, repeat=count):
            chance = math.prod(brute.chance(a, len(prefix)) for a in picked)
            yield chance, sum(brute.gain(a, len(prefix)) for a in picked) / count

    found = continued(of, count)
    for row, action in enumerate(brute.actions):
        for j in range(len(action)):
            last = j == len(action) - 1
            after = [(1.0, brute.reward[action])] if last else list(values(action[: j + 1]))
            mean = square = 0.0
            for (p, before), (q, behind) in itertools.product(values(action[:j]), after):
                weight = behind - BETA * brute.ratio(action, j) - before
                mean += p * q * weight
                square += p * q * weight**2
            assert float(found.mean[row, j]) == pytest.approx(brute.advantage(action, j), abs=1e-10)
            assert mean == pytest.approx(brute.advantage(action, j), abs=1e-10), "the oracle is unbiased"
            assert float(found.square[row, j]) == pytest.approx(square, abs=1e-10)
    tokens = brute.mean((), len)
    drawn = sum(brute.mean((), lambda a, j=j: max(len(a) - j, 0)) for j in range(2))
    assert found.drawn == pytest.approx(1 + count * drawn / tokens)


def test_the_quality_of_independent_actions_is_that_of_all_actions(of, brute):
    weights = paid(of, 0.95)
    rows = [(brute.chance(a), brute.gradient(a, w[: len(a)])) for a, w in
            zip(brute.actions, weights.mean.tolist(), strict=True)]  # fmt: skip
    signal, power = norm2(added(rows)), sum(p * norm2(g) for p, g in rows)
    found = quality(of, weights, 32)
    assert found.actions == pytest.approx((power - signal) / signal, rel=1e-9)
    assert found.cosine == pytest.approx((1 + found.actions / 32) ** -0.5, rel=1e-9), "an unbiased one has noise only"
    tokens = brute.mean((), len)
    variance = 0.0
    for row, action in enumerate(brute.actions):
        for j in range(len(action)):
            error = float(weights.mean[row, j]) - brute.advantage(action, j)
            variance += brute.chance(action) * error**2 / tokens
    assert found.deviation == pytest.approx(math.sqrt(variance), rel=1e-9) and found.bias < 1e-10


@pytest.mark.parametrize("kind", BY_LENGTH)
def test_at_one_token_all_with_an_exact_value_agree_and_noise_grows_with_length(kind):
    noise = {}
    for length in (1, 4):
        world = BY_LENGTH[kind](1, length)
        assert world.tokens.shape[1] == length
        here = truth(world, world.reference_logits, 0.1)
        found = estimators(here, here.value, lam=0.95, discount=0.9, group=8)
        noise[length] = {name: quality(here, w, 32).actions for name, w in found.items()}
    alone = noise[1]
    names = ("ppo_kl", "poad", "oreo", "etpo_1", "etpo_0", "etpo_action_level")
    assert all(alone[name] == pytest.approx(alone["ppo_kl"], rel=1e-9) for name in names)
    long = noise[4]
    assert long["ppo_kl"] > 1.2 * long["etpo_1"] and long["vine_1"] > long["vine_9"] > long["etpo_0"]
    # Where the first token decides, V knows the rest of the return, and λ is of no account before training.
    ratio = long["etpo_1"] / long["etpo_0"]
    assert ratio == pytest.approx(1.0, rel=1e-9) if kind == "early" else ratio > 1.2


def test_halfway_has_half_the_regret():
    world = KINDS["early"].world(1)
    best = float(world.action_optimum(0.1, 0.0)[0])
    start, there = (
        best - float(world.action_values(logits, 0.1, 0.0)[0])
        for logits in (world.reference_logits, halfway(world, 0.1))
    )
    assert there == pytest.approx(start / 2, rel=1e-6)


def test_a_world_of_several_turns_is_refused():
    world = KINDS["repairs"].world(1)
    with pytest.raises(ValueError, match="one state whose actions all end the episode"):
        truth(world, world.reference_logits, BETA)
