"""Which estimate of the advantage points the right way: on actions made so that one does."""

import pytest
import torch

from etpo_paper.measure.gradients import Actions, advantages, agreement, direction, fitted


def made(count, seed=0):
    """Actions of three tokens, of which the second alone decides; the state before the third shows it."""
    generator = torch.Generator().manual_seed(seed)
    good = torch.rand(count, generator=generator) < 0.5
    states = torch.randn(count, 3, 4, generator=generator) * 0.1
    states[:, 2, 0] = torch.where(good, 1.0, -1.0)
    states[:, :, 3] += 1.0
    scores = torch.randn(count, 3, 4, generator=generator)
    scores[:, 1, 1] = torch.where(good, 1.0, -1.0)
    lengths = torch.full((count,), 3)
    return Actions(torch.where(good, 1.0, -1.0), lengths, states.flatten(0, 1), scores.flatten(0, 1))


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
    actions = Actions(torch.zeros(2), torch.tensor([2, 3]), states, scores)
    torch.testing.assert_close(direction(actions, weights, torch.tensor([0, 1])), m.grad)
    of_second = torch.cat([torch.zeros(2), weights[2:]])
    torch.testing.assert_close(
        direction(actions, weights, torch.tensor([1])), direction(actions, of_second, torch.tensor([0, 1]))
    )


def test_credit_for_each_token_points_better_and_the_same_seed_says_the_same():
    def rows():
        options = {"known": [0, 100], "lams": [0.0, 1.0], "ridge": 1e-3, "batch": 8, "draws": 20}
        return list(agreement(made(300), **options, generator=torch.Generator().manual_seed(1)))

    alike, *each = rows()
    found = {(row["known"], row["lam"]): row["cosine"] for row in each}
    assert (alike["known"], alike["lam"]) == (None, None) and len(found) == 4
    assert found[100, 0.0] > alike["cosine"] + 0.1 > found[0, 0.0] + 0.1
    assert rows() == [alike, *each]


def test_no_action_of_a_batch_is_among_those_that_it_is_compared_with():
    chosen = []

    class Watched(Actions):
        def tokens_of(self, actions):
            chosen.append(set(actions.tolist()))
            return super().tokens_of(actions)

    generator = torch.Generator().manual_seed(0)
    list(agreement(Watched(*made(30)), known=[10], lams=[1.0], ridge=1.0, batch=4, draws=3, generator=generator))
    truth, *batches = (c for c in chosen if len(c) in (10, 4))
    assert all(not truth & b for b in batches if len(b) == 4)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_actions_of_different_lengths_keep_their_tokens(lam):
    actions = Actions(torch.tensor([1.0, 2.0]), torch.tensor([1, 3]), torch.zeros(4, 2), torch.zeros(4, 2))
    expected = [1.0, 2.0 * lam**2, 2.0 * lam, 2.0]
    assert advantages(actions, torch.zeros(4), lam).tolist() == pytest.approx(expected)
