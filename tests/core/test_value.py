"""The least-squares value against its definition, written out."""

import math

import pytest
import torch

from etpo_core.interfaces import Alone
from etpo_core.value import LeastSquaresValue

INF, NAN = math.inf, math.nan
ALONE = Alone()


def batches(count, rows=40, width=6):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, generator=generator)
    for _ in range(count):
        features = torch.randn(rows, width, generator=generator)
        yield features, features @ weight - 2.0 + 0.1 * torch.randn(rows, generator=generator)


def test_it_is_zero_before_the_first_fit():
    value = LeastSquaresValue(0.9, 0.5)
    features, returns = next(batches(1))
    value.observe(features, returns)
    assert not value.fitted and value(features).tolist() == [0.0] * 40


@pytest.mark.parametrize(("decay", "ridge"), [(1.0, 0.0), (0.5, 0.0), (0.7, 0.3)])
def test_it_is_the_weighted_ridge_regression_with_a_free_intercept(decay, ridge):
    value, seen = LeastSquaresValue(decay, ridge), list(batches(3))
    for features, returns in seen:
        value.observe(features[:15], returns[:15])
        value.observe(features[15:], returns[15:])  # in parts, as micro-batches come
        value.fit(ALONE)
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
        torch.testing.assert_close(
            slope, torch.zeros_like(slope), rtol=0, atol=1e-11
        )  # the fit adds 2 · 1e-12 · weight
    torch.testing.assert_close(value(seen[0][0]), (seen[0][0].double() @ weight + intercept).float())


def test_a_ridge_shrinks_the_slopes_and_not_the_level():
    features, returns = next(batches(1))
    value = LeastSquaresValue(1.0, 1e6)
    value.observe(features, returns)
    value.fit(ALONE)
    torch.testing.assert_close(value(features), returns.mean().expand(40), rtol=1e-3, atol=1e-3)


def test_features_that_never_vary_are_no_trouble():
    value = LeastSquaresValue(1.0, 0.0)
    value.observe(torch.zeros(4, 3), torch.full((4,), 0.7))
    value.fit(ALONE)
    assert value(torch.zeros(2, 3)).tolist() == pytest.approx([0.7] * 2)


def test_its_state_goes_on_where_it_was():
    one, seen = LeastSquaresValue(0.8, 0.1), list(batches(2))
    one.observe(*seen[0])
    one.fit(ALONE)
    two = LeastSquaresValue(0.8, 0.1)
    two.set_state(one.get_state())
    for value in (one, two):
        value.observe(*seen[1])
        value.fit(ALONE)
    assert torch.equal(one(seen[0][0]), two(seen[0][0]))


def test_the_sums_of_all_processes_are_fitted():
    """Two processes that share a batch, each with a `Reducer` that adds what the other observed."""
    features, returns = next(batches(1))
    whole, part, other = (LeastSquaresValue(0.8, 0.1) for _ in range(3))
    whole.observe(features, returns)
    part.observe(features[:15], returns[:15])
    other.observe(features[15:], returns[15:])

    class Both(Alone):
        def summed(self, values):
            return values + other._new

    whole.fit(ALONE)
    part.fit(Both())
    torch.testing.assert_close(part.weight, whole.weight)


@pytest.mark.parametrize(
    ("features", "returns", "words"),
    [
        (torch.zeros(2, 3), torch.tensor([0.0, NAN]), r"returns: shape \(2,\) holds NaN or infinity"),
        (torch.zeros(2, 3), torch.tensor([-INF, 0.0]), r"returns: shape \(2,\) holds NaN or infinity"),
        (torch.full((2, 3), NAN), torch.zeros(2), r"features: shape \(2, 3\) holds NaN or infinity"),
        (torch.full((2, 3), INF), torch.zeros(2), r"features: shape \(2, 3\) holds NaN or infinity"),
        (torch.zeros(2, 3), torch.zeros(3), r"returns: shape \(3,\), expected \[2\]"),
        (torch.zeros(2, 3), torch.zeros(2, 1), r"returns: shape \(2, 1\), expected \[2\]"),
        (torch.zeros(2, 3), torch.zeros(2).long(), "returns: .* expected a floating dtype"),
        (torch.zeros(2), torch.zeros(2), r"features: shape \(2,\), expected \[any, 3\]"),
        (torch.zeros(2, 4), torch.zeros(2), r"features: shape \(2, 4\), expected \[any, 3\]"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(features, returns, words):
    value = LeastSquaresValue(1.0, 0.1)
    value.observe(torch.ones(2, 3), torch.ones(2))
    before = value._new.clone()
    with pytest.raises(ValueError, match=words):
        value.observe(features, returns)
    assert torch.equal(value._new, before)
    value.fit(ALONE)
    with pytest.raises(ValueError, match=words):
        value.observe(features, returns)


def test_a_fit_needs_something_observed():
    value = LeastSquaresValue(1.0, 0.1)
    with pytest.raises(RuntimeError, match="fit: nothing was observed"):
        value.fit(ALONE)
    value.observe(torch.zeros(0, 3), torch.zeros(0))  # no position at all
    with pytest.raises(RuntimeError, match="fit: nothing was observed"):
        value.fit(ALONE)
    value.observe(torch.ones(2, 3), torch.ones(2))
    value.fit(ALONE)
    with pytest.raises(RuntimeError, match="fit: nothing was observed since the last fit"):
        value.fit(ALONE)
