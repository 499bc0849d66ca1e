"""GRPO and RLOO: their losses and gradients against brute force, which groups teach what, and where they are biased."""

import itertools
from dataclasses import replace

import pytest
import torch
from enumerated import Watched, everything

from etpo_core.interfaces import Alone, Transition
from etpo_core.losses import ppo_clipped_loss
from etpo_paper.methods import build_method
from etpo_paper.methods.kl import kl_estimate
from etpo_paper.tabular.kl import gradients
from etpo_paper.tabular.learning import learn
from etpo_paper.tabular.worlds import random_policy, random_world

BETA, GAMMA = 0.3, 0.9
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module")
def world():
    return random_world(2, states=2, vocabulary=3, longest=3)


def started(name, networks, rate=0.05, **changes):
    section = {"beta": BETA, "gamma": GAMMA, "clip": 0.2, "epochs": 1, "policy_lr": rate, "reflect": True, **changes}
    method = build_method(name, section)
    method.start(networks, Alone())
    return method


def brute_force(name, world, policy_logits, kl, kl_in):
    """The loss of the first pass over `everything`, where every action is alone in its environment's episode."""
    log_policy, log_reference = world.token_log_prob(policy_logits), world.token_log_prob(world.reference_logits)
    full = torch.log_softmax(policy_logits, -1)
    full = (full.exp() * (full - torch.log_softmax(world.reference_logits, -1))).sum(-1)
    exact = torch.where(world.mask, full[:, world.prefixes], 0)  # [S, A, T]
    ratio = log_policy - log_reference
    if name == "rloo":
        log_policy, ratio, exact = (x.sum(-1, keepdim=True) for x in (log_policy, ratio, exact))
        share = torch.ones_like(ratio)
    else:
        share = (world.mask / world.lengths[:, None].double()).expand_as(ratio)
    estimate = exact if kl == "full" else kl_estimate(ratio, kl)
    returns = world.reward - (BETA * estimate.detach().sum(-1) if kl_in == "reward" else 0)
    count = returns.shape[1]
    if name == "rloo":
        advantage = (returns - returns.mean(1, keepdim=True)) * count / (count - 1)
    else:
        advantage = (returns - returns.mean(1, keepdim=True)) / (returns.std(1, correction=0, keepdim=True) + 1e-8)
    loss = ppo_clipped_loss(log_policy, log_policy.detach(), advantage[..., None].expand_as(log_policy), 0.2)
    if kl_in == "loss":
        loss = loss + BETA * estimate
    return (loss * share).sum() / returns.numel()


@pytest.mark.parametrize("kl_in", ["loss", "reward"])
@pytest.mark.parametrize("kl", ["k1", "k2", "k3", "full"])
@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_losses_and_gradients_are_those_of_brute_force(world, name, kl, kl_in):
    world = replace(world, terminated=torch.ones_like(world.terminated))
    policy = random_policy(world, 1).requires_grad_()
    loss = brute_force(name, world, policy, kl, kl_in)
    networks = Watched(world).set(policy.detach())
    logged = started(name, networks, kl=kl, kl_in=kl_in).update(everything(world)).logged
    assert logged["policy_loss"] == pytest.approx(loss.item(), rel=1e-10)
    expected = torch.autograd.grad(loss, policy)[0].flatten(0, 1)
    torch.testing.assert_close(networks.gradients["policy"], expected, **EXACT)


def of_pairs(name, world, policy, **changes):
    """The mean gradient over groups of two actions drawn from the policy, by enumeration of all pairs."""
    actions, chance, total = everything(world), world.action_log_prob(policy).exp().flatten().tolist(), 0
    for (a, p), (b, q) in itertools.product(zip(actions, chance, strict=True), repeat=2):
        networks = Watched(world).set(policy)
        started(name, networks, **changes).update([a, replace(b, environment=1)])
        total = total + p * q * networks.gradients["policy"]
    return total


@pytest.fixture(scope="module")
def one_turn():
    return random_world(5, states=1, vocabulary=3, longest=2, done_share=1.1)


def test_rloo_has_the_gradient_of_the_objective(one_turn):
    """E[r] - β KL[π‖ρ] of whole actions, exactly, with groups as small as two; so its fixed point is ρ exp(r/β) / Z."""
    policy = random_policy(one_turn, 3).requires_grad_()
    value = (one_turn.action_log_prob(policy).exp() * one_turn.reward).sum()
    exact = (
        -torch.autograd.grad(value, policy)[0] + BETA * gradients(one_turn, policy.detach())["action", "loss", "full"]
    )
    torch.testing.assert_close(of_pairs("rloo", one_turn, policy.detach()), exact.flatten(0, 1), **EXACT)
    _, best = one_turn.improve(BETA, GAMMA)
    assert of_pairs("rloo", one_turn, best).abs().max() < 1e-9
    k3 = of_pairs("rloo", one_turn, best, kl="k3", kl_in="loss")
    assert k3.abs().max() > 1e-3, "differentiated, k3 has another gradient"


