"""What estimators of a token's advantage are worth, by enumeration of a small world: bias, variance, and the gradient.

A method moves token j of an action along w_j ∇ log π(w^j), and the weight w_j is its estimate of the advantage

    A(s, w¹…w^j) = E[G | w¹…w^j] - V(s, w¹…w^{j-1}),   G = r - β Σ_{k≥j} log π/ρ(w^k),   V = E[G | w¹…w^{j-1}]

of the policy at hand, whose gradient is that of E[r] - β KL[π‖ρ]. Every action is written out with its probability, so
the moments of a weight are sums: over the rest of the action, the rest of the group, or the continuations that a
Monte-Carlo value draws. Estimators are given the exact V of their kind, so that what is measured is what they do with
it; `late` stands for a V that lags, that of the reference.

A weight may be wrong by a number that all tokens of a prefix share: as E[∇ log π] = 0, this costs variance alone. Only
the rest, the tilt, turns the gradient. A batch's gradient is with respect to the logits of each prefix.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from etpo_core.bellman import kl_divergence, lambda_targets
from etpo_paper.tabular.worlds import World

CONTINUATIONS = (1, 4, 9)  # of a Monte-Carlo value


class Weights(NamedTuple):
    """The first two moments of an estimator's weights; [A, T] for A actions of at most T tokens, in units of reward.

    Attributes:
        mean: [A, T] E[w_j | action].
        square: [A, T] E[w_j² | action].
        pair: E[g_a · g_b] of the gradients of two actions of one group; None if actions do not depend on each other.
        group: actions that are compared with one another.
        drawn: tokens that are drawn for each token of the batch, its own included.
    """

    mean: Tensor
    square: Tensor
    pair: float | None = None
    group: int = 1
    drawn: float = 1.0


class Quality(NamedTuple):
    """How good an estimator is; tokens count as often as the policy draws them.

    Attributes:
        bias: root mean square of E[w_j | w¹…w^j] - A, in units of reward.
        tilt: the same without what all tokens of a prefix share.
        deviation: square root of the mean variance of w_j given w¹…w^j, in units of reward.
        off: how far the mean gradient is from the true one, in lengths of that.
        cosine: mean inner product of a batch's gradient with the true one, over the root of their mean squares.
        actions: actions of a batch whose noise, the summed variance of its gradient, equals the square of its mean.
        drawn: see `Weights`.
    """

    bias: float
    tilt: float
    deviation: float
    off: float
    cosine: float
    actions: float
    drawn: float


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of a policy in a world of one state whose actions all end the episode.

    Attributes:
        world: where.
        logits: [1, P, V] of the policy.
        beta: β, units of reward per nat.
        chance: [A] probability of each action.
        log_ratio: [A, T] log π/ρ of each token, in nats.
        kl: [A, T] KL[π‖ρ] at each prefix, in nats.
        returns: [A, T] G from each token on.
        value: [A, T] V of the prefix before each token.
        advantage: [A, T] A of each token.
    """

    world: World
    logits: Tensor
    beta: float
    chance: Tensor
    log_ratio: Tensor
    kl: Tensor
    returns: Tensor
    value: Tensor
    advantage: Tensor

    def given_token(self, values: Tensor) -> Tensor:
        """[A, T] mean of values [A, T] given the prefix and the token, over what may follow."""
        table = self.world.averaged(values, self.logits).flatten()
        return torch.where(self.world.mask, table[self.world.entries], 0)

    def given_prefix(self, values: Tensor) -> Tensor:
        """[A, T] mean of values [A, T] given the prefix, over the token and what may follow."""
        table = (torch.softmax(self.logits, -1) * self.world.averaged(values, self.logits)).sum(-1)[0]
        return torch.where(self.world.mask, table[self.world.prefixes], 0)

    def gradient(self, weights: Tensor) -> Tensor:
        """[P, V] mean of Σ_j w_j ∇ log π(w^j) over actions, with respect to the logits."""
        drawn = self.chance[:, None] * weights * self.world.mask
        table = torch.zeros_like(self.logits).flatten()
        table = table.index_add(0, self.world.entries.flatten(), drawn.flatten()).view_as(self.logits[0])
        return table - table.sum(-1, keepdim=True) * torch.softmax(self.logits[0], -1)


def truth(world: World, policy_logits: Tensor, beta: float) -> Truth:
    """Enumerates what is true of a policy.

    Args:
        world: one state, whose actions all end the episode.
        policy_logits: [1, P, V] of π.
        beta: β ≥ 0.

    Raises:
        ValueError: another world.
    """
    if len(world.reward) != 1 or not world.terminated.all():
        raise ValueError("world: expected one state whose actions all end the episode")
    log_prob = world.token_log_prob(policy_logits)[0]
    log_ratio = log_prob - world.token_log_prob(world.reference_logits)[0]
    kl = torch.where(world.mask, kl_divergence(policy_logits, world.reference_logits)[0, world.prefixes], 0)
    returns = (world.reward[0][:, None] - beta * log_ratio.flip(-1).cumsum(-1).flip(-1)) * world.mask
    nothing = torch.zeros_like(returns)
    of = Truth(world, policy_logits, beta, log_prob.sum(-1).exp(), log_ratio, kl, returns, nothing, nothing)
    value = of.given_prefix(returns)
    advantage = of.given_token(returns) - value
    return Truth(world, policy_logits, beta, of.chance, log_ratio, kl, returns, value, advantage)


