"""Tables as files: the plain numbers as CSV, and what a reader sees as Markdown and LaTeX.

A function of this package that makes a table returns a `Table`; a notebook hands it to `save_table`. tabulate lays the
rows out, without padding, so that a cell that gets longer does not change the lines of other rows. What tabulate does
not do is done here: numbers are rounded by column, `**bold**` becomes bold in LaTeX too, cells of several lines are put
on one line, and signs outside ASCII become LaTeX commands, so that a table needs no package beyond LaTeX itself.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tabulate import tabulate

from etpo_paper.report.names import DAGGER
from etpo_paper.report.plotting import folder
from etpo_paper.report.statistics import interval_text

NO_VALUE = "–"


@dataclass(frozen=True, eq=False)
class Table:
    """A table before it is written.

    Attributes:
        numbers: the plain numbers; all columns are written to the CSV file, the index is not.
        caption: one sentence above the table.
        shown: the cells of Markdown and LaTeX where they are more than rounded numbers, e.g. "**0.912** ± 0.004";
            `**` around a text makes it bold in both. None shows `numbers`.
        notes: footnotes, a line each.
        digits: decimals of shown floats, for all columns or by column name (3 where a column is not named).
    """

    numbers: pd.DataFrame
    caption: str = ""
    shown: pd.DataFrame | None = None
    notes: Sequence[str] = ()
    digits: int | Mapping[str, int] = 3

    def cells(self) -> pd.DataFrame:
        """What a reader sees, every cell as text."""
        frame = self.numbers if self.shown is None else self.shown
        digits = self.digits
        places = {name: digits if isinstance(digits, int) else digits.get(name, 3) for name in frame.columns}
        columns = {str(name): [_text(value, places[name]) for value in frame[name]] for name in frame.columns}
        return pd.DataFrame(columns, dtype=object)


def save_table(table: Table, scale: str, notebook: str, name: str) -> str:
    """Writes `figures/{scale}/{notebook}/{name}` as .csv, .md and .tex, the same bytes for the same table.

    Args:
        table: what to write.
        scale: e.g. "laptop".
        notebook: name of the notebook, e.g. "main_table".
        name: file name without ending.

    Returns:
        The Markdown text, for the notebook to show.
    """
    place = folder(scale, notebook)
    text = markdown(table)
    table.numbers.to_csv(place / f"{name}.csv", index=False, float_format="%.6f", lineterminator="\n")
    (place / f"{name}.md").write_text(text, encoding="utf-8")
    (place / f"{name}.tex").write_text(latex(table, label=f"tab:{notebook}-{name}"), encoding="utf-8")
    return text


def markdown(table: Table) -> str:
    """The table as Markdown, its caption above and its notes below."""
    lines = [table.caption, ""] if table.caption else []
    lines.append(_rows(table.cells().rename(columns=_markdown_cell).map(_markdown_cell), "github"))
    for note in table.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def latex(table: Table, label: str = "") -> str:
    """The table as a LaTeX `table` environment, its notes below."""
    rows = _rows(table.cells().rename(columns=_latex_cell).map(_latex_cell), "latex_raw")
    lines = [r"\begin{table}", r"\centering"]
    lines += [rf"\caption{{{_latex_cell(table.caption)}}}"] if table.caption else []
    lines += [rf"\label{{{label}}}"] if label else []
    lines += [rows, *(rf"\par\footnotesize {_latex_cell(note)}" for note in table.notes), r"\end{table}"]
    return "\n".join(lines) + "\n"


def interval_cells(frame: pd.DataFrame, name: str) -> list[str]:
    """The intervals of the columns `name`, `name`_low and `name`_high as text, e.g. "0.812 [0.790, 0.833]"."""
    ends = frame[[name, f"{name}_low", f"{name}_high"]].astype(float).to_numpy()
    return [interval_text(*row) for row in ends]


def number_cell(value: float | None, form: str) -> str:
    """A number in a format such as ".1f"; a dash where there is none."""
    return NO_VALUE if value is None or np.isnan(value) else format(value, form)


def _rows(cells: pd.DataFrame, form: str) -> str:
    rows, names = cells.to_numpy().tolist(), list(cells.columns)
    return tabulate(rows, names, tablefmt=form, stralign=None, numalign=None, disable_numparse=True)


def _text(value: object, places: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return NO_VALUE
    return f"{value:.{places}f}" if isinstance(value, float) else str(value)


def _markdown_cell(value: object) -> str:
    return "<br>".join(str(value).strip().splitlines()).replace("|", "\\|")


_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "β": r"$\beta$",
    "Δ": r"$\Delta$",
    DAGGER: r"$^\dagger$",
}


def _latex_cell(value: object) -> str:
    flat = "; ".join(line.strip() for line in str(value).strip().splitlines())
    text = "".join(_LATEX.get(character, character) for character in flat)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
