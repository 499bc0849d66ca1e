"""The kinds of worlds of the benchmark: each is what it says, and small enough to know everything about."""

import pytest
import torch

from etpo_paper.tabular.kinds import KINDS
from etpo_paper.tabular.learning import learn

BETA, GAMMA = 0.1, 0.9


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_whole_and_a_seed_draws_another_world(name):
    world, other = (KINDS[name].world(seed) for seed in (1, 2))
    actions = world.action_log_prob(world.reference_logits).exp().sum(-1)
    torch.testing.assert_close(actions, torch.ones_like(actions))
    assert world.reward.shape == other.reward.shape and not torch.equal(world.reference_logits, other.reference_logits)
    best, _, _ = world.action_optimum(BETA, GAMMA)
    value, _ = world.action_values(world.reference_logits, BETA, GAMMA)
    assert (best - value).mean() > 0.02, "there is something to learn"
    acting = KINDS[name].behaviour(world, 1)
    assert (acting is not None) == KINDS[name].off_policy


def advantages(name):
    """Q* less V* at each prefix, as the tokens of each action meet them: [A, T] of the first state."""
    world = KINDS[name].world(1)
    q, log_best = world.improve(BETA, GAMMA)
    value = (log_best.exp() * (q - BETA * (log_best - torch.log_softmax(world.reference_logits, -1)))).sum(-1)
    table = (q - value[..., None]).flatten(1)[0]
    return world, torch.where(world.mask, table[world.entries], 0)


def test_credit_sits_where_the_kind_says():
    for name in ("early", "filler"):
        _, of = advantages(name)
        assert of[:, 0].abs().max() > 0.1 and of[:, 1:].abs().max() < 1e-9
    world, of = advantages("long")
    assert (of.abs().amax(0) > 0.03).all(), "every token counts"
    world, of = advantages("fork")
    assert of.abs().amax(0)[1] > 0.1
    inside = (world.reward[0] == 1).nonzero().flatten()
    assert len(inside) == 3 and (world.reward[0] == -0.5).sum() == 24
    # Under the reference the branch with the best ending is a bad choice, under the optimum the best.
    _, _, log_best = world.action_optimum(BETA, GAMMA)
    before, after = (log[0, inside].exp().sum() for log in (world.action_log_prob(world.reference_logits), log_best))
    assert before < 0.1 and after > 0.9


def test_an_offset_changes_no_policy_and_a_repair_follows_a_failure():
    world = KINDS["offset"].world(1)
    assert world.reward.min() > 4.4 and world.reward.max() - world.reward.min() < 1
    world = KINDS["repairs"].world(1)
    failed = world.reward == -1
    assert world.terminated[1].all() and torch.equal(world.terminated[0], ~failed[0])
    assert (world.transition[0, :, 1] == 1).all() and 0 < failed[0].sum() < len(failed[0])


class Nothing:
    """A method that learns nothing and remembers what it was given."""

    def __init__(self):
        self.seen = []

    def start(self, networks, reducer):
        """Nothing to take."""

    def update(self, transitions):
        """Keeps them."""
        self.seen += transitions


def test_another_policy_acts_where_the_kind_says_so_and_the_regret_is_looked_at_now_and_then():
    kind = KINDS["off_policy"]
    world, method = kind.world(1), Nothing()
    run = {"updates": 40, "count": 16, "steps": 4, "seed": 0, "beta": BETA, "gamma": GAMMA}
    acting = kind.behaviour(world, 1)
    curve = learn(method, world, behaviour=acting, every=10, **run)
    assert len(curve) == 5 and len(set(curve)) == 1
    first = torch.bincount(torch.tensor([t.action[0] for t in method.seen]), minlength=3) / len(method.seen)
    torch.testing.assert_close(first, acting[0, 0].softmax(-1).float(), atol=0.03, rtol=0)
    assert (first - world.reference_logits[0, 0].softmax(-1)).abs().max() > 0.1
