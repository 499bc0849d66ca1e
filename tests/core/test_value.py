"""The least-squares value against its definition, written out."""

import pytest
import torch

from etpo_core.value import LeastSquaresValue


def batches(count, rows=40, width=6):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, generator=generator)
    for _ in range(count):
        features = torch.randn(rows, width, generator=generator)
        yield features, features @ weight - 2.0 + 0.1 * torch.randn(rows, generator=generator)


def test_it_is_nothing_before_the_first_fit():
    value = LeastSquaresValue(0.9, 0.5)
    features, returns = next(batches(1))
    value.observe(features, returns)
    assert value(features).tolist() == [0.0] * 40


@pytest.mark.parametrize(("decay", "ridge"), [(1.0, 0.0), (0.5, 0.0), (0.7, 0.3)])
def test_it_is_the_weighted_ridge_regression_with_a_free_intercept(decay, ridge):
    value, seen = LeastSquaresValue(decay, ridge), list(batches(3))
    for features, returns in seen:
        value.observe(features[:15], returns[:15])
        value.observe(features[15:], returns[15:])  # in parts, as micro-batches come
        value.fit()
    x, y = (torch.cat([batch[i] for batch in seen]).double() for i in (0, 1))
    share = torch.cat([torch.full((40,), decay ** (2 - i), dtype=torch.float64) for i in range(3)])
    share = share / share.sum()
    penalty = ridge * (share[:, None] * x.square()).sum(0).mean()

    weight, intercept = (torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in (6, 1))
    loss = (share * (x @ weight + intercept - y).square()).sum() + penalty * weight.square().sum()
    with torch.no_grad():
        weight.copy_(value.weight[:-1])
        intercept.copy_(value.weight[-1:])
    loss = (share * (x @ weight + intercept - y).square()).sum() + penalty * weight.square().sum()
    for slope in torch.autograd.grad(loss, (weight, intercept)):  # a convex loss: where it is flat is its minimum
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-11)  # 2 . 1e-12 . weight is in it
    torch.testing.assert_close(value(seen[0][0]), (seen[0][0].double() @ weight + intercept).float())


def test_a_ridge_shrinks_the_slopes_and_not_the_level():
    features, returns = next(batches(1))
    value = LeastSquaresValue(1.0, 1e6)
    value.observe(features, returns)
    value.fit()
    torch.testing.assert_close(value(features), returns.mean().expand(40), rtol=1e-3, atol=1e-3)


def test_features_that_never_vary_are_no_trouble():
    value = LeastSquaresValue(1.0, 0.0)
    value.observe(torch.zeros(4, 3), torch.full((4,), 0.7))
    value.fit()
    assert value(torch.zeros(2, 3)).tolist() == pytest.approx([0.7] * 2)


def test_its_state_goes_on_where_it_was():
    one, seen = LeastSquaresValue(0.8, 0.1), list(batches(2))
    one.observe(*seen[0])
    one.fit()
    two = LeastSquaresValue(0.8, 0.1)
    two.set_state(one.get_state())
    for value in (one, two):
        value.observe(*seen[1])
        value.fit()
    assert torch.equal(one(seen[0][0]), two(seen[0][0]))
