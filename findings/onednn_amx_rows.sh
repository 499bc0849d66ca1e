#!/usr/bin/env bash
# Question: does the first row of x W^T in bfloat16 depend on how many rows x has?
# One would think: no, as measured on processors that multiply bfloat16 with AVX-512: any number of rows gives a row the
# same bits, with one thread or two. The instruction set changes the speed.
# What happens: with AMX (Sapphire Rapids and later Xeons, chosen by itself) it does. Few rows, up to about 32, and many,
# from some hundreds on, go to kernels that add in another order, and where the limits lie depends on the shape. Between
# 48 and 240 rows the bits are the same. With ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 the same machine gives a row the same
# bits for all numbers of rows.
# Versions: torch 2.13.0 (CPU), its oneDNN.
# Why it matters: "batch invariance" (a sequence sampled alone is the sequence sampled in a batch) holds on one server and
# not on the next, with the same packages. Padding to at least 48 rows and cutting above 240 brings it back.
# A processor without AMX shows the second half only, and the script says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
cat > check.py <<'PY'
"""Print which numbers of rows give the first rows other bits than 100 rows do, and compare with what is expected."""

import sys

import torch

torch.set_num_threads(1)
counts = [1, 2, 3, 5, 8, 16, 31, 48, 64, 100, 200, 240, 600, 1000]
for outputs, inputs in ((3072, 576), (576, 1536)):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(outputs, inputs, generator=generator).bfloat16()
    x = torch.randn(max(counts), inputs, generator=generator).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(w, 16)

    def product(rows):
        return torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")

    expected = product(x[:100])
    other = [n for n in counts if not torch.equal(product(x[:n])[:100], expected[:n])]
    print(f"[n, {inputs}] x [{inputs}, {outputs}]: other bits with n =", other)
    small, middle, large = (any(low <= n < high for n in other) for low, high in ((1, 48), (48, 241), (241, 10**6)))
    if (small, middle, large) != ((True, False, True) if sys.argv[1] == "amx" else (False, False, False)):
        sys.exit("CHANGED: with AMX few and many rows had other bits, and without it no number of rows")
PY
env/bin/pip list 2>/dev/null | grep -E '^(torch|numpy) '
if ! grep -q avx512_bf16 /proc/cpuinfo; then
  echo "this processor does not multiply bfloat16; nothing can be shown on it"
  exit 0
fi
if grep -q amx_bf16 /proc/cpuinfo; then
  echo "with AMX:"
  env/bin/python check.py amx
else
  echo "no AMX here: only the second half is shown"
fi
echo "with AVX-512 alone:"
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 env/bin/python check.py avx512
