"""Splits and scores against scikit-learn and against cases worked out by hand."""

import math

import numpy as np
import pytest
from programs import INNOCENT
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB

from etpo_core.errors import UserError
from etpo_core.sandbox import Limits, SandboxPool, Status
from etpo_core.sandbox.scoring import BadTable, area_under_curve, make_split, table_of


def test_pool_equals_the_protocol_done_by_hand(pool, table):
    x, y = table
    expected = []
    for seed in range(5):
        a, b = train_test_split(np.arange(len(y)), test_size=0.5, random_state=seed, shuffle=True)
        expected.append(roc_auc_score(y[b], GaussianNB().fit(x[a], y[a]).predict_proba(x[b])[:, 1]))
    outcome = pool.score(INNOCENT, x, y, range(5))
    assert outcome.scores == pytest.approx(expected, abs=5.1e-7)  # scores are rounded to 6 decimals
    assert outcome.score == pytest.approx(np.mean(expected), abs=1.1e-6)
    assert outcome.cpu_s > 0 and outcome.wall_s > 0 and outcome.tier is pool.tier


def test_three_classes_equal_scikit_learn(pool):
    rng = np.random.default_rng(3)
    y = rng.integers(0, 3, 150) * 2 + 1  # labels 1, 3, 5
    x = rng.normal(size=(150, 3)) + 0.3 * y[:, None]
    a, b = train_test_split(np.arange(150), test_size=0.5, random_state=7, shuffle=True)
    table = GaussianNB().fit(x[a], y[a]).predict_proba(x[b])
    expected = roc_auc_score(y[b], table, multi_class="ovo", average="macro")
    assert pool.score(INNOCENT, x, y, [7]).score == pytest.approx(expected, abs=5.1e-7)


def test_a_class_missing_from_training_gets_probability_zero(pool):
    rng = np.random.default_rng(4)
    y = np.array([0, 1] * 30 + [2])
    x = rng.normal(size=(61, 2)) + y[:, None]
    seed = next(s for s in range(50) if 2 not in make_split(x, y, s).y_train)
    split = make_split(x, y, seed)
    known = GaussianNB().fit(split.x_train, split.y_train).predict_proba(split.x_test)
    expected = roc_auc_score(split.y_test, np.c_[known, np.zeros(len(known))], multi_class="ovo")
    assert pool.score(INNOCENT, x, y, [seed]).score == pytest.approx(expected, abs=5.1e-7)


def test_what_a_class_missing_from_training_leaves_to_earn():
    """The most is 5/6 of 3 classes: pair 0, 1 earns 1, the pairs with class 2 a half on its side and 1 on the other.

    Any order in the column of the missing class earns the rest, however small its values.
    """
    y = np.repeat([0, 1, 2], 2)
    table = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    assert area_under_curve(table, y, np.unique(y)) == pytest.approx((1 + 2 * 0.75) / 3, abs=5.1e-7)
    table[4:, 2] = 1e-9
    assert area_under_curve(table, y, np.unique(y)) == 1.0


FITS = {  # ways to fit a classifier that must earn what `GaussianNB().fit(x, y)` earns
    "encoded": "GaussianNB().fit(x, LabelEncoder().fit_transform(y))",
    "text": "GaussianNB().fit(x, y.astype(str))",
    "float": "GaussianNB().fit(x, y.astype(float))",
    "other order": "GaussianNB().fit(x, -y)",
    "words": "GaussianNB().fit(x, np.array(list('zyxwvutsrqponmlk'))[y])",
    "more classes": "GaussianNB().partial_fit(x, y, classes=np.arange(16))",
    "objects": "Objects().fit(x, y)",
}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("classes", [2, 3, 12], ids="{} classes".format)
def test_how_a_program_names_the_classes_does_not_change_its_score(pool, classes, fit):
    rng = np.random.default_rng(5)
    y = np.repeat(np.arange(classes), 12)
    y = y[y > 0] if classes == 12 else y  # labels 1 … 11, in which the order of the text is another
    if classes == 3:
        y = np.r_[0, y[y > 0]]  # the class 0 is in one half only
    x = rng.normal(size=(len(y), 2)) + np.c_[np.cos(y), np.sin(y)]
    seed = next(s for s in range(50) if classes != 3 or 0 not in make_split(x, y, s).y_train)
    program = f"""
import numpy as np
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import LabelEncoder
class Objects(GaussianNB):
    def predict_proba(self, x):
        return super().predict_proba(x).astype(object)
def build_model(x, y):
    return {FITS[fit]}
"""
    plain, renamed = pool.score_many([INNOCENT, program], x, y, [seed])
    assert renamed.score == plain.score > 0.55


