"""Estimators of the KL: their means and, above all, their gradients, by enumeration of small worlds in float64."""

import pytest
import torch

from etpo_core.bellman import kl_divergence
from etpo_paper.methods.kl import kl_estimate
from etpo_paper.tabular.kl import action_kl, gradients, shift_to
from etpo_paper.tabular.worlds import random_policy, random_world

EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module")
def world():
    return random_world(3, states=2, vocabulary=4, longest=3)


@pytest.fixture(scope="module")
def found(world):
    return gradients(world, random_policy(world, 5))


def token_kl(world, policy, backwards):
    """Σ over positions of KL[π‖ρ] or KL[ρ‖π] at each prefix, prefixes as often as π meets them and held fixed."""
    reference = world.reference_logits
    kl = kl_divergence(*((reference, policy) if backwards else (policy, reference)))
    met = world.token_log_prob(policy.detach()).cumsum(-1).exp() / world.token_log_prob(policy.detach()).exp()
    chance = torch.zeros_like(kl)
    done = set()
    for row, (action, length) in enumerate(zip(world.tokens, world.lengths, strict=True)):
        for j in range(length):
            if tuple(action[:j].tolist()) not in done:  # a prefix counts once, however many actions share it
                done.add(tuple(action[:j].tolist()))
                chance[:, world.prefixes[row, j]] = met[:, row, j]
    return (chance * kl).sum()


def gradient_of(function, policy):
    policy = policy.clone().requires_grad_()
    return torch.autograd.grad(function(policy), policy)[0]


def test_all_three_are_unbiased_or_say_so(world):
    policy = random_policy(world, 5)
    log_policy, log_reference = world.action_log_prob(policy), world.action_log_prob(world.reference_logits)
    kl = action_kl(world, policy)

    def mean(kind):
        return (log_policy.exp() * kl_estimate(log_policy - log_reference, kind)).sum(-1)

    torch.testing.assert_close(mean("k1"), kl, **EXACT)
    torch.testing.assert_close(mean("k3"), kl, **EXACT)
    assert ((mean("k2") / kl - 1).abs() > 0.05).all(), "far from ρ, k2 is biased"
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(kl, "k4")


def test_a_long_action_stays_finite():
    assert torch.isfinite(kl_estimate(torch.tensor([-1e4, 1e4]), "k3")).all()


def test_of_whole_actions_the_gradient_is_what_the_table_says(world, found):
    policy = random_policy(world, 5)
    log_reference = world.action_log_prob(world.reference_logits)
    forwards = gradient_of(lambda p: action_kl(world, p).sum(), policy)

    def backwards_kl(p):
        return (log_reference.exp() * (log_reference - world.action_log_prob(p))).sum()

    backwards = gradient_of(backwards_kl, policy)
    torch.testing.assert_close(found["action", "loss", "full"], forwards, **EXACT)
    for place, kind, expected in [
        ("loss", "k1", torch.zeros_like(forwards)),
        ("loss", "k2", forwards),
        ("loss", "k3", backwards),
        ("reward", "k1", forwards),
        ("reward", "k3", forwards - backwards),
    ]:
        torch.testing.assert_close(found["action", place, kind], expected, **EXACT)
    assert (found["action", "reward", "k2"] - forwards).norm() > 0.05 * forwards.norm()


def test_at_tokens_the_same_holds_of_the_divergence_at_fixed_prefixes(world, found):
    policy = random_policy(world, 5)
    forwards = gradient_of(lambda p: token_kl(world, p, backwards=False), policy)
    backwards = gradient_of(lambda p: token_kl(world, p, backwards=True), policy)
    for kind, expected in [("k1", 0 * forwards), ("k2", forwards), ("k3", backwards), ("full", forwards)]:
        torch.testing.assert_close(found["token", "loss", kind], expected, **EXACT)
    # k3 times the ratio π/μ at μ = π, as TRL's bias correction has it, is differentiated through the ratio as well.
    torch.testing.assert_close(found["token", "loss", "k3 with ratio"], forwards, **EXACT)
    assert (forwards - found["action", "loss", "full"]).norm() > 0.05 * forwards.norm(), (
        "not the divergence of whole actions"
    )


def test_charged_to_the_reward_log_ratios_are_exact_and_the_full_divergence_is_what_the_loss_misses(found):
    torch.testing.assert_close(found["token", "reward", "k1"], found["action", "loss", "full"], **EXACT)
    both = found["token", "loss", "full"] + found["token", "reward", "full"]
    torch.testing.assert_close(both, found["action", "loss", "full"], **EXACT)


@pytest.mark.parametrize(("nats", "least", "most"), [(0.1, 0.08, 0.16), (0.5, 0.18, 0.28), (1.0, 0.27, 0.38)])
def test_with_prefixes_held_fixed_the_gradient_is_off_the_more_the_farther_from_the_reference(nats, least, most):
    """By 12, 23 and 32 % of its length at 0.1, 0.5 and 1 nat an action, too short in most worlds but not in all."""
    missing, along = [], []
    for seed in range(10):
        world = random_world(seed, states=1, vocabulary=4, longest=3)
        policy = shift_to(world, random_policy(world, seed + 10), nats)
        assert float(action_kl(world, policy)) == pytest.approx(nats, rel=1e-6)
        of = gradients(world, policy)
        exact, fixed = of["action", "loss", "full"].flatten(), of["token", "loss", "full"].flatten()
        missing.append(float((fixed - exact).norm() / exact.norm()))
        along.append(1 - float(fixed @ exact / (exact @ exact)))
    assert least < sum(missing) / len(missing) < most, missing
    assert sum(along) > 0 > min(along)
