#!/usr/bin/env bash
# Question: do equal arguments have the same joblib.hash, and so hit the cache of joblib.Memory?
# One would think: yes, for plain lists, tuples and numbers.
# What happens: the hash also depends on which parts are one object. [t, t] and [(1, 2), (1, 2)] are equal, but if the
# second has two separate tuples it has another hash, and a cached function runs again. Texts and floats are exempt.
# Versions: joblib 1.6.0.
# Why it matters: the same settings, once built in Python and once read from a file, miss the cache, and long
# computations run twice without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet joblib==1.6.0
cat > check.py <<'PY'
"""Call a cached function with equal arguments, one of them read back from JSON."""
import json
import sys

import joblib

calls = []


def train(grid):
    calls.append(grid)


cached = joblib.Memory("cache", verbose=0).cache(train)
layer = [64, 64]
built = {"encoder": layer, "decoder": layer}
read = json.loads(json.dumps(built))
for arguments in (built, read, built, read):
    cached(arguments)
print(f"equal: {built == read}, hashes {joblib.hash(built)} and {joblib.hash(read)}")
print(f"four calls with equal arguments ran the function {len(calls)} times")
text, number = "x" * 50, 1.5
same = [
    joblib.hash([text, text]) == joblib.hash([text, "".join(["x"] * 50)]),
    joblib.hash([number, number]) == joblib.hash([number, float("1.5")]),
]
print(f"one text or two equal ones: same hash {same[0]}; floats: {same[1]}")
if built != read or joblib.hash(built) == joblib.hash(read) or len(calls) != 2:
    sys.exit(f"CHANGED: the function ran {len(calls)} times, not 2")
if same != [True, True]:
    sys.exit("CHANGED: the hash of texts or floats depends on identity as well")
PY
env/bin/pip list 2>/dev/null | grep -E '^joblib '
env/bin/python check.py
