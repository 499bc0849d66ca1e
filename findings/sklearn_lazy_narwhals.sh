#!/usr/bin/env bash
# Question: are all modules that scikit-learn needs loaded once it and pandas have been imported and a first model
# has been fitted to an array?
# One would think: yes; a later fit only computes.
# What happens: the first fit on a DataFrame imports about twenty modules of narwhals from disk. A process that may
# no longer open files at that point fails there, although fits on arrays work and a second DataFrame would, too.
# Versions: scikit-learn 1.9.1, narwhals 2.29.0, pandas 3.1.1.
# Why it matters: sandboxes, frozen applications and servers that import first and restrict themselves afterwards
# must fit once on a DataFrame before they do so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet scikit-learn==1.9.1 narwhals==2.29.0 pandas==3.1.1
cat > check.py <<'PY'
"""Fit on an array, forbid the opening of files, and fit on a DataFrame; `warm` fits on a DataFrame before."""
import sys

import pandas as pd
from sklearn.preprocessing import StandardScaler

frame = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
StandardScaler().fit(frame.to_numpy())
before = set(sys.modules)
if sys.argv[1] == "warm":
    StandardScaler().fit(frame)
    print("modules imported by the first fit on a DataFrame:", *sorted(set(sys.modules) - before))


def forbid(event, arguments):
    if event == "open":
        raise PermissionError(f"no files any more: {str(arguments[0]).split('site-packages/')[-1]}")


sys.addaudithook(forbid)
StandardScaler().fit(frame.to_numpy())
try:
    StandardScaler().fit(frame)
    result = "works"
except PermissionError as error:
    result = f"fails ({error})"
print(f"{sys.argv[1]}: after files are forbidden, fit(array) works, fit(DataFrame) {result}")
expected = {"cold": "fails (no files any more: narwhals/", "warm": "works"}[sys.argv[1]]
if not result.startswith(expected):
    sys.exit(f"CHANGED: fit(DataFrame) in a {sys.argv[1]} process {result}")
if sys.argv[1] == "warm" and not any(name.startswith("narwhals.") for name in set(sys.modules) - before):
    sys.exit("CHANGED: the first fit on a DataFrame imports nothing of narwhals")
PY
env/bin/pip list 2>/dev/null | grep -E '^(scikit-learn|narwhals|pandas) '
env/bin/python check.py warm
env/bin/python check.py cold
