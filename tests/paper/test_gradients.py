"""Which estimate of the advantage points the right way: on actions made so that one does."""

import pytest
import torch

from etpo_core.interfaces import Alone, Transition
from etpo_paper.base.settings import load_settings
from etpo_paper.measure.gradients import (
    Actions,
    advantages,
    agreement,
    direction,
    fitted,
    grouped,
    with_value,
    without_value,
)
from etpo_paper.methods import build_method
from etpo_paper.tabular.networks import TabularNetworks
from etpo_paper.tabular.worlds import random_world

OTHERS = {"beta": 0.05, "gamma": 0.9, "lam": 0.95}


def made(count, seed=0):
    """Actions of three tokens, of which the second alone decides; the state before the third shows it."""
    generator = torch.Generator().manual_seed(seed)
    good = torch.rand(count, generator=generator) < 0.5
    states = torch.randn(count, 3, 4, generator=generator) * 0.1
    states[:, 2, 0] = torch.where(good, 1.0, -1.0)
    states[:, :, 3] += 1.0
    scores = torch.randn(count, 3, 4, generator=generator)
    scores[:, 1, 1] = torch.where(good, 1.0, -1.0)
    return described(torch.where(good, 1.0, -1.0), [3] * count, states.flatten(0, 1), scores.flatten(0, 1))


def described(returns, lengths, states, scores, means=None, levels=None, groups=None):
    """Actions, of one state and with levels of 0 unless told."""
    nothing = torch.zeros_like(scores) if means is None else means
    levels = torch.zeros(len(states)) if levels is None else levels
    groups = torch.zeros(len(returns), dtype=torch.long) if groups is None else groups
    return Actions(returns, torch.tensor(lengths), states, scores, nothing, levels, groups)


def test_a_value_that_knows_gives_the_deciding_token_the_credit():
    actions = made(300)
    value = fitted(actions, torch.arange(200), ridge=1e-3)
    weights = advantages(actions, value, lam=0.0).view(-1, 3)[200:]
    assert weights[:, 1].abs().min() > 5 * weights[:, [0, 2]].abs().mean()
    assert torch.equal(weights[:, 1] > 0, actions.returns[200:] > 0)


def test_without_a_value_the_whole_return_is_what_each_token_gets_and_lambda_0_leaves_the_last():
    actions = made(5)
    nothing = fitted(actions, torch.arange(0), ridge=1.0)
    assert torch.equal(advantages(actions, nothing, 1.0), actions.returns.repeat_interleave(3))
    last = advantages(actions, nothing, 0.0).view(-1, 3)
    assert torch.equal(last[:, 2], actions.returns) and last[:, :2].abs().max() == 0


def test_the_direction_is_the_gradient_of_the_weighted_log_probability():
    generator = torch.Generator().manual_seed(0)
    head, states = torch.randn(7, 4, generator=generator), torch.randn(5, 4, generator=generator)
    tokens, weights = torch.tensor([0, 3, 3, 6, 1]), torch.randn(5, generator=generator)
    m = torch.zeros(4, 4, requires_grad=True)
    log_pi = ((states + states @ m.T) @ head.T).log_softmax(-1)
    (weights * log_pi.gather(-1, tokens[:, None])[:, 0]).sum().backward()
    scores = head[tokens] - (states @ head.T).softmax(-1) @ head
    actions = described(torch.zeros(2), [2, 3], states, scores)
    torch.testing.assert_close(direction(actions, weights, torch.tensor([0, 1])), m.grad)
    of_second = torch.cat([torch.zeros(2), weights[2:]])
    torch.testing.assert_close(
        direction(actions, weights, torch.tensor([1])), direction(actions, of_second, torch.tensor([0, 1]))
    )


def test_credit_for_each_token_points_better_and_the_same_seed_says_the_same():
    def rows():
        options = {"known": [0, 100], "lams": [0.0, 1.0], "ridge": 1e-3, "batch": 8, "draws": 20, **OTHERS}
        return list(agreement(made(300), **options, generator=torch.Generator().manual_seed(1)))

    alike, *each = rows()
    found = {(row["known"], row["lam"]): row["cosine"] for row in each if row["method"] == "etpo"}
    assert (alike["method"], alike["known"], alike["lam"]) == ("ppo_kl", None, None) and len(found) == 4
    assert found[100, 0.0] > alike["cosine"] + 0.1 > found[0, 0.0] + 0.1
    assert rows() == [alike, *each]
    others = {(row["method"], row["known"]): row["cosine"] for row in each if row["method"] != "etpo"}
    assert set(others) == {(m, None) for m in ("rloo", "grpo", "tbrm", "shiq")} | {
        (m, k) for m in ("ppo_kl", "poad", "ntpo", "oreo") for k in (0, 100)
    }
    assert others["ppo_kl", 0] == pytest.approx(alike["cosine"], abs=1e-6)
    assert others["rloo", None] == pytest.approx(alike["cosine"], abs=1e-6), "one group: the same up to a factor"
    assert others["oreo", 100] == pytest.approx(found[100, 1.0], abs=1e-6), "actions of one length"


