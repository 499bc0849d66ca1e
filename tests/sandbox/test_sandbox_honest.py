"""Honest programs earn behind the walls what scikit-learn gives them outside, to the last bit."""

import contextlib
import io
import warnings

import numpy as np
import pytest
from honest import programs
from programs import needs_wall

from etpo_core.sandbox.scoring import area_under_curve, make_split, table_of

PROGRAMS = programs()
SOME = dict(list(PROGRAMS.items())[3::12])


def outside(source, split):
    """The score of a program that is run in this process."""
    module = {"__name__": "snippet"}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(source, module)
        model = module["build_model"](split.x_train.copy(), split.y_train.copy())
        table = np.asarray(model.predict_proba(split.x_test), float)
    return area_under_curve(table[:, : len(split.classes)], split.y_test, split.classes)


@needs_wall
@pytest.mark.parametrize("some", [pytest.param(SOME, id="some"), pytest.param(PROGRAMS, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_inside_equals_outside(pandas_pool, some, classes):
    if classes > 2:  # for which scikit-learn has no thresholds
        some = {name: source for name, source in some.items() if "ThresholdClassifier" not in name}
    rng = np.random.default_rng(classes)
    y = rng.integers(0, classes, 160)
    x, y = table_of(rng.normal(size=(160, 5)) + 0.6 * np.c_[y, y % 2, -y, 0 * y, 0 * y], y)
    found = pandas_pool.score_many(list(some.values()), x, y, [1])
    expected = {name: outside(source, make_split(x, y, 1)) for name, source in some.items()}
    wrong = {name: o for (name, score), o in zip(expected.items(), found, strict=True) if o.score != score}
    assert not wrong and len(PROGRAMS) >= 150
