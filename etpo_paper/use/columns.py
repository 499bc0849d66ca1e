"""From the columns of a table as people have them to numbers, by a plan with an entry for each column.

This file is also part of every `best_program.py`, word for word, so that the program takes the original columns: it
needs pandas and scikit-learn, and nothing of this package. An entry of a plan has a `name` and a `kind`:

- number: floats, a missing one becomes the median; where they are text, `decimal` is the sign before the decimals and
  `unit` what stands behind them.
- date: text of the form `format` gives days since 1970, the month and the weekday, a missing one their medians.
- category: a column for each of the most frequent values, one for all others; "missing" is a value as well.
- words: free text gives the tf-idf weights of its most frequent words.

What is learnt of the table for this (medians, values, words) is learnt from its feature columns, without the target.
"""

import re
import warnings

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

MOST_VALUES = 20  # columns that one category may give; the last stands for all values that have none of their own
MOST_COLUMNS = 400  # that all categories together may give; each keeps its most frequent value in any case
MOST_WORDS = 20  # columns that a free text gives
NO_VALUE = {"", "?", "-", "--", ".", "na", "n/a", "#n/a", "nan", "nat", "none", "null", "<na>"}


def text_of(value: object) -> str:
    """A value as text, the same whether it was read as text, as a number or as a truth value; missing ones are ""."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    text = " ".join(str(value).split())
    if (lower := text.lower()) in NO_VALUE:
        return ""
    if lower in ("true", "false"):
        return text.capitalize()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text) if text.endswith(".0") else text


def texts(series: pd.Series) -> pd.Series:
    """A column as text, see `text_of`."""
    return pd.Series([text_of(value) for value in series.tolist()], index=series.index, dtype=object)


def numbers(series: pd.Series, decimal: str = ".", unit: str = "") -> pd.Series:
    """A column as floats, without a unit and signs of currency, percent and thousands; what is no number is NaN."""
    if series.dtype.kind not in "biuf":
        found = pd.to_numeric(series, errors="coerce") if decimal == "." else pd.Series(np.nan, index=series.index)
        rest = found.isna()
        if rest.any():
            bare = texts(series[rest]).str.removesuffix(unit).str.replace(r"[\s'€$£¥%]", "", regex=True)
            bare = bare.str.replace("." if decimal == "," else ",", "", regex=False)
            more = pd.to_numeric(bare.str.replace(decimal, ".", regex=False), errors="coerce")
            found = found.astype("float64").mask(rest, more.reindex(series.index))
        series = found
    values = series.astype("float64")
    return values.where(np.isfinite(values))


def dates(series: pd.Series, form: str) -> pd.Series:
    """A column as points in time; what is no date of the form becomes NaT."""
    if series.dtype.kind == "M":
        return series.dt.tz_localize(None) if series.dt.tz is not None else series
    found = pd.to_datetime(texts(series).replace("", None), format=form, errors="coerce", utc=True)
    return found.dt.tz_localize(None)


def prepared(frame: pd.DataFrame, plan: list) -> pd.DataFrame:
    """The columns of a plan as floats or text, under names that say what becomes of them.

    Raises:
        ValueError: the frame lacks a column.
    """
    missing = [entry["name"] for entry in plan if entry["name"] not in frame.columns]
    if missing:
        raise ValueError(f"the table lacks the columns {missing}")
    made: dict = {}
    for number, entry in enumerate(plan):
        name, kind = entry["name"], entry["kind"]
        series = frame[name] if isinstance(frame[name], pd.Series) else frame[name].iloc[:, 0]
        if kind == "number":
            made[f"number {number} {name}"] = numbers(series, entry["decimal"], entry["unit"])
        elif kind == "date":
            moment = dates(series, entry["format"])
            made[f"number {number} {name} day"] = (moment - pd.Timestamp(0)) / pd.Timedelta(days=1)
            made[f"number {number} {name} month"] = moment.dt.month.astype("float64")
            made[f"number {number} {name} weekday"] = moment.dt.day_of_week.astype("float64")
        else:
            made[f"{kind} {number} {name}"] = texts(series)
    return pd.DataFrame(made, index=frame.index)


class Encoder:
    """Numbers for a scikit-learn classifier from the columns of a plan."""

    def __init__(self, plan: list):
        self.plan = plan
        categories = sum(entry["kind"] == "category" for entry in plan)
        most = max(2, min(MOST_VALUES, MOST_COLUMNS // max(1, categories)))
        one_hot = OneHotEncoder(
            drop="if_binary", handle_unknown="infrequent_if_exist", max_categories=most, sparse_output=False
        )
        fill = SimpleImputer(strategy="median", keep_empty_features=True)
        self._one_hot, self._fill = one_hot, fill

    def fit_transform(self, frame: pd.DataFrame) -> np.ndarray:
        """Learns medians, frequent values and frequent words; returns what `transform` does."""
        table = prepared(frame, self.plan)
        by_kind = {kind: [c for c in table.columns if c.startswith(kind)] for kind in ("number", "category", "words")}
        parts: list = [("number", self._fill, by_kind["number"]), ("category", self._one_hot, by_kind["category"])]
        for column in by_kind["words"]:
            parts.append((column, TfidfVectorizer(max_features=MOST_WORDS), column))
        self._parts = ColumnTransformer([part for part in parts if part[2]], sparse_threshold=0)
        return np.asarray(self._parts.fit_transform(table), dtype=np.float64)

    def transform(self, frame: pd.DataFrame) -> np.ndarray:
        """float64 [rows, features], all finite; values that were not seen are as the rare ones."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that were not seen
            return np.asarray(self._parts.transform(prepared(frame, self.plan)), dtype=np.float64)


class Classifier:
    """A classifier of rows with the original columns.

    Args:
        frame: the training rows, the target among the columns. Rows of other classes than `labels`, or of none, are
            left out.
        target: the column to predict.
        labels: the classes; letters' case makes no difference.
        plan: see above.
        build_model: takes x float64 [rows, features] and y int64 [rows] and returns a fitted classifier.
    """

    def __init__(self, frame: pd.DataFrame, target: str, labels: list, plan: list, build_model):  # type: ignore[no-untyped-def]
        if target not in frame.columns:
            raise ValueError(f"the table lacks the column {target!r}, the target")
        codes = {text_of(label).lower(): code for code, label in enumerate(labels)}
        found = texts(frame[target]).str.lower().map(codes)
        frame, y = frame[found.notna()], found.dropna().to_numpy(dtype=np.int64)
        if len(np.unique(y)) < 2:
            raise ValueError(f"the column {target!r} holds fewer than two of the classes {labels}")
        self.classes_ = np.array(labels)
        self.encoder = Encoder(plan)
        x = self.encoder.fit_transform(frame)
        before = np.random.get_state()
        np.random.seed(0)  # for what the program leaves unseeded
        try:
            self.model = build_model(x, y)
        finally:
            np.random.set_state(before)
        known = getattr(self.model, "classes_", np.unique(y))
        numeric = all(str(label).replace(".0", "").isdigit() for label in known)
        self._known = np.asarray(known, dtype=float).astype(int) if numeric else np.unique(y)

    def predict_proba(self, frame: pd.DataFrame) -> np.ndarray:
        """The probability of each class of `classes_`, float64 [rows, classes]."""
        table = np.zeros((len(frame), len(self.classes_)))
        if len(frame):
            table[:, self._known] = np.asarray(self.model.predict_proba(self.encoder.transform(frame)))
        return table

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        """The likeliest class of each row."""
        return self.classes_[self.predict_proba(frame).argmax(axis=1)]
