"""The tables that the programs compete on: the table and figure of the notebook `dataset_table`.

What the paper uses comes from the registry (`data.tasks`), what was prepared here from the notes that the stage `data`
leaves beside each table.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings
from etpo_paper.data.tasks import TASKS
from etpo_paper.report import notebook, plotting
from etpo_paper.report.names import DAGGER, STAND_IN_NOTE, task_label
from etpo_paper.report.tables import Table


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
    """Size and balance of the tables, a row for each: its number of rows, and the share of each class in them."""
    names = list(data.prepared)
    by_class = zip_longest(*(data.prepared[name]["class_counts"] for name in names), fillvalue=0)
    counts = np.array(list(by_class), float).T
    sizes, most = counts.sum(axis=1), counts.shape[1]
    found = counts / sizes[:, None]
    shades = plt.get_cmap("cividis")  # from dark to light, for as many classes as there are
    size = (plotting.PAGE_WIDTH, 1.0 + 0.19 * len(names))
    figure, (rows, shares) = plt.subplots(1, 2, figsize=size, sharey=True, width_ratios=[1, 1.6])
    rows.semilogx(sizes, range(len(names)), "o", color="black", markersize=4)
    rows.xaxis.set_major_formatter("{x:,.0f}")
    for place in range(most):
        look = {"color": shades(place / max(1, most - 1)), "edgecolor": "white", "linewidth": 0.5}
        left = found[:, :place].sum(axis=1)
        shares.barh(range(len(names)), found[:, place], left=left, label=f"{place + 1}", **look)
    rows.set_yticks(range(len(names)), [task_label(name, data.stand_ins.get(name)) for name in names])
    rows.set_ylim(len(names) - 0.5, -0.5)
    rows.set_xlabel("rows")
    shares.set_xlabel("share of rows")
    shares.set_xlim(0, 1)
    shares.grid(axis="y", visible=False)
    figure.tight_layout()
    shares.legend(title="class", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=most, handlelength=1.5)
    meaning = "Classes are numbered in the sorted order of their labels."
    plotting.footnote(figure, [meaning, STAND_IN_NOTE if data.stand_ins else ""])
    return figure
