"""Labels stay where they are: an error that a program can word after them is not shown to the next program."""

import numpy as np
import pytest
from programs import body

from etpo_core.sandbox import Status
from etpo_core.sandbox.inside import wire
from etpo_core.sandbox.scoring import deal_labels, make_split

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 4))
Y = RNG.integers(0, 2, 300)
LABELS = "bits = y_train[np.argsort(x_train[:, 0])]\nlabels = ''.join('ab'[bit] for bit in bits)\n"
LABELS += "number = int(''.join(map(str, bits[:6])), 2)\n"
SHAPED = """
class Model:
    classes_ = np.array([0, 1])
    def predict_proba(self, x):
        return np.zeros((len(x), 3 + number))
return Model()"""
TELLING = {
    "message": "raise ValueError(labels)",
    "type": "raise type('E' + labels[:60], (Exception,), {})",
    "line": "".join(f"if number == {n}: raise ValueError\n" for n in range(64)),
    "a library's words": "int('x' + labels)",
    "a name that is not there": "getattr(np, 'x' + labels[:60])",
    "a key": "{}[labels]",
    "a file": "open('/' + labels[:60])",
    "a module": "__import__('x' + labels[:60])",
    "a warning": "import warnings; warnings.simplefilter('error'); warnings.warn(labels)",
    "code": "exec(labels[:60])",
    "ending or failing": "import os\nif labels.startswith(TRUE): os._exit(1)\nraise ValueError",
    "failing or not": "if labels.startswith(TRUE): raise ValueError",
    "memory or not": "np.ones(10**10 if labels.startswith(TRUE) else 1)",
    "which split": "if labels.startswith(TRUE): raise ValueError('first')",
}


@pytest.mark.parametrize("name", TELLING)
def test_an_error_that_depends_on_the_labels_is_withheld(pool, name):
    split = make_split(X, Y, 0)
    true = "".join("ab"[label] for label in split.y_train[np.argsort(split.x_train[:, 0])][:20])
    outcome = pool.score(body(LABELS + TELLING[name].replace("TRUE", repr(true))), X, Y, [0])
    assert outcome.status is Status.LABEL_DEPENDENT and outcome.score is None, outcome
    assert outcome.error_text == "Withheld: the error depends on which row has which label, so it is not shown"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError(f'{number} and {labels.count(\"a\")}')", "... and ..."),
        (SHAPED, "predict_proba returned shape (..., ...), expected (..., ...) (rows, classes)"),
    ],
)
def test_numbers_that_depend_on_the_labels_are_left_out(pool, code, message):
    # The mistake of a program that selects features by the labels and predicts with all of them is worth telling.
    outcome = pool.score(body(LABELS + code), X, Y, [0])
    assert outcome.status in (Status.SNIPPET_ERROR, Status.BAD_OUTPUT) and outcome.message == message, outcome


def test_the_split_at_which_a_program_fails_says_nothing(pool):
    # The program knows each split by its rows, and the labels decide at which of them it fails.
    splits = [make_split(X, Y, seed) for seed in range(5)]
    fails = f"split = {[float(split.x_train[0, 0]) for split in splits]}.index(x_train[0, 0])\n"
    fails += "if split == y_train[:2].sum() + 1: raise ValueError(f'{chr(97 + split)}')"
    outcomes = []
    for seed in range(8):
        y = np.random.default_rng(seed).integers(0, 2, 300)
        outcomes.append(pool.score(body(fails), X, y, range(5)))
    assert {outcome.status for outcome in outcomes} <= {Status.OK, Status.LABEL_DEPENDENT, Status.SNIPPET_ERROR}
    assert sum(outcome.status is Status.LABEL_DEPENDENT for outcome in outcomes) >= 3


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('of its own')", "of its own"),
        ("raise ValueError(np.bincount(y_train))", "[70 80]"),  # how many rows each class has is no secret
        ("raise ValueError(x_train.shape)", "(150, 4)"),
        ("undefined", "name 'undefined' is not defined"),
        ("object().attribute", "'object' object has no attribute 'attribute'"),
        ("raise ValueError(object())", "<object object at 0x...>"),
        ("raise ValueError(np.random.rand() == np.random.rand())", "False"),
    ],
)
def test_an_error_that_says_nothing_about_single_rows_is_shown(pool, code, message):
    y = np.repeat([0, 1], [140, 160])
    order = np.random.default_rng(3).permutation(300)
    train = make_split(X, y[order], 0).y_train
    message = message.replace("[70 80]", str(np.bincount(train)))
    assert pool.score(body(code), X, y[order], [0]).message == message


def test_the_labels_are_dealt_by_what_no_program_knows():
    split = make_split(X, Y, 0)
    dealt = deal_labels(split, b"program")
    assert sorted(dealt.y_train) == sorted(split.y_train) and (dealt.y_train != split.y_train).mean() > 0.3
    assert np.array_equal(dealt.x_train, split.x_train) and np.array_equal(dealt.y_test, split.y_test)
    assert np.array_equal(deal_labels(split, b"program").y_train, dealt.y_train)
    assert not np.array_equal(deal_labels(split, b"another").y_train, dealt.y_train)
    validation = np.ones(300, bool)
    validation[make_split(np.arange(300.0)[:, None], Y, 0).x_train[:, 0].astype(int)] = False
    other = make_split(X, np.where(validation, 1 - Y, Y), 0)  # the program sees the same training half
    assert np.array_equal(other.y_train, split.y_train)
    assert not np.array_equal(deal_labels(other, b"program").y_train, dealt.y_train)


def test_a_second_program_gains_nothing_from_the_error_of_the_first(pool):
    # The first program words its error so that the second can look up labels by the hash of a row. Labels are noise.
    first = body(
        "table = [0] * 400\nfor row, label in zip(x_train, y_train):\n"
        "    table[hash(row.tobytes()) % 400] = label\nraise ValueError(hex(int(''.join(map(str, table)), 2)))"
    )
    text = pool.score(first, X, Y, [0]).error_text
    told = "".join(character for character in text if character in "0123456789abcdef")
    second = f"""
import numpy as np
bits = bin(int("1{told}", 16))[-400:].zfill(400)
class Model:
    classes_ = np.array([0, 1])
    def predict_proba(self, x):
        p = np.array([float(bits[hash(row.tobytes()) % 400] == "1") for row in x])
        return np.c_[1 - p, p]
def build_model(x_train, y_train):
    return Model()
"""
    assert abs(pool.score(second, X, Y, [1]).score - 0.5) < 0.06


def test_an_answer_is_an_answer_whether_or_not_the_rows_were_read(pool):
    # The frames that report a fit and a table of probabilities, sent by the program itself, which then ends at once.
    frames = "import os, struct\nos.write(3, struct.pack({form!r}, {magic}, {fitted}, 0))\n"
    frames += (
        "os.write(3, struct.pack({form!r}, {magic}, {result}, 16 * {rows}) + np.tile([0.5, 0.5], {rows}).tobytes())\n"
    )
    frames += "os._exit(0)"
    kinds = {"form": wire.FRAME.format, "magic": wire.MAGIC, "fitted": wire.FITTED, "result": wire.RESULT}
    small = pool.score(body(frames.format(**kinds, rows=150)), X, Y, [0])
    x, y = np.tile(X, (60, 6)), np.tile(Y, 60)  # more than fits into the buffer of a socket
    large = pool.score(body(frames.format(**kinds, rows=9000)), x, y, [0])
    assert [(outcome.status, outcome.score) for outcome in (small, large)] == [(Status.OK, 0.5)] * 2
