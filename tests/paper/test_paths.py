"""TBRM, ShiQ and OREO: their losses and gradients against brute force, and where they lead."""

from dataclasses import replace

import pytest
import torch
from enumerated import Watched, everything

from etpo_core.interfaces import Alone
from etpo_paper.methods import build_method
from etpo_paper.tabular.learning import TabularEnvironments, learn
from etpo_paper.tabular.networks import TabularNetworks
from etpo_paper.tabular.worlds import random_policy, random_world

BETA, GAMMA = 0.3, 0.9
EXACT = {"rtol": 1e-10, "atol": 1e-12}
NAMES = ["tbrm", "shiq", "oreo"]


@pytest.fixture(scope="module")
def world():
    return random_world(2, states=2, vocabulary=3, longest=3)


def built(name, rate=0.05, **changes):
    section = {"beta": BETA, "gamma": GAMMA, "epochs": 1, "policy_lr": rate, "reflect": True}
    if name == "oreo":
        section |= {"alpha": 0.0, "critic_lr": 3 * rate, "value_lr": 3 * rate}
    return build_method(name, {**section, **changes})


def brute_force(name, world, policy_logits, values, alpha):
    """The losses of `everything`, from whole tables: of the policy, and of the critic."""
    log_policy = torch.log_softmax(policy_logits, -1)
    log_reference = torch.log_softmax(world.reference_logits, -1)
    level = {"tbrm": policy_logits.logsumexp(-1), "shiq": policy_logits.logsumexp(-1)}.get(name, values / BETA)
    if name == "shiq":
        level = level - world.reference_logits.logsumexp(-1)
    kl = (log_policy.exp() * (log_policy - log_reference)).sum(-1)
    policy_loss = critic_loss = 0.0
    for s in range(len(world.reward)):
        for a, length in enumerate(world.lengths.tolist()):
            at = [(s, int(world.prefixes[a, j]), int(world.tokens[a, j])) for j in range(length)]
            ratios = [log_policy[i] - log_reference[i] for i in at]
            earned = world.reward[s, a]
            if not world.terminated[s, a]:
                earned = earned + GAMMA * BETA * level[(s + a) % len(world.reward), 0].detach()
            share = 1 / length if name == "oreo" else 1.0
            for j in range(1 if name == "tbrm" else length):
                value = BETA * level[at[j][:2]]
                if name == "oreo":
                    later = BETA * sum(r.detach() for r in ratios[j + 1 :])
                    own = value.detach() + BETA * ratios[j] + later - earned
                    policy_loss = policy_loss + share * (own.square() + alpha * kl[at[j][:2]])
                    critic_loss = critic_loss + share * (value + BETA * ratios[j].detach() + later - earned).square()
                else:
                    policy_loss = policy_loss + (value + BETA * sum(ratios[j:]) - earned).square()
    count = world.reward.numel()
    return policy_loss / count, critic_loss / count


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_brute_force(world, name, alpha):
    policy = random_policy(world, 1).requires_grad_()
    values = random_policy(world, 2)[..., 0].clone().requires_grad_()
    changes = {"alpha": alpha} if name == "oreo" else {}
    policy_loss, critic_loss = brute_force(name, world, policy, values, alpha)
    networks = Watched(world).set(policy.detach(), values.detach())
    method = built(name, **changes)
    method.start(networks, Alone())
    logged = method.update(everything(world)).logged
    assert logged["policy_loss"] == pytest.approx(policy_loss.item(), rel=1e-10)
    torch.testing.assert_close(
        networks.gradients["policy"], torch.autograd.grad(policy_loss, policy)[0].flatten(0, 1), **EXACT
    )
    if name == "oreo":
        assert logged["critic_loss"] == pytest.approx(critic_loss.item(), rel=1e-10)
        expected = torch.autograd.grad(critic_loss, values)[0].flatten()[None]
        torch.testing.assert_close(networks.gradients["value"], expected, **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_at_the_optimum_of_a_deterministic_world_no_residual_is_left(world, name):
    """π* = ρ exp(Q*/β) / Z with V* is where every residual is 0, whoever draws the data."""
    states = len(world.reward)
    onward = torch.zeros_like(world.transition)
    for s in range(states):
        for a in range(world.reward.shape[1]):
            onward[s, a, (s + a) % states] = 1.0
    fixed = replace(world, transition=onward)
    q, log_best = fixed.improve(BETA, GAMMA)
    value = BETA * torch.logsumexp(torch.log_softmax(fixed.reference_logits, -1) + q / BETA, -1)
    level = {"tbrm": value / BETA, "shiq": value / BETA + fixed.reference_logits.logsumexp(-1)}.get(name, 0 * value)
    networks = Watched(fixed).set(log_best + level[..., None], value)
    method = built(name)
    method.start(networks, Alone())
    result = method.update(everything(fixed))
    assert result.logged["policy_loss"] < 1e-16 and result.logged["critic_loss"] < 1e-16
    # The credit is Q* less its mean under π*, token by token.
    t, credit = everything(fixed)[3], result.credit[3]
    best = log_best.exp()
    s, a = t.prompt[0], 3
    for j, token in enumerate(t.action):
        p = int(fixed.prefixes[a, j])
        expected = q[s, p, token] - (best[s, p] * q[s, p]).sum()
        assert credit[j] == pytest.approx(float(expected), abs=1e-8)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.nightly) if n != "tbrm" else n for n in NAMES])
