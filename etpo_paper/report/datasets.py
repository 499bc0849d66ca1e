"""The tables that the programs compete on: the table and figure of the notebook `dataset_table`.

What the paper uses comes from the registry (`data.tasks`), what was prepared here from the notes that the stage `data`
leaves beside each table.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings
from etpo_paper.data.tasks import TASKS
from etpo_paper.report import notebook, plotting
from etpo_paper.report.names import DAGGER, STAND_IN_NOTE, task_label
from etpo_paper.report.tables import Table

# Classes of a data set, in order: shades that differ in lightness.
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8A8A8A")


@dataclass(frozen=True, eq=False)
class DataSets:
    """What the notebook shows.

    Attributes:
        scale: the scale whose tasks are named.
        trained_on: its tasks.
        prepared: task -> the note that the stage `data` left, for the tasks that were prepared.
    """

    scale: str
    trained_on: Sequence[str]
    prepared: dict[str, dict[str, Any]]

    @property
    def stand_ins(self) -> dict[str, str]:
        """Task -> text that says what stands in for the paper's table."""
        return {name: note["stand_in"] for name, note in self.prepared.items() if note["stand_in"]}


def load(scale: str) -> DataSets:
    """Reads the notes of the prepared tables.

    Raises:
        UserError: there is no such scale, or a table is not prepared; the message says how to.
    """
    files = {name: paths.TABLES / f"{name}.json" for name in TASKS}
    if absent := [name for name, file in files.items() if not file.is_file()]:
        raise UserError(f"not prepared in {paths.TABLES}: {', '.join(absent)}; make them: python -m pipeline.data")
    prepared = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    return DataSets(scale, load_settings(scale).tasks, prepared)


def answer(data: DataSets) -> str:
    """How many tables are the paper's own, and which a scale uses."""
    stand_ins = data.stand_ins
    trained_on = ", ".join(task_label(task, stand_ins.get(task)) for task in data.trained_on)
    text = (
        f"Of {len(TASKS)} tasks, {len(data.prepared) - len(stand_ins)} have the paper's own table and "
        f"{len(stand_ins)} a declared stand-in ({DAGGER}) here; scale `{data.scale}` trains on "
        f"{len(data.trained_on)}: {trained_on}."
    )
    return notebook.answer(text)


def table(data: DataSets) -> Table:
    """Rows, features, classes and origin of each table, in the paper and here."""
    rows = []
    for name, spec in TASKS.items():
        note = data.prepared.get(name, {})
        counts = note.get("class_counts")
        rows.append(
            {
                "task": name,
                "origin": spec.origin,
                "paper_rows": spec.rows,
                "paper_features": spec.features,
                "paper_classes": spec.classes,
                "rows": note.get("rows"),
                "features": note.get("features"),
                "classes": len(counts) if counts else None,
                "class_counts": "/".join(str(count) for count in counts) if counts else None,
                "source": note.get("source"),
                "licence": note.get("licence", spec.licence),
                "stand_in": note.get("stand_in"),
                "sha256": note.get("sha256"),
            }
        )
    numbers = pd.DataFrame(rows).astype(dict.fromkeys(["rows", "features", "classes"], "Int64"))
    marked = [task_label(task, stand_in) for task, stand_in in zip(numbers["task"], numbers["stand_in"], strict=True)]
    shown = pd.DataFrame(
        {
            "Task": marked,
            "Origin (paper)": numbers["origin"],
            "Rows (paper)": numbers["paper_rows"],
            "Rows": numbers["rows"],
            "Features (paper)": numbers["paper_features"],
            "Features": numbers["features"],
            "Classes (paper)": numbers["paper_classes"],
            "Classes": numbers["classes"],
            "Rows of each class": numbers["class_counts"],
            "Source": numbers["source"],
            "Licence": numbers["licence"],
        }
    )
    notes = [f"{task_label(name, True)} {text}." for name, text in data.stand_ins.items()]
    return Table(numbers, "The tables, as the paper has them and as prepared here.", shown, notes)


def figure(data: DataSets) -> Figure:
    """Size and balance of the tables: each bar is a table, each piece of it a class."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    names = list(data.prepared)[::-1]
    for position, name in enumerate(names):
        left = 0
        for place, count in enumerate(data.prepared[name]["class_counts"]):
            axes.barh(position, count, left=left, color=CLASS_COLOURS[place], edgecolor="white")
            left += count
    axes.set_yticks(range(len(names)), [task_label(name, data.stand_ins.get(name)) for name in names])
    axes.set_xlabel("rows, by class")
    axes.grid(axis="y", visible=False)
    plotting.footnote(figure, [STAND_IN_NOTE] if data.stand_ins else [])
    return figure
