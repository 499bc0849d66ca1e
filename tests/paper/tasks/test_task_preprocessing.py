"""The paper's subsampling, against a literal replay with pandas and scikit-learn, and the Kaggle rules by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelEncoder

from etpo_paper.data.tasks import TASKS
from etpo_paper.data.tasks.generators import GENERATORS
from etpo_paper.data.tasks.preprocessing import kaggle_table, openml_order, openml_table, ranks

OPENML = [spec for spec in TASKS.values() if spec.kind == "openml"]


def test_order_is_the_literal_chain():
    state = np.random.get_state()
    try:
        first = {}
        for spec in OPENML:
            order = np.arange(spec.raw_rows)
            np.random.seed(13)
            np.random.shuffle(order)
            first[spec.name] = order[:10_000]
        for spec in OPENML:
            kept = pd.DataFrame(first[spec.name]).sample(frac=1).values[:, 0]
            kept = kept[: int(spec.fraction * min(len(kept), 2000))]
            train, test = train_test_split(kept, test_size=0.25, random_state=0)
            assert openml_order(spec.name).tolist() == [*train, *test]
    finally:
        np.random.set_state(state)


@pytest.mark.parametrize("spec", OPENML, ids=lambda s: s.name)
def test_order_has_distinct_rows_of_the_right_number(spec):
    order = openml_order(spec.name)
    dropped = 95 if spec.name == "eucalyptus" else 0  # its rows with missing values
    assert len(order) == spec.rows + dropped == len(set(order.tolist()))
    assert 0 <= order.min() and order.max() < spec.raw_rows


def test_first_rows_of_balance_scale():
    x, y, _ = GENERATORS["balance-scale"]()
    x, y = openml_table(TASKS["balance-scale"], x, y)
    assert x.shape == (125, 4)
    torque = x[:, 0] * x[:, 1] - x[:, 2] * x[:, 3]
    assert (np.sign(torque) == 1 - y).all()


def test_openml_table_drops_missing_and_rounds_to_single_precision():
    spec = TASKS["diabetes"]
    x = np.full((spec.raw_rows, 2), 0.1)
    x[openml_order("diabetes")[[1, 3]], 1] = np.nan
    y = np.arange(spec.raw_rows)
    got, labels = openml_table(spec, x, y)
    assert len(got) == spec.raw_rows - 2
    assert (got == float(np.float32(0.1))).all() and got.dtype == np.float64
    assert labels[:2].tolist() == openml_order("diabetes")[[0, 2]].tolist()


def test_ranks_are_label_encoders():
    for values in (["b", "a", "c", "a"], [2.5, -1.0, 2.5], [True, False, True], ["True", "False"]):
        values = np.array(values, dtype=object)
        assert ranks(values).tolist() == LabelEncoder().fit_transform(values).tolist()


def kaggle_frame():
    return pd.DataFrame(
        {
            "id": ["a1", "a2", "a3", "a4"],
            "size": [10.5, 2.0, np.nan, 7.0],
            "colour": ["red", "blue", "red", "red"],
            "hit": [True, False, True, False],
        }
    )


def test_kaggle_table_coded():
    x, y, columns = kaggle_table(kaggle_frame(), "hit", ("id",), coded=True)
    assert x.tolist() == [[2, 1], [0, 0], [1, 1]] and x.dtype == np.float64
    assert y.tolist() == [1, 0, 0] and y.dtype == np.int64
    assert columns == ("size", "colour")


def test_kaggle_table_not_coded():
    x, y, _ = kaggle_table(kaggle_frame(), "hit", ("id", "colour"), coded=False)
    assert x.tolist() == [[10.5], [2.0], [7.0]]
    with pytest.raises(ValueError, match="red"):
        kaggle_table(kaggle_frame(), "hit", ("id",), coded=False)


def test_kaggle_table_keeps_the_first_2000_complete_rows():
    frame = pd.DataFrame({"a": np.arange(2500.0), "y": np.arange(2500) % 2})
    frame.loc[:9, "a"] = np.nan
    x, y, _ = kaggle_table(frame, "y", (), coded=False)
    assert x[:, 0].tolist() == list(range(10, 2010)) and len(y) == 2000
