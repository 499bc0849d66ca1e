#!/usr/bin/env bash
# Question: does a classifier that was fitted to a column of dates give the same answers for the same dates read in
# another way?
# One would think: yes, or an error; pandas says that the two columns are equal.
# What happens: trees, forests, nearest neighbours and StandardScaler take the column without a word, as the number of
# its units since 1970. With pandas 3 the unit depends on where the dates come from: microseconds for text, seconds for
# datetime.date, and nanoseconds as soon as one row of the text has nine digits behind the second. The answers are then
# those of other centuries. LogisticRegression is fitted to such a column, too, and fails at its first prediction.
# Versions: scikit-learn 1.9.1, pandas 3.1.1, numpy 2.4.6.
# Why it matters: a model that was fitted to a CSV file and is asked about a database's dates is right in training and
# no better than guessing in use, and no step of it reports anything.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet scikit-learn==1.9.1 pandas==3.1.1 numpy==2.4.6
export HOME=$folder
cat > check.py <<'PY'
"""Fit to dates of a CSV file, ask about equal dates of three sources."""
import io
import sys
import warnings

import pandas
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

warnings.simplefilter("error")  # so that nothing is said that this script does not show
days = pandas.date_range("2024-01-01", periods=200)
later = (days.month > 3).astype(int)


def column(values):
    return pandas.DataFrame({"day": values})


def csv(lines):
    return column(pandas.read_csv(io.StringIO("day\n" + "\n".join(lines) + "\n"), parse_dates=["day"])["day"])


text = csv([f"{day:%Y-%m-%d} 00:00:00" for day in days])
frames = {
    "the CSV file": text,
    "datetime.date": column(pandas.to_datetime([day.date() for day in days])),
    "a CSV file with nine digits": csv([f"{day:%Y-%m-%d} 00:00:00.000000000" for day in days]),
}
wrong = []
units = {name: str(frame["day"].dtype) for name, frame in frames.items()}
for name, frame in frames.items():
    print(f"{name}: {units[name]}, equal to the CSV file: {bool((frame['day'] == text['day']).all())}")
    if not (frame["day"] == text["day"]).all():
        wrong.append(f"the dates of {name} are not equal")
if sorted(units.values()) != ["datetime64[ns]", "datetime64[s]", "datetime64[us]"]:
    wrong.append(f"the units are {units}")
models = [DecisionTreeClassifier(), RandomForestClassifier(10, random_state=0), KNeighborsClassifier(),
          HistGradientBoostingClassifier(max_iter=20)]
for model in models:
    scores = [model.fit(text, later).score(frame, later) for frame in frames.values()]
    print(f"{type(model).__name__}: accuracy", *(f"{score:.2f}" for score in scores))
    if not (scores[0] > 0.95 and max(scores[1:]) < 0.6):
        wrong.append(f"{type(model).__name__} has the accuracies {scores}")
scaled = [float(StandardScaler().fit(text).transform(frame).mean()) for frame in frames.values()]
print("StandardScaler: mean", *(f"{value:.0f}" for value in scaled))
if not (abs(scaled[0]) < 1e-3 and min(map(abs, scaled[1:])) > 100):
    wrong.append(f"StandardScaler has the means {scaled}")
linear = LogisticRegression().fit(text, later)
try:
    linear.predict(text)
    wrong.append("LogisticRegression predicts")
except TypeError as error:
    print(f"LogisticRegression: fitted, and at the first prediction {type(error).__name__}")
if wrong:
    sys.exit("CHANGED: " + "; ".join(wrong))
PY
env/bin/pip list 2>/dev/null | grep -E '^(scikit-learn|pandas|numpy) '
env/bin/python check.py
