"""From a raw table to the rows that the paper trains on.

The paper takes its tables through the loader of CAAFE (arXiv 2305.03403), whose subsampling is random but fixed:

1. An OpenML table is shuffled under seed 13 and cut to 10,000 rows.
2. Once all ten are loaded, each in turn is shuffled again by the *same global generator*, in whatever state the last
   shuffle of step 1 (jungle-chess, 44,819 rows) left it, and the first `fraction * min(rows, 2000)` rows are kept. So a
   table's rows depend on the lengths of all ten tables, but on nothing else of the others.
3. The rows are split 75/25 under seed 0 and, in the paper's code, put together again: training part first.
4. Rows with missing values go.

The four Kaggle tables keep their order: rows with missing values go, the first 2000 stay, identifiers are dropped,
and in two of them every column, numbers too, is replaced by the rank of its value.
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
    """Which raw rows of an OpenML table the paper uses, in its order, before rows with missing values go.

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
    """Steps 1 to 4 for one raw OpenML table.

    Args:
        spec: the task; its `raw_rows` must be the number of rows given.
        x: float64 [raw rows, features], categories as codes in the order of the ARFF header, NaN where missing.
        y: int64 [raw rows].

    Returns:
        x and y as the paper uses them. Values pass through single precision, as in the paper's loader.
    """
    order = openml_order(spec.name)
    x, y = x[order].astype(np.float32).astype(np.float64), y[order]
    return complete_rows(x, y)


def complete_rows(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows without a missing value."""
    complete = ~np.isnan(x).any(axis=1)
    return x[complete], y[complete]


def ranks(values: np.ndarray) -> np.ndarray:
    """Each value's place among the sorted distinct values (what scikit-learn's LabelEncoder gives)."""
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def kaggle_table(
    frame: "pd.DataFrame", target: str, drop: tuple[str, ...], coded: bool
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The four Kaggle tables, and the stand-ins for them.

    Args:
        frame: the file as pandas reads it.
        target: the column to predict.
        drop: identifier columns.
        coded: whether every column becomes ranks.

    Returns:
        x float64 [rows, features], y int64 [rows], feature names.

    Raises:
        ValueError: a column that is not coded holds text.
    """
    frame = frame.dropna().iloc[:MAX_ROWS]
    features = frame.drop(columns=[*drop, target])
    values = [features[name].to_numpy() for name in features.columns]
    if coded:
        values = [ranks(column) for column in values]
    x = np.column_stack([np.asarray(column, dtype=np.float64) for column in values])
    return x, ranks(frame[target].to_numpy()).astype(np.int64), tuple(map(str, features.columns))
