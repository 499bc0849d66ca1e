"""The fourteen tasks of the paper as typed objects, read from `tasks.yaml`.

Row counts, class counts and fingerprints describe a table as the experiments use it, after the preprocessing of
`preprocessing.py`. Whatever a source delivers is compared with them, so no other table can pass for the paper's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from etpo_paper.base.sections import unknown_name
from etpo_paper.base.settings import Settings

TASKS_FILE = Path(__file__).with_name("tasks.yaml")


@dataclass(frozen=True)
class StandIn:
    """An openly licensed table that is used where the paper's own is not at hand.

    Attributes:
        title: what the table is.
        origin: the package it was taken from.
        file: its name in data/embedded.
        target: the column to predict.
        rows: rows after preprocessing.
        features: feature columns after preprocessing.
        class_counts: rows of each class.
        sha256: fingerprint, see `table.py`.
        licence: the licence under which the package gives it.
    """

    title: str
    origin: str
    file: str
    target: str
    rows: int
    features: int
    class_counts: tuple[int, ...]
    sha256: str
    licence: str

    def text(self, spec: "TaskSpec") -> str:
        """The sentence that accompanies every result of the task `spec` on this table."""
        return (
            f"stand-in for {spec.origin}: {self.title} ({self.origin}, {self.licence}), "
            f"{self.rows} rows, {self.features} features, {len(self.class_counts)} classes"
        )


@dataclass(frozen=True)
class TaskSpec:
    """One task as the paper has it.

    Attributes:
        name: name of the task everywhere in the project.
        description: name of the data set in the prompt.
        kind: "openml", "kaggle-competition" or "kaggle-dataset".
        identifier: number of the data set on OpenML, or its handle on Kaggle.
        target: the column to predict.
        raw_rows: rows of the file before preprocessing.
        rows: rows that the paper uses.
        features: feature columns that the paper uses.
        classes: number of classes.
        licence: licence of the paper's table, as far as it is stated.
        files: names that a downloaded file may have, the usual one first.
        class_counts: rows of each class, or None where the exact table could not be obtained to count them.
        sha256: fingerprint of the paper's table (see `table.py`), or None where it is not known.
        embedded: name of the file in data/embedded, or None if the table is generated or cannot be passed on.
        fraction: share of an OpenML table that is kept.
        drop: identifier columns of a Kaggle table, which are dropped.
        coded: whether every value of a Kaggle table is replaced by its rank in the column.
        stand_in: the table that is used where this one is not at hand.
    """

    name: str
    description: str
    kind: str
    identifier: int | str
    target: str
    raw_rows: int
    rows: int
    features: int
    classes: int
    licence: str
    files: tuple[str, ...]
    class_counts: tuple[int, ...] | None = None
    sha256: str | None = None
    embedded: str | None = None
    fraction: float = 1.0
    drop: tuple[str, ...] = ()
    coded: bool = False
    stand_in: StandIn | None = None

    @property
    def origin(self) -> str:
        """Where the paper's table lives, e.g. "OpenML 11" or "Kaggle spaceship-titanic"."""
        return f"{'OpenML' if self.kind == 'openml' else 'Kaggle'} {self.identifier}"


def parse_task(name: str, entry: dict[str, Any]) -> TaskSpec:
    """Makes a task of its entry in `tasks.yaml`.

    Raises:
        ValueError: the entry contradicts itself, or lacks a key or has an unknown one.
    """
    fields = _fields(entry)
    stand_in = fields.pop("stand_in", None)
    if fields.get("kind") == "openml":  # the names that OpenML's own pages and packages give a downloaded file
        known, number = fields.pop("openml_name", name), fields.get("identifier")
        fields["files"] = (f"{known}.arff", f"dataset_{number}_{known}.arff", f"{number}.arff")
    fields.setdefault("classes", len(fields.get("class_counts", ())))
    try:
        spec = TaskSpec(name=name, stand_in=StandIn(**_fields(stand_in)) if stand_in else None, **fields)
    except TypeError as error:
        raise ValueError(f"{TASKS_FILE.name}, task {name}: {error}") from None
    if spec.class_counts is not None and len(spec.class_counts) != spec.classes:
        raise ValueError(f"{TASKS_FILE.name}, task {name}: class_counts has not {spec.classes} entries")
    for table in (spec, spec.stand_in):
        if table and table.class_counts and sum(table.class_counts) != table.rows:
            raise ValueError(f"{TASKS_FILE.name}, task {name}: class_counts do not sum to {table.rows} rows")
    return spec


def _fields(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry without its groups, and with tuples instead of lists."""
    fields: dict[str, Any] = {}
    for key, value in entry.items():
        grouped = key in ("origin", "preprocessing", "table") and isinstance(value, dict)
        fields |= value if grouped else {key: value}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


TASKS: dict[str, TaskSpec] = {
    name: parse_task(name, entry) for name, entry in yaml.safe_load(TASKS_FILE.read_text(encoding="utf-8")).items()
}


def check_task(name: str, settings: Settings | None = None) -> None:
    """Raises `UserError` for a task that does not exist; with settings, says that they name it."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS, settings.place("tasks") if settings else None)
