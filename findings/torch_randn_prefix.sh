#!/usr/bin/env bash
# Question: with one seed, are the first numbers of torch.randn(n) the same for every n?
# One would think: yes, as for torch.rand and for NumPy's generators: a longer tensor continues the shorter one.
# What happens (on the CPU): no. Below 16 values another algorithm is used, so randn(15) and randn(16) share nothing.
# From 16 on, the numbers are made in blocks of 16, and the last block is drawn anew when n is not a multiple of 16:
# randn(32) and randn(33) agree in 17 values, and differ in the last 15 of the shorter one.
# Versions: torch 2.13.0, numpy 2.4.6.
# Why it matters: one more class, token or row changes the initial weights of the old ones, so two sizes of a model
# with "the same seed" do not start from the same numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
cat > check.py <<'PY'
"""Count how many of the first n numbers stay when one more is asked for."""
import sys

import numpy as np
import torch


def kept(draw, size):
    """Return how many of `size` numbers are the same when size + 1 are drawn with the same seed."""
    torch.manual_seed(0)
    shorter = draw(size)
    torch.manual_seed(0)
    return int((shorter == draw(size + 1)[:size]).sum())


def numpy_normal(size):
    return torch.from_numpy(np.random.default_rng(0).standard_normal(size))


wrong = []
for name, draw, expected in (
    ("torch.randn", torch.randn, {14: 14, 15: 0, 16: 1, 32: 17, 1024: 1009}),
    ("torch.rand", torch.rand, {14: 14, 15: 15, 16: 16, 32: 32, 1024: 1024}),
    ("numpy standard_normal", numpy_normal, {14: 14, 15: 15, 16: 16, 32: 32, 1024: 1024}),
):
    seen = {size: kept(draw, size) for size in expected}
    print(f"{name}: " + ", ".join(f"{count} of {size} stay" for size, count in seen.items()))
    if seen != expected:
        wrong.append(f"{name}: {seen}, not {expected}")
if wrong:
    sys.exit("CHANGED: " + "; ".join(wrong))
PY
env/bin/pip list 2>/dev/null | grep -E '^(torch|numpy) '
env/bin/python check.py
