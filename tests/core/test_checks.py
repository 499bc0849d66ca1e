"""`etpo_core.checks`: what each check lets pass, and the one line it raises otherwise."""

import math

import pytest
import torch

from etpo_core import checks

INF, NAN = math.inf, math.nan
TWO, IDS = torch.zeros(2), torch.tensor([0, 3])


def test_wide():
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    assert [checks.wide(torch.zeros(1, dtype=d)).dtype for d in dtypes] == [torch.float32] * 3 + [torch.float64]


def test_what_passes():
    checks.floats("x", torch.zeros(2, 3, dtype=torch.bfloat16), (None, 3))
    checks.floats("x", torch.zeros(()), ())
    checks.integers("x", IDS, (2,), 0, 3)
    checks.integers("x", torch.zeros(0, dtype=torch.int8), (0,), 1, 1)
    checks.bools("x", torch.tensor([True]), (1,))
    checks.logits("x", torch.zeros(2, 1), (2, 1))
    checks.number("x", 0, 0.0, INF)
    checks.positive("x", 1e-300)
    checks.below_infinity("x", torch.tensor([0.0, -INF]))
    checks.explain_logits(x=torch.tensor([0.0, -INF]))


def test_finite_gives_the_values_that_are_read():
    half = torch.tensor([1.0, NAN], dtype=torch.bfloat16)
    kept = checks.finite("x", half, torch.tensor([True, False]))
    assert kept.tolist() == [1.0, 0.0] and kept.dtype == torch.float32


@pytest.mark.parametrize(
    ("check", "arguments", "line"),
    [
        (checks.shaped, ([0.0], (1,)), "x: got list, expected a tensor"),
        (checks.shaped, (TWO, (3,)), "x: shape (2,), expected [3]"),
        (checks.shaped, (TWO, (None, 2)), "x: shape (2,), expected [any, 2]"),
        (checks.shaped, (TWO, ()), "x: shape (2,), expected []"),
        (checks.floats, (IDS,), "x: shape (2,) of torch.int64, expected a floating dtype"),
        (checks.integers, (TWO, None, 0, 3), "x: shape (2,) of torch.float32, expected an integer dtype"),
        (checks.integers, (TWO.bool(), None, 0, 3), "x: shape (2,) of torch.bool, expected an integer dtype"),
        (checks.integers, (IDS, None, 1, 3), "x: shape (2,) holds 0 to 3, expected 1 to 3"),
        (checks.integers, (IDS, None, 0, 2), "x: shape (2,) holds 0 to 3, expected 0 to 2"),
        (checks.bools, (TWO, (2,)), "x: shape (2,) of torch.float32, expected torch.bool"),
        (checks.logits, (torch.zeros(()),), "x: shape (), expected [..., vocabulary of 1 or more]"),
        (checks.logits, (torch.zeros(2, 0),), "x: shape (2, 0), expected [..., vocabulary of 1 or more]"),
        (checks.number, (-1, 0.0, INF), "x: got -1, expected a finite number of at least 0"),
        (checks.number, (NAN, 0.0, 1.0), "x: got nan, expected a finite number between 0 and 1"),
        (checks.number, (INF, 0.0, INF), "x: got inf, expected a finite number of at least 0"),
        (checks.number, (True, 0.0, 1.0), "x: got True, expected a finite number between 0 and 1"),
        (checks.positive, (0.0,), "x: got 0.0, expected a finite number above 0"),
        (checks.positive, (INF,), "x: got inf, expected a finite number above 0"),
        (checks.positive, ("1",), "x: got '1', expected a finite number above 0"),
        (checks.finite, (torch.tensor([INF]),), "x: shape (1,) holds NaN or infinity, expected finite values"),
        (
            checks.below_infinity,
            (torch.tensor([NAN]),),
            "x: shape (1,) holds NaN or +inf, expected numbers or -inf (forbidden)",
        ),
        (
            lambda name, tensor: checks.explain_logits(**{name: tensor}),
            (torch.tensor([[0.0, 0.0], [-INF, -INF]]),),
            "x: shape (2, 2) has a row of -inf only, expected an allowed token in each",
        ),
    ],
)
def test_the_line(check, arguments, line):
    with pytest.raises(ValueError) as raised:
        check("x", *arguments)
    assert str(raised.value) == line
