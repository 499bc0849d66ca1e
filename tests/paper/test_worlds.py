"""Worlds small enough to enumerate: the token-level backup against brute force over all token sequences."""

import math

import pytest
import torch

from etpo_core import bellman
from etpo_paper.tabular import worlds

SIZES = [  # states, vocabulary, longest action
    (3, 4, 3),
    (4, 3, 4),
    (5, 5, 2),
    (10, 6, 4),
    (3, 3, 1),
]
BETA, GAMMA = 0.5, 0.7


def small_world(seed=0):
    return worlds.random_world(seed, states=3, vocabulary=4, longest=3)


def largest(x):
    return float(x.abs().max())


@pytest.mark.parametrize("size", SIZES)
def test_a_world_is_whole(size):
    states, vocabulary, longest = size
    world = worlds.random_world(0, *size)
    end = vocabulary - 1
    written = {tuple(row[:n].tolist()) for row, n in zip(world.tokens, world.lengths, strict=True)}
    assert len(written) == len(world.tokens)  # no action twice
    assert set(world.lengths.tolist()) == set(range(1, longest + 1))
    assert all(end not in a[:-1] and (a[-1] == end or len(a) == longest) for a in written)
    assert world.terminated.any() and not world.terminated.all()
    probability = world.action_log_prob(worlds.random_policy(world, 1)).exp()
    assert largest(probability.sum(-1) - 1) < 1e-14


def test_brute_force_agrees_with_writing_it_out():
    """The action-level solver against plain Python on the smallest world: no tensors, no shared code."""
    world = worlds.random_world(5, states=2, vocabulary=2, longest=2, done_share=0.5)
    policy_logits = worlds.random_policy(world, 6)

    def probabilities(logits):
        top = [math.exp(x) for x in logits.tolist()]
        return [x / sum(top) for x in top]

    # Prefix 0 is the empty one, prefix 1 is (0,); token 1 ends. Actions: (1), (0, 1), (0, 0).
    sequences = [(1,), (0, 1), (0, 0)]
    row = {tuple(t[:n].tolist()): i for i, (t, n) in enumerate(zip(world.tokens, world.lengths, strict=True))}

    def action_probability(logits, state, action):
        first = probabilities(logits[state, 0])[action[0]]
        return first if len(action) == 1 else first * probabilities(logits[state, 1])[action[1]]

    value = [0.0, 0.0]
    for _ in range(300):
        value = [
            sum(
                (p := action_probability(policy_logits, s, a))
                * (
                    world.reward[s, row[a]].item()
                    + GAMMA
                    * (not world.terminated[s, row[a]])
                    * sum(world.transition[s, row[a], n].item() * value[n] for n in range(2))
                    - BETA * math.log(p / action_probability(world.reference_logits, s, a))
                )
                for a in sequences
            )
            for s in range(2)
        ]
    brute, _ = world.action_values(policy_logits, BETA, GAMMA)
    assert brute.tolist() == pytest.approx(value, abs=1e-13)


@pytest.mark.parametrize("size", SIZES)
def test_token_backups_reach_the_action_level_value(size):
    world = worlds.random_world(1, *size)
    policy_logits = worlds.random_policy(world, 2)
    q = world.evaluate(policy_logits, BETA, GAMMA)
    value, action_q = world.action_values(policy_logits, BETA, GAMMA)
    assert largest(world.soft_values(q, policy_logits, BETA)[:, 0] - value) < 1e-10
    last = world.entries.gather(1, (world.lengths - 1)[:, None]).squeeze(1)
    assert largest(q.flatten(1)[:, last] - action_q) < 1e-10  # Q of an action's last token is Q(s, a)