def test_no_action_of_a_batch_is_among_those_that_it_is_compared_with():
    chosen = []

    class Watched(Actions):
        def tokens_of(self, actions):
            chosen.append(set(actions.tolist()))
            return super().tokens_of(actions)

    generator = torch.Generator().manual_seed(0)
    options = {"known": [10], "lams": [1.0], "ridge": 1.0, "batch": 4, "draws": 3, **OTHERS}
    list(agreement(Watched(*made(30)), **options, generator=generator))
    truth, *batches = (c for c in chosen if len(c) in (10, 4))
    assert all(not truth & b for b in batches if len(b) == 4)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_actions_of_different_lengths_keep_their_tokens(lam):
    actions = described(torch.tensor([1.0, 2.0]), [1, 3], torch.zeros(4, 2), torch.zeros(4, 2))
    expected = [1.0, 2.0 * lam**2, 2.0 * lam, 2.0]
    assert advantages(actions, torch.zeros(4), lam).tolist() == pytest.approx(expected)


def test_actions_are_compared_within_the_group_of_their_state():
    returns, groups = torch.tensor([1.0, 3.0, 5.0, 2.0, 9.0]), torch.tensor([0, 0, 0, 1, 0])
    actions = described(returns, [1] * 5, torch.zeros(5, 2), torch.zeros(5, 2), groups=groups)
    chosen = torch.tensor([3, 1, 0, 2])
    assert grouped(actions, chosen, normalise=False).tolist() == [-3.0, 0.0, 3.0, 0.0, 0.0]
    assert grouped(actions, chosen, normalise=True).tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5, 0, 0])


class FirstStep(TabularNetworks):
    """Networks that keep the policy's gradient instead of moving."""

    def step(self, optimiser):
        """See `Networks.step`; only the first is kept."""
        if self.first is None:
            self.first = self._tables["policy"].grad
        optimiser.zero_grad()
        return 0.0

    first = None


@pytest.mark.parametrize("name", ["ppo_kl", "rloo", "grpo", "poad", "ntpo", "oreo", "tbrm", "shiq"])
def test_the_weights_of_each_method_are_the_gradient_of_its_first_update(name):
    """The method itself, on tables, whose rows are the logits: states are one-hot prefixes and W is the identity."""
    world = random_world(0, states=2, vocabulary=3, longest=3)
    networks = FirstStep(world)
    generator = torch.Generator().manual_seed(0)
    batch = []
    for number in torch.randint(len(world.tokens), (7,), generator=generator).tolist():
        action = tuple(world.tokens[number, : world.lengths[number]].tolist())
        reward = float(torch.rand(1, generator=generator)) - 0.3
        batch.append(Transition((number % 2,), action, (0.0,) * len(action), reward, True, None))
    section = load_settings("laptop").methods[name].plain() | {"gamma": 0.9}
    beta = section["beta"]
    method = build_method("poad" if name == "ntpo" else name, {k: v for k, v in section.items() if k != "method"})
    method.start(networks, Alone())
    method.update(batch)
    (of,) = networks.batches(batch)
    logits = networks._logits("reference", of)
    actions = described(
        of.reward,
        of.lengths.tolist(),
        torch.nn.functional.one_hot(of.rows, len(networks._code)).float(),
        torch.nn.functional.one_hot(of.tokens, 3) - logits.softmax(-1),
        logits.softmax(-1),
        logits.logsumexp(-1),
        torch.tensor([t.prompt[0] for t in batch]),
    )
    chosen, nothing = torch.arange(len(batch)), torch.zeros(len(of.rows))
    found = {n: (w, level) for n, w, level in without_value(actions, chosen, beta)}
    found |= {n: (w, v) for n, w, v in with_value(actions, chosen, nothing, nothing, 0.9, section.get("lam", 0.95))}
    weights, level = found[name]
    expected = direction(actions, weights, chosen, level).T.flatten()
    assert networks.first is not None and expected.norm() > 0.01
    cosine = torch.cosine_similarity(-networks.first.flatten(), expected, dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-5)