# Estimators ---------------------------------------------------------------------------------------------------------


def known(weights: Tensor) -> Weights:
    """Weights [A, T] that the action alone decides."""
    return Weights(weights, weights.square())


def returned(of: Truth) -> Weights:
    """PPO-KL: the return of the whole action less V at its start, for each of its tokens."""
    return known((of.returns[:, :1] - of.value[:, :1]) * of.world.mask)


def soft(of: Truth, expected_q: Tensor, lam: float) -> Weights:
    """ETPO: the soft λ-return behind the token less E_π[Q], less what the policy has already made of it.

    The gradient of the critic's squared error under the dueling form, when the policy has the critic's weights, is this
    weight times ∇ log π: of A(w) - E_π[A] = β (log π/ρ(w) - KL) the mean over the vocabulary is exact.

    Args:
        of: the truth.
        expected_q: [A, T] E_π[Q] at each prefix, as the critic believes it.
        lam: λ.
    """
    targets = lambda_targets(expected_q, of.kl, *_ends(of), of.beta, 1.0, lam)
    return known((targets - expected_q - of.beta * (of.log_ratio - of.kl)) * of.world.mask)


def action_level(of: Truth) -> Weights:
    """ETPO without the token-level backup: the same target r for all tokens, less its mean at the prefix."""
    reward = of.world.reward[0][:, None] * of.world.mask
    return known((reward - of.given_prefix(reward) - of.beta * (of.log_ratio - of.kl)) * of.world.mask)


def paid(of: Truth, lam: float, discount: float = 1.0) -> Weights:
    """POAD: the λ-return of a token, which pays -β log π/ρ of itself, less V; with a discount between tokens, NTPO.

    With λ = 1 it is also OREO's, whose residual is its negative.
    """
    penalty = of.beta * of.log_ratio

    def returns(value: Tensor, lam: float) -> Tensor:
        targets = lambda_targets(value + penalty, penalty, *_ends(of), 1.0, 1.0, lam, inner_discount=discount)
        return (targets - penalty) * of.world.mask

    value = of.given_prefix(returns(torch.zeros_like(penalty), 1.0))
    return known(returns(value, lam) - value)


def leave_one_out(of: Truth, group: int) -> Weights:
    """RLOO: the return of the whole action less the mean of the others of its group, for each of its tokens."""
    alone = returned(of)
    noise = (of.chance * alone.square[:, 0]).sum() / (group - 1)  # of the mean of the others
    # Of E[x_a x_b S_a · S_b], where x is the return less the mean of the others, all terms but two have a mean of 0.
    pair = float(of.gradient(alone.mean).square().sum()) * (1 + 1 / (group - 1) ** 2)
    return Weights(alone.mean, alone.square + noise * of.world.mask, pair, group)


def normalised(of: Truth, group: int) -> Weights:
    """GRPO: the reward in deviations of its group, and k3 as a loss at each token.

    Weights are times the deviation of the policy's rewards, and β is per that deviation, so that what is priced is
    nearly what the others price. The group is enumerated by how often each reward occurs among its actions.
    """
    reward, mask = of.world.reward[0], of.world.mask
    levels, level = torch.unique(reward, return_inverse=True)
    chance = torch.zeros_like(levels).index_add(0, level, of.chance)
    rest = torch.tensor(list(itertools.combinations_with_replacement(range(len(levels)), group - 2)), dtype=torch.long)
    counts = torch.nn.functional.one_hot(rest, len(levels)).sum(1).to(reward.dtype)
    orders = torch.lgamma(torch.tensor(group - 1.0, dtype=reward.dtype)) - torch.lgamma(counts + 1).sum(-1)
    likely = (orders + counts @ chance.log()).exp()
    first, other, square, product = (reward.new_zeros(len(levels), len(levels)) for _ in range(4))
    for a, b in itertools.product(range(len(levels)), repeat=2):
        share = counts.clone()
        share[:, a] += 1
        share[:, b] += 1
        share /= group
        mean = share @ levels
        deviation = (share * (levels - mean[:, None]).square()).sum(-1).sqrt() + 1e-8
        of_a, of_b = (levels[a] - mean) / deviation, (levels[b] - mean) / deviation
        first[a, b], square[a, b] = likely @ of_a, likely @ of_a.square()
        product[a, b] = likely @ (of_a * of_b)
    scale = float((of.chance @ reward.square() - (of.chance @ reward).square()).sqrt())
    penalty = of.beta * (1 - (-of.log_ratio).exp()) * mask  # the derivative of k3 by log π
    compared, squared = scale * (first @ chance)[level][:, None], scale**2 * (square @ chance)[level][:, None]
    by_level = [(level == x)[:, None] * mask for x in range(len(levels))]
    scores = torch.stack([of.gradient(x.to(reward.dtype)).flatten() for x in by_level])
    costs = torch.stack([of.gradient(x * penalty).flatten() for x in by_level])
    pair = scale**2 * (product * (scores @ scores.T)).sum() - 2 * scale * (first * (scores @ costs.T)).sum()
    pair = pair + costs.sum(0).square().sum()
    square_of = squared - 2 * compared * penalty + penalty.square()
    return Weights((compared - penalty) * mask, square_of * mask, float(pair), group)