def test_at_the_optimum_no_action_has_an_advantage_whoever_drew_it(one_turn):
    """Off-policy data do not move RLOO from there, because r - β log π/ρ is the same for every action."""
    _, best = one_turn.improve(BETA, GAMMA)
    networks = Watched(one_turn).set(best)
    result = started("rloo", networks).update(everything(one_turn))  # every action once, far from π*
    assert max(abs(c) for credit in result.credit for c in credit) < 1e-9
    assert networks.gradients["policy"].abs().max() < 1e-10


def spread(world, log_policy):
    """The deviation of the rewards of a policy [A] in state 0."""
    chance = log_policy.exp()
    mean = (chance * world.reward[0]).sum()
    return float((chance * (world.reward[0] - mean).square()).sum().sqrt())


def test_grpo_prices_the_kl_by_the_deviation_of_its_group():
    """With tokens as actions, k2, and groups so large that they show the policy's own mean and deviation σ, the fixed
    point is ρ exp(r / (β σ)) / Z with the σ of itself, whatever the scale of the rewards. At β = 1 there is one, with
    σ = 0.44. At β = 0.3 there is none but a policy without doubt: the more certain it is, the less is σ and so the
    price of the KL."""
    world = random_world(4, states=1, vocabulary=4, longest=1, done_share=1.1)
    log_reference = world.action_log_prob(world.reference_logits)[0]
    ends = {}
    for beta in (1.0, 0.3):
        sigma = 0.5
        for _ in range(60):
            moved = torch.log_softmax(log_reference + world.reward[0] / (beta * max(sigma, 1e-6)), -1)
            sigma = spread(world, moved)
        ends[beta] = sigma, moved
    assert ends[1.0][0] == pytest.approx(0.44, abs=0.01) and ends[0.3][0] < 1e-6
    sigma, moved = ends[1.0]
    for scale in (1.0, 0.1):  # the advantage, and so the whole gradient, does not see the scale of the rewards
        policy = moved.clone().requires_grad_()
        log_policy, reward = torch.log_softmax(policy, -1), scale * world.reward[0]
        chance = moved.exp()
        advantage = (reward - (chance * reward).sum()) / (scale * sigma)
        loss = (chance * (kl_estimate(log_policy - log_reference, "k2") - advantage * log_policy)).sum()
        assert torch.autograd.grad(loss, policy)[0].abs().max() < 1e-9


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_a_group_of_one_has_no_advantage(world, name):
    alone, others = everything(world)[0], everything(world)[len(world.lengths) :][:4]
    networks = Watched(world).set(random_policy(world, 1))
    result = started(name, networks, kl="k1", kl_in="reward").update([replace(alone, environment=7), *others])
    assert result.credit[0] == [0.0] * len(alone.action)
    assert any(any(c) for c in result.credit[1:])
    rows = slice(0, networks.policy_logits.shape[1])  # state 0
    assert networks.gradients["policy"][rows].abs().max() == 0


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_a_return_goes_on_within_the_episode_and_ends_with_the_batch(world, name):
    def one(reward, environment, following):
        return Transition((0,), (2,), (0.0,), reward, following is None, following, environment)

    # Environment 0 fails and then succeeds, 1 succeeds at once and fails in its next episode, which the batch cuts.
    batch = [one(-1.0, 0, (1,)), one(0.5, 1, None), one(0.8, 0, None), one(-1.0, 1, (1,))]
    method = started(name, Watched(world), beta=0.0)
    expected = [-1.0 + GAMMA * 0.8, 0.5, 0.8, -1.0]
    assert method._returns(batch, [0.0] * 4) == pytest.approx(expected)
    assert method._returns(batch, [0.1, 0.0, 0.2, 0.0]) == pytest.approx([-1.1 + GAMMA * 0.6, 0.5, 0.6, -1.0])


@pytest.mark.parametrize(("name", "share"), [("rloo", 0.03), ("grpo", None)])
def test_sampled_episodes_of_one_turn(name, share):
    """RLOO comes to the optimum; GRPO, which measures rewards by their deviation, stays away from it."""
    world = random_world(1, states=1, vocabulary=3, longest=2, done_share=1.1)
    section = {"beta": BETA, "gamma": 0.0, "clip": 0.2, "epochs": 1, "policy_lr": 0.05, "reflect": True}
    run = {"updates": 150, "count": 64, "steps": 1, "seed": 0, "beta": BETA, "gamma": 0.0}
    curve = learn(build_method(name, section), world, **run)
    left = sum(curve[-20:]) / 20 / curve[0]
    assert left < share if share else left > 0.05, left
