import pytest
import torch

from etpo_core.bellman import kl_divergence
from etpo_core.head import dueling_terms, streamed
from etpo_core.losses import policy_loss, q_dueling


def _function(weight):
    def function(hidden, other, index):
        logits, fixed = hidden @ weight.T, other @ weight.T
        log_p = logits.log_softmax(-1)
        kl = (log_p.exp() * (log_p - fixed.log_softmax(-1))).sum(-1)
        return [kl, logits.gather(-1, index[:, None])[:, 0], fixed.logsumexp(-1)]

    return function


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_streamed_gives_values_and_gradients_of_the_whole(chunk):
    torch.manual_seed(0)
    weight = torch.randn(11, 5, dtype=torch.float64)
    hidden, other = torch.randn(2, 7, 5, dtype=torch.float64)
    index = torch.randint(0, 11, (7,))
    weights = torch.randn(2, 7, dtype=torch.float64)

    def total(outputs):
        return (weights[0] * outputs[0]).sum() + (weights[1] * outputs[1].square()).sum()

    naive = hidden.clone().requires_grad_()
    expected = _function(weight)(naive, other, index)
    total(expected).backward()
    leaf = hidden.clone().requires_grad_()
    outputs = streamed(_function(weight), leaf, other, index, chunk=chunk)
    total(outputs).backward()
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(leaf.grad, naive.grad)
    assert not outputs[2].requires_grad


def test_context_gets_no_gradient_and_nothing_is_kept_without_one():
    weight = torch.randn(11, 5)
    other = torch.randn(7, 5, requires_grad=True)
    outputs = streamed(_function(weight), torch.randn(7, 5), other, torch.zeros(7, dtype=torch.long))
    assert not any(o.requires_grad for o in outputs)


def test_no_position_is_an_error():
    with pytest.raises(ValueError, match="at least one position"):
        streamed(_function(torch.randn(3, 2)), torch.randn(0, 2), torch.randn(0, 2), torch.zeros(0))


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_dueling_terms_equal_the_pure_functions_with_their_gradients(chunk):
    torch.manual_seed(1)
    beta, weight = 0.3, torch.randn(13, 5, dtype=torch.float64)
    policy, reference, critic = torch.randn(3, 7, 5, dtype=torch.float64)
    tokens = torch.randint(0, 13, (7,))
    mix = torch.randn(3, 7, dtype=torch.float64)

    def leaves():
        return [h.clone().requires_grad_() for h in (policy, reference, critic)]

    a = leaves()
    z = [h @ weight.T for h in a]
    q = q_dueling(a[2].new_zeros(7), z[2], z[1], z[0], beta)
    expected = [
        policy_loss(z[0], z[1], q.detach(), beta),
        kl_divergence(z[0].detach(), z[1].detach()),
        z[0].detach().log_softmax(-1).gather(-1, tokens[:, None])[:, 0],
        q.gather(-1, tokens[:, None])[:, 0],
        (z[0].detach().softmax(-1) * q.square()).sum(-1),
    ]
    (mix[0] * expected[0] + mix[1] * expected[3].square() + mix[2] * expected[4]).sum().backward()

    b = leaves()
    terms = dueling_terms(*b, weight, tokens, beta, chunk=chunk)
    (mix[0] * terms[0] + mix[1] * terms[3].square() + mix[2] * terms[4]).sum().backward()
    for got, wanted in zip(terms, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(b[0].grad, a[0].grad)
    torch.testing.assert_close(b[2].grad, a[2].grad)
    assert b[1].grad is None


def test_dueling_terms_refuse_different_numbers_of_positions():
    h = torch.randn(3, 2)
    with pytest.raises(ValueError, match=r"\[3, 2, 3, 3\] positions"):
        dueling_terms(h, h[:2], h, torch.randn(4, 2), torch.zeros(3, dtype=torch.long), 0.1)