def continued(of: Truth, continuations: int) -> Weights:
    """VinePPO: V of each prefix is the mean return of so many continuations that are drawn from it (2410.01679).

    The weight of a token is -β log π/ρ of itself and V behind it, less V before it; behind the last token is r.
    """
    spread = of.given_prefix(of.returns.square()) - of.value.square()
    behind = torch.cat([spread[:, 1:], torch.zeros_like(spread[:, :1])], 1)
    tokens = of.world.mask.to(of.chance.dtype)
    from_here = tokens.flip(-1).cumsum(-1)  # of a prefix: the tokens that a continuation has, on average over actions
    drawn = continuations * (of.chance @ from_here.sum(-1)) / (of.chance @ tokens.sum(-1))
    square = of.advantage.square() + (spread + behind) / continuations * of.world.mask
    return Weights(of.advantage, square, drawn=1 + float(drawn))


def estimators(of: Truth, late: Tensor, *, lam: float, discount: float, group: int) -> Mapping[str, Weights]:
    """All of them by name.

    Args:
        of: the truth.
        late: [A, T] E_π[Q] of another policy, for a critic that lags.
        lam: λ of POAD and NTPO.
        discount: of NTPO, between tokens.
        group: size of groups.
    """
    exact = of.value + of.beta * of.kl
    return {
        "ppo_kl": returned(of),
        "rloo": leave_one_out(of, group),
        "grpo": normalised(of, group),
        "ntpo": paid(of, lam, discount),
        "poad": paid(of, lam),
        "oreo": paid(of, 1.0),
        "etpo_1": soft(of, exact, 1.0),
        "etpo_0": soft(of, exact, 0.0),
        "etpo_1_late": soft(of, late, 1.0),
        "etpo_0_late": soft(of, late, 0.0),
        "etpo_action_level": action_level(of),
        **{f"vine_{k}": continued(of, k) for k in CONTINUATIONS},
    }


def quality(of: Truth, weights: Weights, batch: int) -> Quality:
    """Bias, variance, and what a batch's gradient is worth.

    Args:
        of: the truth.
        weights: of an estimator.
        batch: actions of a batch, of which every group is independent of the others.
    """
    often = of.chance[:, None] * of.world.mask
    often = often / often.sum()
    mean = of.given_token(weights.mean)
    bias = mean - of.advantage
    tilt = bias - of.given_prefix(weights.mean)
    variance = of.given_token(weights.square) - mean.square()
    policy = torch.softmax(of.logits[0], -1)[of.world.prefixes]
    taken = policy.gather(-1, of.world.tokens[..., None]).squeeze(-1)
    length = (1 - 2 * taken + policy.square().sum(-1)) * of.world.mask  # |∇ log π|² of each token
    found, true = of.gradient(weights.mean), of.gradient(of.advantage)
    signal = found.square().sum()
    # The tokens of an action stand at different prefixes, so their gradients are orthogonal.
    noise = (of.chance @ (weights.square * length).sum(-1)) - signal
    if weights.pair is not None:
        noise = noise + (weights.group - 1) * (weights.pair - signal)
    along = (found * true).sum() / true.norm()
    return Quality(
        bias=float((often * bias.square()).sum().sqrt()),
        tilt=float((often * tilt.square()).sum().sqrt()),
        deviation=float((often * variance).sum().clamp(min=0).sqrt()),
        off=float((found - true).norm() / true.norm()),
        cosine=float(along / (signal + noise / batch).sqrt()),
        actions=float(noise / signal),
        drawn=weights.drawn,
    )


def halfway(world: World, beta: float) -> Tensor:
    """[1, P, V] logits between the reference's and the optimum's with half the reference's regret."""
    best, _, _ = world.action_optimum(beta, 0.0)
    reference, optimum = torch.log_softmax(world.reference_logits, -1), world.improve(beta, 0.0)[1]

    def at(share: float) -> Tensor:
        return reference + share * (optimum - reference)

    def regret(share: float) -> float:
        return float((best - world.action_values(at(share), beta, 0.0)[0]).mean())

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if regret(middle) > regret(0.0) / 2 else (low, middle)
    return at(low)


def _ends(of: Truth) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`lengths`, `reward`, `terminated` and `next_soft_value` of `lambda_targets`."""
    world = of.world
    return world.lengths, world.reward[0], world.terminated[0], torch.zeros_like(world.reward[0])