@pytest.mark.parametrize("size", SIZES)
def test_alternating_with_the_policy_update_reaches_the_closed_form(size):
    world = worlds.random_world(3, *size)
    value, action_q, log_best = world.action_optimum(BETA, GAMMA)
    q, policy_logits = world.improve(BETA, GAMMA)
    assert largest(world.soft_values(q, policy_logits, BETA)[:, 0] - value) < 1e-10
    assert largest(world.action_log_prob(policy_logits) - log_best) < 1e-10  # π* = ρ exp(Q/β) / Z over actions
    log_reference = torch.log_softmax(world.reference_logits, dim=-1)
    from_tokens = BETA * torch.logsumexp(log_reference + q / BETA, dim=-1)[:, 0]
    assert largest(from_tokens - value) < 1e-10  # V = β log Σ_w ρ exp(Q/β) at the first token alone
    again, _ = world.action_values(policy_logits, BETA, GAMMA)
    assert largest(again - value) < 1e-10  # and evaluating that policy gives the same value


@pytest.mark.parametrize("departure", [{"inner_discount": 0.9}, {"late_kl": True}], ids=str)
def test_the_equality_breaks_when_the_backup_departs(departure):
    world = small_world()
    policy_logits = worlds.random_policy(world, 7)
    value, _ = world.action_values(policy_logits, BETA, GAMMA)
    q = world.evaluate(policy_logits, BETA, GAMMA, **departure)
    gap = largest(world.soft_values(q, policy_logits, BETA)[:, 0] - value)
    print(f"{departure}: the value is off by {gap:.3f}")
    assert gap > 0.1


def test_one_token_actions_do_not_notice_the_inner_discount():
    world = worlds.random_world(0, states=4, vocabulary=5, longest=1)
    policy_logits = worlds.random_policy(world, 1)
    plain = world.evaluate(policy_logits, BETA, GAMMA)
    assert torch.equal(plain, world.evaluate(policy_logits, BETA, GAMMA, inner_discount=0.5))


def lambda_fixed_point(world, policy_logits, behaviour_logits, lam, baseline):
    """Repeats the expected λ-return update, actions drawn from the behaviour, until nothing moves."""
    states = len(world.reward)
    kl = bellman.kl_divergence(policy_logits, world.reference_logits)
    ratio = (world.token_log_prob(policy_logits) - world.token_log_prob(behaviour_logits)).exp().flatten(0, 1)
    q = torch.zeros_like(policy_logits)
    for _ in range(200):
        mean = bellman.expected_q(policy_logits, q)
        state_value = bellman.soft_value(mean, kl, BETA)[:, 0]
        b = {
            "none": None,
            "overlap": world.rows(bellman.overlap_q(policy_logits, behaviour_logits, q)),
            "taken": q.flatten(1)[:, world.entries].flatten(0, 1),
        }[baseline]
        targets = bellman.lambda_targets(
            world.rows(mean),
            world.rows(kl),
            world.lengths.repeat(states),
            world.reward.flatten(),
            world.terminated.flatten(),
            world.after(state_value),
            BETA,
            GAMMA,
            lam,
            importance=ratio,
            baseline=b,
        )
        q = world.averaged(targets, behaviour_logits)
    return q


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("baseline", ["none", "overlap", "taken"])
def test_lambda_returns_on_policy_keep_the_fixed_point(lam, baseline):
    world = small_world()
    policy_logits = worlds.random_policy(world, 7)
    q = lambda_fixed_point(world, policy_logits, policy_logits, lam, baseline)
    assert largest(q - world.evaluate(policy_logits, BETA, GAMMA)) < 1e-10


@pytest.mark.parametrize(("baseline", "exact"), [("none", False), ("overlap", True), ("taken", True)])
def test_lambda_returns_off_policy(baseline, exact):
    """Truncated weights keep the fixed point with a baseline that suits them, and move it with E_π[Q]."""
    world = small_world()
    policy_logits, behaviour_logits = worlds.random_policy(world, 7), worlds.random_policy(world, 8)
    gap = largest(
        lambda_fixed_point(world, policy_logits, behaviour_logits, 0.9, baseline)
        - world.evaluate(policy_logits, BETA, GAMMA)
    )
    print(f"baseline {baseline}: Q is off by {gap:.2e}")
    assert gap < 1e-10 if exact else gap > 1e-2