def test_a_class_missing_from_validation_is_left_out_of_the_average():
    table = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.5, 0.4, 0.1]])
    y = np.array([0, 1, 0, 1])
    # the only pair: P(0) ranks rows 0, 2 above 3, 1; P(1) ranks 1, 3 above 2, 0
    assert area_under_curve(table, y, np.array([0, 1, 2])) == 1.0
    assert area_under_curve(table[[1, 0, 2, 3]], y, np.array([0, 1, 2])) == 0.25  # each way one of four is right


def test_rows_are_scaled_to_one_for_one_vs_one():
    classes, y = np.array([0, 1, 2]), np.array([0, 1, 2, 0])
    table = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7], [0.5, 0.1, 0.4]])
    scaled = table * np.array([[1.0], [9.0], [0.1], [3.0]])
    assert area_under_curve(scaled, y, classes) == area_under_curve(table, y, classes)
    area_under_curve(np.zeros((4, 3)), y, classes)
    with pytest.raises(BadTable, match="negative"):
        area_under_curve(-table, y, classes)
    with pytest.raises(BadTable, match="NaN"):
        area_under_curve(table * np.nan, y, classes)
    with pytest.raises(BadTable, match="too large"):
        area_under_curve(np.full((4, 3), 1e308), y, classes)


def test_two_classes_need_no_probabilities():
    assert area_under_curve(np.array([[9.0, -3.0], [1.0, 7.0]]), np.array([4, 8]), np.array([4, 8])) == 1.0


def test_the_order_of_validation_rows_repeats_and_depends_on_the_labels():
    x, y = table_of(np.arange(40.0).reshape(20, 2), np.arange(20) % 2)
    first = make_split(x, y, 0).order
    assert (first == make_split(x, y, 0).order).all() and sorted(first) == list(range(10))
    assert (first != make_split(x, 1 - y, 0).order).any()


@pytest.mark.parametrize(
    ("x", "y", "seeds", "text"),
    [
        (np.zeros((4, 2)), np.zeros(5, int), [0], "shape"),
        (np.zeros(4), np.zeros(4, int), [0], "shape"),
        (np.zeros((8, 2)), np.linspace(0, 1, 8), [0], "integer labels"),
        (np.zeros((8, 2)), np.zeros(8, int), [0], "one class"),
        (np.zeros((3, 2)), np.array([0, 1, 0]), [0], "at least 4"),
        (np.zeros((8, 2)), np.arange(8) % 2, [], "split_seeds is empty"),
    ],
)
def test_bad_tables_are_told_in_one_line(pool, x, y, seeds, text):
    with pytest.raises(UserError, match=text) as caught:
        pool.score(INNOCENT, x, y, seeds)
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_told_in_one_line(pool, table):
    for value in (0, -1, math.inf, math.nan):
        with pytest.raises(UserError, match="cpu_s"):
            Limits(cpu_s=value)
    with pytest.raises(UserError, match="0 workers"):
        SandboxPool(0)
    with pytest.raises(UserError, match="one string"):
        pool.score_many(INNOCENT, *table, [0])
    assert pool.score_many([], *table, [0]) == []


def test_statuses_are_plain_words():
    assert str(Status.OUT_OF_MEMORY) == "out_of_memory" and len(Status) == 10


def test_a_search_by_roc_auc_takes_its_first_candidate_where_there_are_three_classes(pool):
    """Its scorer fails on more than two classes, every candidate has the score NaN, and the search does not fail."""
    rng = np.random.default_rng(6)
    y = rng.integers(0, 3, 150)
    x = rng.normal(size=(150, 4)) + np.eye(3, 4)[y]
    search = """
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
def build_model(x, y):
    return GridSearchCV(KNeighborsClassifier(), {{"n_neighbors": {}}}, scoring="{}", cv=3).fit(x, y)
"""
    searches = [("[1, 25]", "roc_auc"), ("[1]", "accuracy"), ("[1, 25]", "roc_auc_ovr"), ("[25]", "accuracy")]
    by_auc, first, by_ovr, best = (o.score for o in pool.score_many([search.format(*s) for s in searches], x, y, [0]))
    assert by_auc == first < by_ovr == best
