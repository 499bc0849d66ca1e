import pytest
import torch

from etpo_core.head import streamed


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
