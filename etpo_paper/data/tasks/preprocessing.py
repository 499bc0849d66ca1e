"""From a raw table to the rows that the paper trains on.

The paper takes its tables through the loader of CAAFE (arXiv 2305.03403), whose subsampling is random but fixed:

1. Each OpenML table is shuffled with seed 13 and cut to 10,000 rows.
2. After all ten tables were loaded, each of them in turn is shuffled again by *one shared generator*, which continues
   from the state that the last shuffle of step 1 left (that of jungle-chess with its 44,819 rows). The first
   `fraction * min(rows, 2000)` rows are kept. The rows of a table therefore depend on the number of rows of all ten
   tables, but on nothing else in the others.
3. The rows are split 75/25 with seed 0. The paper's code puts the two parts together again, the training part first.
4. Rows with missing values are dropped.

The four Kaggle tables keep their order: rows with missing values are dropped, the first 2000 of the others are kept,
and identifier columns are dropped. In two of the tables every value, numbers included, is replaced by its rank in the
column.
"""

from typing import TYPE_CHECKING

import numpy as np

from etpo_paper.data.tasks.registry import TASKS, TaskSpec

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS = 2000
LOADED_ROWS = 10_000  # step 1
SHUFFLE_SEED = 13  # step 1
SPLIT_SEED = 0  # step 3
TEST_SHARE = 0.25  # step 3


def openml_order(name: str) -> np.ndarray:
    """Which rows of a raw OpenML table the paper uses, in its order, before step 4 drops incomplete rows.

    Args:
        name: an OpenML task of the registry.

    Returns:
        int64 [rows]: positions in the raw table.
    """
    chain = [spec for spec in TASKS.values() if spec.kind == "openml"]
    spec = TASKS[name]
    first = np.arange(spec.raw_rows)
    np.random.RandomState(SHUFFLE_SEED).shuffle(first)
    first = first[:LOADED_ROWS]

    shared = np.random.RandomState(SHUFFLE_SEED)
    shared.shuffle(np.arange(chain[-1].raw_rows))
    for other in chain:
        second = shared.permutation(min(other.raw_rows, LOADED_ROWS))
        if other is spec:
            break
    order = first[second][: int(spec.fraction * min(len(first), MAX_ROWS))]

    split = np.random.RandomState(SPLIT_SEED).permutation(len(order))
    test_rows = int(np.ceil(TEST_SHARE * len(order)))
    return order[np.concatenate([split[test_rows:], split[:test_rows]])]


def openml_table(spec: TaskSpec, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Applies steps 1 to 4 to a raw OpenML table.

    Args:
        spec: the task; the table must have `spec.raw_rows` rows.
        x: float64 [raw rows, features]; categories are codes in the order of the ARFF header, missing values are NaN.
        y: int64 [raw rows].

    Returns:
        x and y as the paper uses them. The values are rounded to single precision, as in the paper's loader.
    """
    order = openml_order(spec.name)
    x, y = x[order].astype(np.float32).astype(np.float64), y[order]
    return complete_rows(x, y)


def complete_rows(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops the rows with a missing value."""
    complete = ~np.isnan(x).any(axis=1)
    return x[complete], y[complete]


def ranks(values: np.ndarray) -> np.ndarray:
    """The position of each value among the sorted distinct values, as scikit-learn's LabelEncoder returns it."""
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def kaggle_table(
    frame: "pd.DataFrame", target: str, drop: tuple[str, ...], coded: bool
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Preprocesses one of the four Kaggle tables, or the stand-in for one.

    Args:
        frame: the file as pandas reads it.
        target: the column to predict.
        drop: identifier columns.
        coded: whether every value is replaced by its rank in the column.

    Returns:
        x: float64 [rows, features].
        y: int64 [rows].
        columns: the feature names.

    Raises:
        KeyError: a column is missing.
        ValueError: a column holds text, and `coded` is False.
    """
    frame = frame.dropna().iloc[:MAX_ROWS]
    features = frame.drop(columns=[*drop, target])
    values = [features[name].to_numpy() for name in features.columns]
    if coded:
        values = [ranks(column) for column in values]
    x = np.column_stack([np.asarray(column, dtype=np.float64) for column in values])
    return x, ranks(frame[target].to_numpy()).astype(np.int64), tuple(map(str, features.columns))
