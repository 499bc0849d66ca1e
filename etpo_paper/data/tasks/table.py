"""The table of a task: what it holds, how it is stored, and how it is checked.

A `Task` holds the pair (x, y) that every method trains on and is scored on, the description of the task, and a note of
where the numbers came from. On disk a task is two files: `{name}.csv` with the feature columns and the class in the
column `target`, and `{name}.json` with the source, the stand-in, the fingerprint and the counts. The fingerprint is the
SHA-256 of the CSV file without its header line, which `tail -n +2 FILE | sha256sum` prints as well. It covers every
number and the order of the rows and columns, but not the column names.
"""

import csv
import hashlib
import io
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from etpo_core.errors import UserError, unknown
from etpo_paper.base import paths
from etpo_paper.data.tasks.registry import TASKS, StandIn, TaskSpec

TARGET = "target"
REBUILD = "make it again with `python -m pipeline.data`"


@dataclass(frozen=True, eq=False)
class Task:
    """A table that is ready to train on.

    Attributes:
        spec: the task as the paper has it. A stand-in may have other rows and columns than the spec says.
        x: float64 [rows, features], no NaN.
        y: int64 [rows], classes 0..k-1.
        columns: the feature names.
        source: "embedded", "online" or "local".
        stand_in: None for the paper's own table, else a sentence that names the table used in its place.
        sha256: fingerprint of (x, y).
    """

    spec: TaskSpec
    x: np.ndarray
    y: np.ndarray
    columns: tuple[str, ...]
    source: str
    stand_in: str | None
    sha256: str

    @property
    def rows(self) -> int:
        """Number of rows of this table."""
        return len(self.y)

    @property
    def features(self) -> int:
        """Number of feature columns of this table."""
        return self.x.shape[1]

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Rows of each class in this table."""
        return tuple(np.bincount(self.y).tolist())


def _number(value: float) -> str:
    """Writes a float as the shortest text that reads back as the same float."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def canonical(x: np.ndarray, y: np.ndarray) -> bytes:
    """The table as text, one line for each row with the features first and the class last.

    Every number has the shortest form that reads back as the same float.
    """
    lines = [",".join(map(_number, row)) + f",{label}\n" for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    return "".join(lines).encode("ascii")


def fingerprint(x: np.ndarray, y: np.ndarray) -> str:
    """The SHA-256 of `canonical(x, y)` in hexadecimal."""
    return hashlib.sha256(canonical(x, y)).hexdigest()


def _check(
    what: str,
    spec: TaskSpec,
    stand_in: StandIn | None,
    shape: tuple[int, ...],
    counts: tuple[int, ...],
    sha256: str,
    cure: str,
) -> None:
    """Compares a table with what the registry says about it, and reports the first difference as a UserError."""
    known = stand_in or spec
    found = (*shape, counts, sha256)
    expected = (known.rows, known.features, known.class_counts, known.sha256)
    for name, want, have in zip(("rows", "feature columns", "class counts", "sha256"), expected, found, strict=True):
        if want is not None and want != have:
            raise UserError(f"{what}: expected {name} {want}, found {have}; {cure}")
    if len(counts) != spec.classes and not stand_in:
        raise UserError(f"{what}: expected {spec.classes} classes, found {len(counts)}; {cure}")


def make_task(
    spec: TaskSpec,
    x: np.ndarray,
    y: np.ndarray,
    columns: tuple[str, ...],
    source: str,
    stand_in: StandIn | None,
    what: str,
    cure: str,
) -> Task:
    """Makes a task of the numbers that a source delivered, after comparing them with the registry.

    Args:
        spec: the task.
        x: float [rows, features].
        y: int [rows].
        columns: feature names.
        source: "embedded", "online" or "local".
        stand_in: the stand-in that the numbers belong to, None if they are the paper's.
        what: the file or download, to be named in an error.
        cure: what the user can do about an error.

    Raises:
        UserError: rows, columns, class counts, fingerprint or values differ from the registry.
    """
    x = np.ascontiguousarray(x, dtype=np.float64)
    y = np.ascontiguousarray(y, dtype=np.int64)
    if not np.isfinite(x).all():
        raise UserError(f"{what}: expected only finite numbers after preprocessing; {cure}")
    if len(y) == 0 or y.min() < 0:
        raise UserError(f"{what}: expected classes numbered from 0 in at least one row, found {len(y)} rows; {cure}")
    sha256 = fingerprint(x, y)
    _check(what, spec, stand_in, x.shape, tuple(np.bincount(y).tolist()), sha256, cure)
    return Task(spec, x, y, columns, source, stand_in.text(spec) if stand_in else None, sha256)


def save_task(task: Task, folder: Path | None = None) -> Path:
    """Writes `{name}.csv` and `{name}.json` to a folder (by default data/tables) and returns the path of the CSV."""
    folder = folder or paths.TABLES
    folder.mkdir(parents=True, exist_ok=True)
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow([*task.columns, TARGET])
    licensed = task.spec.stand_in if task.stand_in and task.spec.stand_in else task.spec
    note = {
        "task": task.spec.name,
        "source": task.source,
        "stand_in": task.stand_in,
        "sha256": task.sha256,
        "rows": task.rows,
        "features": task.features,
        "class_counts": list(task.class_counts),
        "licence": licensed.licence,
    }
    table = folder / f"{task.spec.name}.csv"
    _replace(table, header.getvalue().encode("utf-8") + canonical(task.x, task.y))
    _replace(table.with_suffix(".json"), (json.dumps(note, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return table


def _replace(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, also where several processes write it at the same time."""
    part = path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)


def load_task(name: str, folder: Path | None = None) -> Task:
    """Reads a prepared task and checks it once more.

    Args:
        name: a key of `TASKS`.
        folder: where the prepared tables lie, by default data/tables.

    Raises:
        UserError: the task is unknown, its table was not prepared, or the table differs from its note or the registry.
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    spec = TASKS[name]
    table = (folder or paths.TABLES) / f"{name}.csv"
    note_path = table.with_suffix(".json")
    for path in (table, note_path):
        if not path.is_file():
            raise UserError(f"{path}: no prepared table of task {name}; {REBUILD}")
    try:
        note = json.loads(note_path.read_text(encoding="utf-8"))
        source, stand_in, expected = note["source"], note["stand_in"], note["sha256"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{note_path}: expected a JSON note with source, stand_in and sha256; {REBUILD}") from None
    header, _, body = table.read_bytes().partition(b"\n")
    sha256 = hashlib.sha256(body).hexdigest()
    if sha256 != expected:
        raise UserError(f"{table}: expected sha256 {expected}, found {sha256}; the file was changed or cut, {REBUILD}")
    try:
        columns = next(csv.reader([header.decode("utf-8")]))
        values = np.loadtxt(io.BytesIO(body), delimiter=",", ndmin=2)
        x, y = np.ascontiguousarray(values[:, :-1]), values[:, -1].astype(np.int64)
        counts = tuple(np.bincount(y).tolist())
    except (ValueError, StopIteration, IndexError):
        raise UserError(f"{table}: expected a table of numbers; {REBUILD}") from None
    if len(columns) != x.shape[1] + 1 or columns[-1] != TARGET:
        raise UserError(f"{table}: expected {x.shape[1]} column names and `{TARGET}` in the first line; {REBUILD}")
    if stand_in is not None and (spec.stand_in is None or stand_in != spec.stand_in.text(spec)):
        raise UserError(f"{note_path}: the stand-in named there is not the one declared for {name}; {REBUILD}")
    _check(str(table), spec, None if stand_in is None else spec.stand_in, x.shape, counts, sha256, REBUILD)
    return Task(spec, x, y, tuple(columns[:-1]), source, stand_in, sha256)