def test_sampled_episodes_lead_to_the_optimum(name):
    """In a world whose next states are random: nine tenths of the way and more. What is left are rare tokens."""
    run = {"updates": 250, "count": 16, "steps": 4, "seed": 0, "beta": BETA, "gamma": GAMMA}
    curve = learn(built(name, 0.1), random_world(0), **run)
    assert 0 <= sum(curve[-10:]) / 10 < 0.1 * curve[0]


@pytest.mark.parametrize("name", NAMES)
def test_data_of_another_policy_lead_there_too(name):
    """Actions drawn from ρ all along, in a world of one turn."""
    world = random_world(1, states=1, vocabulary=3, longest=2, done_share=1.1)
    networks, environments = TabularNetworks(world), TabularEnvironments(world, 32, seed=0)
    method = built(name, 0.1)
    method.start(networks, Alone())
    best, _, log_best = world.action_optimum(BETA, GAMMA)
    for update in range(250):
        method.optimisers[0].param_groups[0]["lr"] = 0.1 * (1 - update / 250)
        method.update(environments.collect(world.reference_logits, 1))
    # Nothing is random in the rewards, so every residual goes to 0 and the policy to the optimum itself.
    torch.testing.assert_close(world.action_log_prob(networks.policy_logits).exp(), log_best.exp(), atol=2e-3, rtol=0)


def one_token_world(states):
    return random_world(4, states=states, vocabulary=4, longest=1, done_share=1.1)


def expected_gradient(name, world, policy, values, **changes):
    """The mean gradient of the policy's loss over actions drawn from the policy, one state, one token."""
    total = 0
    for t, chance in zip(everything(world), world.action_log_prob(policy).exp().flatten().tolist(), strict=True):
        networks = Watched(world).set(policy, values)
        method = built(name, **changes)
        method.start(networks, Alone())
        method.update([t])
        total = total + chance * networks.gradients["policy"]
    return total


def test_oreos_further_kl_moves_its_fixed_point_to_a_larger_beta():
    """To β + α / (2 β): with the paper's β = 0.03 and α = 0.01, from 0.03 to 0.197."""
    world, alpha = one_token_world(1), 0.06
    _, best = world.improve(BETA, GAMMA)
    _, moved = world.improve(BETA + alpha / (2 * BETA), GAMMA)
    values = torch.tensor([[0.123]], dtype=torch.float64)  # any: on the policy's own data V is a baseline
    at = {
        "moved": expected_gradient("oreo", world, moved, values, alpha=alpha),
        "best": expected_gradient("oreo", world, best, values, alpha=alpha),
        "without": expected_gradient("oreo", world, best, values, alpha=0.0),
    }
    assert at["moved"].abs().max() < 1e-12 and at["without"].abs().max() < 1e-12
    assert at["best"].abs().max() > 1e-2


def test_a_residual_over_several_actions_would_be_biased_where_the_next_state_is_random():
    """Two turns of one token each, the second in a state drawn by chance: least squares over whole episodes asks the
    policy to explain which state came, a residual for each action with V(s') constant does not."""
    world = random_world(6, states=3, vocabulary=2, longest=1, done_share=0.0)
    q2 = world.reward[1:]  # turn two, in state 1 or 2, ends the episode
    log_reference = world.action_log_prob(world.reference_logits)
    v2 = BETA * torch.logsumexp(log_reference[1:] + q2 / BETA, -1)
    chance = torch.tensor([[0.5, 0.5], [0.8, 0.2]], dtype=torch.float64)  # of states 1 and 2 after each first token
    q1 = world.reward[0] + GAMMA * chance @ v2
    best1, best2 = (torch.log_softmax(r + q / BETA, -1) for r, q in ((log_reference[0], q1), (log_reference[1:], q2)))

    logits = torch.zeros(5 + 2, dtype=torch.float64, requires_grad=True)  # V(s1), policies of turn 1 and 2
    optimiser = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss():
        value, pi1, pi2 = logits[0], torch.log_softmax(logits[1:3], -1), torch.log_softmax(logits[3:].view(2, 2), -1)
        first = value + BETA * (pi1 - log_reference[0]) - world.reward[0]
        second = BETA * (pi2 - log_reference[1:]) - q2
        residual = first[:, None, None] + GAMMA * second[None]  # first token, next state, second token
        return (chance[:, :, None] * residual.square()).sum()

    def closure():
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    with torch.no_grad():
        off = float((torch.log_softmax(logits[1:3], -1).exp() - best1.exp()).abs().max())
        second = float((torch.log_softmax(logits[3:].view(2, 2), -1).exp() - best2.exp()).abs().max())
        # Only V of the second state tells the states apart, and no token can: what is left is its variance, and the
        # tokens of the second turn bend to explain it, by 0.13 in probability, those of the first by 0.001.
        assert float(loss()) > 0.1 and off == pytest.approx(0.001, abs=5e-4)
        assert second == pytest.approx(0.127, abs=1e-3)
