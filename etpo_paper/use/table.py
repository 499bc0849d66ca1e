"""A table of one's own as a task: what becomes of each column, told in sentences, or why it cannot be used.

The columns keep their values; a plan says how each becomes numbers (`columns`). The plan is made from the rows that
training uses, of their features alone.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from etpo_core.errors import UserError
from etpo_core.sandbox.scoring import make_split
from etpo_paper.data.tasks import Task, TaskSpec
from etpo_paper.data.tasks.preprocessing import MAX_ROWS
from etpo_paper.data.tasks.table import fingerprint
from etpo_paper.report.names import counted
from etpo_paper.use.columns import Encoder, numbers, text_of, texts
from etpo_paper.use.plan import decimal_of, make_plan, some
from etpo_paper.use.read import find_column, read_text

MOST_CLASSES = 30
FEWEST_OF_CLASS = 10  # rows; a class with fewer is missing from one half of a split too often


@dataclass
class OwnTable:
    """A table that the agent can be trained on.

    Attributes:
        task: what training needs of it.
        target: the column to predict.
        labels: the classes, in the order of their codes in `task.y`.
        plan: see `columns`.
        notes: a sentence about everything that was changed or left out.
    """

    task: Task
    target: str
    labels: list[Any]
    plan: list[dict[str, Any]]
    notes: list[str]


def read_table(path: Path, target: str, split_seeds: Iterable[int] = ()) -> OwnTable:
    """Reads a CSV file for training or scoring.

    Args:
        path: the file.
        target: the column to predict.
        split_seeds: of the splits that will be made; both classes must be in both halves of each.

    Raises:
        UserError: the table cannot be used; the line says why.
    """
    frame, notes = read_text(path)
    target = find_column(frame, target)
    if len(frame) < 2 * FEWEST_OF_CLASS:
        raise UserError(f"{path} has {len(frame)} rows; expected at least {2 * FEWEST_OF_CLASS}")
    raw_rows, y = len(frame), texts(frame[target])
    without = int((y == "").sum())
    frame, y = frame[y != ""], y[y != ""]
    if without:
        notes.append(f"{target}: {counted(without, 'row')} without a value left out.")
    y, spelt = _one_spelling(y, target)
    notes += spelt
    _check_classes(path, target, y)
    if len(frame) > MAX_ROWS:
        notes.append(f"Of {len(frame)} rows {MAX_ROWS} are used, drawn at random.")
        frame = frame.sample(MAX_ROWS, random_state=0).sort_index()
        y = y.loc[frame.index]
    counts = y.value_counts()
    rare = [str(label) for label in sorted(counts.index[counts < FEWEST_OF_CLASS])]
    if len(counts) - len(rare) < 2:
        found = ", ".join(f"{label!r} has {count}" for label, count in counts.items())
        raise UserError(
            f"{path}: expected at least two classes of {FEWEST_OF_CLASS} rows in {target!r}; of its rows {found}"
        )
    if rare:
        which = "Class" if len(rare) == 1 else "Classes"
        left = f"{counted(int(counts[rare].sum()), 'row')} left out, because a class needs {FEWEST_OF_CLASS}"
        notes.append(f"{which} {some(rare)} of {target}: {left}.")
        frame, y = frame[~y.isin(rare)], y[~y.isin(rare)]
    plan, told = make_plan(frame.drop(columns=target))
    notes += told
    if not plan:
        raise UserError(f"{path}: no column is left to predict {target!r} from; {' '.join(told)}")
    labels = _labels(y)
    codes = y.map({text_of(label): code for code, label in enumerate(labels)}).to_numpy(dtype=np.int64)
    x = Encoder(plan).fit_transform(frame)
    for seed in split_seeds:
        try:
            make_split(x, codes, seed)
        except UserError:
            raise UserError(
                f"{path}: a class of {target!r} has too few rows ({min(np.bincount(codes))}) for halves that hold both "
                "classes; expected more rows of it"
            ) from None
    task = own_task(path, target, x, codes, raw_rows, len(labels))
    return OwnTable(task, target, labels, plan, notes)


def own_task(path: Path, target: str, x: np.ndarray, y: np.ndarray, raw_rows: int, classes: int) -> Task:
    """The task of an encoded table.

    Args:
        path: the file that it was read from.
        target: the column to predict.
        x: float64 [rows, features].
        y: int64 [rows], classes 0..k-1.
        raw_rows: rows of the file.
        classes: their number.
    """
    spec = TaskSpec(
        name=path.stem,
        description=_title(path.stem),
        kind="own",
        identifier=path.name,
        target=target,
        raw_rows=raw_rows,
        rows=len(y),
        features=x.shape[1],
        classes=classes,
        licence="that of its owner",
        files=(path.name,),
    )
    names = tuple(f"x{number}" for number in range(x.shape[1]))
    return Task(spec, x, y, names, "own", None, fingerprint(x, y))


def _one_spelling(y: pd.Series, target: str) -> tuple[pd.Series, list[str]]:
    """Labels that differ in capitals alone as one, in their most frequent spelling."""
    counts = y.value_counts()
    usual: dict[str, str] = {}
    for label in counts.index:
        usual.setdefault(label.lower(), label)
    if len(usual) == len(counts):
        return y, []
    return y.str.lower().map(usual), [f"{target}: labels that differ in capitals alone are one class."]


def _check_classes(path: Path, target: str, y: pd.Series) -> None:
    distinct = y.nunique()
    if distinct <= MOST_CLASSES:
        return
    what = "numbers" if numbers(y, decimal_of(y)).notna().all() else "values"
    raise UserError(
        f"{path}: the target {target!r} has {distinct} different {what}; expected at most {MOST_CLASSES} classes, "
        "so make classes of them first, as of amounts the low and the high ones"
    )


def _labels(y: pd.Series) -> list[Any]:
    """The classes in ascending order: whole numbers, truth values, or text."""
    found = sorted(y.unique(), key=lambda label: (label.lower(), label))
    if all(re.fullmatch(r"-?\d{1,15}", label) for label in found):
        return sorted(int(label) for label in found)
    if set(found) <= {"True", "False"}:
        return [label == "True" for label in found]
    return [str(label) for label in found]


def _title(stem: str) -> str:
    """The name of a table as the prompt shows it."""
    words = " ".join(re.sub(r"[^A-Za-z0-9]+", " ", stem).split())[:40]
    return words[:1].upper() + words[1:] or "Table"
