"""Estimators of the KL: their means and, above all, their gradients, by enumeration of small worlds in float64."""

import pytest
import torch

from etpo_core.bellman import kl_divergence
from etpo_paper.methods.kl import kl_estimate
from etpo_paper.tabular.kinds import KINDS
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


def test_at_tokens_neither_estimator_has_the_gradient_of_a_divergence_of_whole_actions(world, found):
    """k3 at tokens as GRPO has it, with and without TRL's bias correction."""
    policy = random_policy(world, 5)
    log_reference = world.action_log_prob(world.reference_logits)
    backwards = gradient_of(lambda p: (log_reference.exp() * (log_reference - world.action_log_prob(p))).sum(), policy)
    forwards = found["action", "loss", "full"]
    for name, whole in (("k3 with ratio", forwards), ("k3", backwards)):
        assert (found["token", "loss", name] - whole).norm() > 0.05 * whole.norm()


def test_corrected_with_the_ratio_of_a_sequence_k3_has_the_gradient_of_neither(world, found):
    """As TRL 1.16 has it at sequence level: the ratio of an action is exp of its tokens' mean log-ratio."""
    policy, tokens = random_policy(world, 5), world.lengths.double()
    chance, reference = world.action_log_prob(policy).exp(), world.token_log_prob(world.reference_logits)

    def loss(p):
        log_prob = world.token_log_prob(p)
        ratio = ((log_prob - log_prob.detach()).sum(-1) / tokens).exp()
        return (chance * ratio * kl_estimate(log_prob - reference, "k3").sum(-1)).sum()

    mixed = gradient_of(loss, policy)
    log_reference = world.action_log_prob(world.reference_logits)
    backwards = gradient_of(lambda p: (log_reference.exp() * (log_reference - world.action_log_prob(p))).sum(), policy)
    of_tokens = [found["token", "loss", name] for name in ("k3 with ratio", "k3")]
    for other in (*of_tokens, found["action", "loss", "full"], backwards):
        assert (mixed - other).norm() > 0.05 * other.norm()


def test_how_much_fixed_prefixes_miss_is_a_matter_of_the_world():
    """Nothing where only the first token moves; a seventh on average in random worlds of three states at half a nat."""

    def missing(world, policy):
        of = gradients(world, shift_to(world, policy, 0.5))
        exact, fixed = of["action", "loss", "full"].flatten(), of["token", "loss", "full"].flatten()
        return 1 - float(fixed @ exact / (exact @ exact))

    for kind in ("early", "filler"):
        world = KINDS[kind].world(1)
        assert abs(missing(world, world.improve(0.1, 0.9)[1])) < 1e-8
    found = [missing(random_world(seed), random_policy(random_world(seed), seed + 10)) for seed in range(1, 6)]
    assert 0.12 < sum(found) / len(found) < 0.16 and min(found) < 0 < 0.2 < max(found)


def test_a_loss_that_averages_over_tokens_has_the_same_beta_if_it_averages_the_reward_too():
    """As in TRL's GRPO, where β is so per nat of the whole action. If only the KL is averaged, β counts a T-th."""
    world, beta = KINDS["fork"].world(1), 0.2
    policy = random_policy(world, 5)
    tokens = world.tokens.shape[1]
    chance, reference = world.action_log_prob(policy).exp(), world.token_log_prob(world.reference_logits)

    def loss(p, reward_over):
        log_prob = world.token_log_prob(p)
        ratio = (log_prob - log_prob.detach()).exp()
        k3 = ratio * kl_estimate(log_prob - reference, "k3")
        return (chance * (-(ratio.sum(-1) * world.reward) / reward_over + beta * k3.sum(-1) / tokens)).sum()

    of_kl = gradients(world, policy)["token", "loss", "k3 with ratio"]
    of_reward = gradient_of(lambda p: (world.action_log_prob(p).exp() * world.reward).sum(), policy)
    averaged, kl_alone = (gradient_of(lambda p, o=over: loss(p, o), policy) for over in (tokens, 1))
    torch.testing.assert_close(tokens * averaged, beta * of_kl - of_reward, **EXACT)
    torch.testing.assert_close(kl_alone, beta / tokens * of_kl - of_reward, **EXACT)
