#!/usr/bin/env bash
# Question: do the two common Python readers of ARFF read the headers that Weka's own reader takes?
# One would think: yes, or at least that both refuse the same ones. (Weka splits at any white space, takes `{` as a
# token of its own, `%` as a comment anywhere, and reads over what follows a numeric type.)
# What happens: liac-arff, which openml and scikit-learn's parser "liac-arff" build on, refuses a comment behind a
# type, a range behind `integer`, a tab after `@attribute` and a tab between values; scipy reads all four. Both
# refuse `class{a,b}` without a blank. For a missing nominal value (`?`) liac-arff gives None, scipy the text b'?'.
# Versions: liac-arff 2.5.0, scipy 1.17.1.
# Why it matters: a public data set may open in one reader alone, and the missing values depend on which one it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet liac-arff==2.5.0 scipy==1.17.1
cat > check.py <<'PY'
"""Read small ARFF files with both readers."""
import io
import sys

import arff
from scipy.io import arff as scipy_arff

PLAIN, NOMINAL = "@attribute x numeric\n", "@attribute class {a,b}\n"
CASES = [  # name, header, data, expected of liac-arff, expected of scipy (None: refused)
    ("plain", PLAIN + NOMINAL, "1,a", [1.0, "a"], (1.0, b"a")),
    ("no blank before {", PLAIN + "@attribute class{a,b}\n", "1,a", None, None),
    ("range", "@attribute x integer [1,10]\n" + NOMINAL, "1,a", None, (1.0, b"a")),
    ("comment behind a type", "@attribute x numeric % metres\n" + NOMINAL, "1,a", None, (1.0, b"a")),
    ("tab after @attribute", "@attribute\tx\tnumeric\n" + NOMINAL, "1,a", None, (1.0, b"a")),
    ("tab between values", PLAIN + NOMINAL, "1\ta", None, (1.0, b"a")),
    ("missing nominal value", PLAIN + NOMINAL, "1,?", [1.0, None], (1.0, b"?")),
]


def outcome(read):
    """Return what the reader gives, and a line about it."""
    try:
        row = read()
    except Exception as error:
        return None, f"refused: {type(error).__name__}: {error}"
    return row, str(row)


wrong = []
for name, header, data, liac, scipy in CASES:
    text = f"@relation r\n{header}@data\n{data}\n"
    print(name)
    for reader, read, expected in (
        ("liac-arff", lambda text=text: arff.loads(text)["data"][0], liac),
        ("scipy", lambda text=text: scipy_arff.loadarff(io.StringIO(text))[0].tolist()[0], scipy),
    ):
        row, line = outcome(read)
        print(f"    {reader}: {line}")
        if row != expected:
            wrong.append(f"{reader}, {name}: {line}")
if wrong:
    sys.exit("CHANGED: " + "; ".join(wrong))
PY
env/bin/pip list 2>/dev/null | grep -E '^(liac-arff|scipy) '
env/bin/python check.py
