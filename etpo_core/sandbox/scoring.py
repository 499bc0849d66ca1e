"""Splits of a data set, and scores: all that needs the labels of a validation half, and so happens in the host."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from etpo_core.errors import UserError

DECIMALS = 6  # of a score: the last bits of a fit differ between processors, and scores must not


class BadTable(Exception):
    """The table of probabilities that a child answered with cannot be scored."""


@dataclass(frozen=True)
class Split:
    """One random split into halves.

    Attributes:
        train: int64 [training rows], the numbers of the training rows in the table.
        x_train, y_train, x_test, y_test: float64 [rows, features] and int64 [rows] of both halves.
        order: the permutation in which a child receives the validation rows.
        classes: all labels of the data set, in ascending order.
    """

    train: np.ndarray
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    order: np.ndarray
    classes: np.ndarray


def table_of(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Checks a data set and returns it as float64 [rows, features] and int64 [rows].

    Raises:
        UserError: the dimensions or lengths do not fit, or the labels are not integers.
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or y.shape != (len(x),) or x.shape[1] == 0:
        raise UserError(f"x has shape {x.shape} and y {y.shape}; give x as (rows, features) and y as (rows,)")
    if x.dtype.kind not in "biuf" or y.dtype.kind not in "biu":
        raise UserError(f"x is of type {x.dtype} and y of type {y.dtype}; give numbers and integer labels")
    return np.ascontiguousarray(x, "<f8"), np.ascontiguousarray(y, "<i8")


def make_split(x: np.ndarray, y: np.ndarray, seed: int) -> Split:
    """Makes the split of `train_test_split(arange(rows), test_size=0.5, random_state=seed)`, which is not stratified.

    A child receives the validation rows in an order that is drawn from a digest of the whole data set, labels included.
    The order is the same on every run, but code that has not seen the labels cannot guess it.

    Args:
        x: float64 [rows, features].
        y: int64 [rows].
        seed: seed of the split.

    Raises:
        UserError: a half holds fewer than two classes, so that there is nothing to learn or no AUC.
    """
    if len(y) < 4:
        raise UserError(f"the table has {len(y)} rows; a split into two halves needs at least 4")
    train, test = train_test_split(np.arange(len(y)), test_size=0.5, random_state=seed, shuffle=True)
    for half, rows in (("training", train), ("validation", test)):
        if len(np.unique(y[rows])) < 2:
            raise UserError(f"split {seed} leaves one class in its {half} half; use another seed or more rows")
    digest = hashlib.sha256(b"order of the validation rows")
    for part in (x.tobytes(), y.tobytes(), str((x.shape, seed)).encode()):
        digest.update(part)
    order = np.random.default_rng(int.from_bytes(digest.digest())).permutation(len(test))
    return Split(train, x[train], y[train], x[test], y[test], order, np.unique(y))


def deal_labels(split: Split, source: bytes) -> Split:
    """The split with its training labels dealt to other training rows.

    A program whose error is the same on both says nothing about which row has which label. The rows that get a label
    are drawn from a digest of the program and of the validation labels: the same on every run, but unknown to every
    program, which therefore cannot word its error so that it comes out the same.
    """
    digest = hashlib.sha256(b"".join([b"labels dealt anew", split.y_test.tobytes(), source])).digest()
    return replace(split, y_train=np.random.default_rng(int.from_bytes(digest)).permutation(split.y_train))


def area_under_curve(table: np.ndarray, y: np.ndarray, classes: np.ndarray) -> float:
    """ROC AUC of a table of class probabilities, rounded to 6 decimals.

    With two classes, it is the AUC of the column of the larger label. With more, it is the one-vs-one AUC averaged over
    the pairs of classes, each pair counting the same, as in the paper. One-vs-one compares probabilities of different
    rows, so rows that do not sum to 1 are scaled to do so (a row of zeros becomes uniform). A class that the training
    half lacks has probability 0 everywhere. Pairs with a class that the validation half lacks are left out.

    Args:
        table: float64 [rows, classes], the columns in the order of `classes`.
        y: int64 [rows], with at least two different labels.
        classes: int64 [classes], all labels of the task in ascending order.

    Raises:
        BadTable: a value is not finite, or a table of more than two classes has negative or enormous values.
    """
    if not np.isfinite(table).all():
        raise BadTable("predict_proba returned NaN or infinite values")
    if len(classes) == 2:
        # Only the order of the values counts. As ranks, even the largest numbers cannot overflow in the metric's sums.
        ranks = np.unique(table[:, 1], return_inverse=True)[1]
        return round(float(roc_auc_score(y, ranks)), DECIMALS)
    if (table < 0).any():
        raise BadTable("predict_proba returned negative probabilities")
    with np.errstate(over="ignore"):
        total = table.sum(axis=1, keepdims=True)
    if not np.isfinite(total).all():
        raise BadTable("predict_proba returned values too large to be probabilities")
    if not np.allclose(total, 1.0, rtol=0, atol=1e-8):
        uniform = np.full_like(table, 1.0 / len(classes))
        table = np.divide(table, total, out=uniform, where=total > 0)
    score = roc_auc_score(y, table, multi_class="ovo", average="macro", labels=classes)
    return round(float(score), DECIMALS)
