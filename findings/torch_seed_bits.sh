#!/usr/bin/env bash
# Question: do the seeds 1 and 2**32 + 1 give torch's generator of the CPU different streams?
# One would think: yes; manual_seed takes 64 bits, and initial_seed() returns the two as they were given.
# What happens: only the lower 32 bits count. (run << 32) + 1 is the stream of 1 for every run, and -1 is that of
# 2**32 - 1. numpy's default_rng uses all bits.
# Versions: torch 2.13.0, numpy 2.4.6.
# Why it matters: seeds that are put together from two numbers by shifting one of them make runs that are meant to be
# independent share their weights and noise, and averages over such seeds look steadier than they are.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
export HOME=$folder
cat > check.py <<'PY'
"""Compare the streams of pairs of seeds."""
import sys

import numpy
import torch


def of_torch(seed):
    return torch.rand(1000, generator=torch.Generator().manual_seed(seed)).tolist()


def of_torch_globally(seed):
    torch.manual_seed(seed)
    return torch.randn(1000).tolist()


def of_numpy(seed):
    return numpy.random.default_rng(seed).random(1000).tolist()


wrong = []
pairs = [(1, (1 << 32) + 1), (1, (7 << 32) + 1), (-1, (1 << 32) - 1), (1, 2)]
for first, second in pairs:
    for stream, lower_bits_only in ((of_torch, True), (of_torch_globally, True), (of_numpy, False)):
        if stream is of_numpy and first < 0:
            continue  # numpy refuses a negative seed
        expected = lower_bits_only and first % 2**32 == second % 2**32
        same = stream(first) == stream(second)
        print(f"{stream.__name__}: seeds {first} and {second}: {'the same' if same else 'different'} numbers")
        if same != expected:
            wrong.append(f"{stream.__name__} of {first} and {second} should be {'equal' if expected else 'different'}")
seeds = [torch.Generator().manual_seed(seed).initial_seed() for seed in (1, (1 << 32) + 1)]
print("initial_seed():", *seeds)
if wrong:
    sys.exit("CHANGED: " + "; ".join(wrong))
PY
env/bin/pip list 2>/dev/null | grep -E '^(torch|numpy) '
env/bin/python check.py
