#!/usr/bin/env bash
# Question: does OneHotEncoder, fitted to a pandas 3 text column with missing values, know a missing value again?
# One would think: yes, however the missing value is written.
# What happens: in a DataFrame made from ["x", None] the column is of type str and its missing value is NaN, so NaN
# is the category. The same rows as an object column or a NumPy array keep None, which is another category: an error
# by default, and a row of zeros with handle_unknown="ignore". With pandas 2 the same code knew None.
# Versions: scikit-learn 1.9.1 with pandas 3.1.1; the same with pandas 2.3.3 for comparison.
# Why it matters: a model fitted to a DataFrame predicts from records (lists, JSON, arrays) as if the column were
# absent, and nothing says so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
cat > check.py <<'PY'
"""Fit to a DataFrame with a missing text, and encode the missing text of an object array."""
import sys
import warnings

import numpy as np
import pandas as pd
import sklearn
from sklearn.preprocessing import OneHotEncoder

frame = pd.DataFrame({"colour": ["x", "y", None]})
warnings.simplefilter("ignore")  # "X does not have valid feature names"
encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(frame)
row = encoder.transform(np.array([[None]], dtype=object))[0].tolist()
own = encoder.transform(frame.iloc[[2]].to_numpy())[0].tolist()
print(f"pandas {pd.__version__}, scikit-learn {sklearn.__version__}: column type {frame.colour.dtype}")
print(f"    categories {encoder.categories_[0].tolist()}, its own missing value {own}, None {row}")
try:
    OneHotEncoder().fit(frame).transform(np.array([[None]], dtype=object))
    default = "works"
except ValueError as error:
    default = f"ValueError: {error}"
print(f"    with the default handle_unknown: {default}")
expected = [0.0, 0.0, 0.0] if sys.argv[1] == "3" else [0.0, 0.0, 1.0]
if own != [0.0, 0.0, 1.0] or row != expected:
    sys.exit(f"CHANGED: with pandas {pd.__version__} the row of None is {row}, not {expected}")
if default.startswith("ValueError: Found unknown categories [None]") != (sys.argv[1] == "3"):
    sys.exit(f"CHANGED: with pandas {pd.__version__} and the default handle_unknown: {default}")
PY
env/bin/pip install --quiet scikit-learn==1.9.1 pandas==3.1.1
env/bin/python check.py 3
env/bin/pip install --quiet pandas==2.3.3
env/bin/python check.py 2
