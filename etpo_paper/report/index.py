"""The list of notebooks, and `notebooks/00_index.ipynb`, which is made from their first cells.

A notebook's first cell holds its title and three paragraphs that begin with **Question.**, **Answer.** and
**In the paper.**, and then one picture. The index repeats them in the paper's order, so that whoever browses reads what
each notebook asks and finds before opening one. Numbers in an answer are checked by `claims.yaml`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from etpo_core.errors import UserError

NAME = "00_index"
PAPER = {
    "exploration": "study",
    "main_table": "study",
    "convergence": "study",
    "style": "study",
    "perplexity": "study",
    "ablations": "study",
    "dataset_table": "laptop",
    "algorithm": "laptop",
    "consistency": "laptop",
}  # the paper's items in its order, each with the scale whose results its answer is from
OURS = {
    "learning": "laptop",
    "credit": "study",
    "frontier": "study",
    "tuning": "tuning",
    "advantages": "tuning",
    "own_environment": "laptop",
}
SCALES = PAPER | OURS
PARTS = ("Question", "Answer", "In the paper")
_TITLE = """\
# All notebooks

What each notebook asks, what it found, and one of its figures: first the paper's tables and figures in the paper's
order, then what this project adds. [`REPRODUCE.md`](../REPRODUCE.md) lists raw files and commands. `make report` runs
all notebooks and makes a site of them in `build/report/`.

This page repeats the first cells of the notebooks; `python -m pipeline.report --index` writes it again."""


@dataclass(frozen=True)
class Opening:
    """What the first cell of a notebook says.

    Attributes:
        title: the heading, without `#`.
        parts: the text of each of `PARTS`, without its label.
        picture: a Markdown image.
    """

    title: str
    parts: dict[str, str]
    picture: str


def markdown_cells(path: Path) -> list[str]:
    """The text of each Markdown cell of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def opening(path: Path) -> Opening:
    """Reads a notebook's first cell.

    Raises:
        UserError: the cell lacks one of its parts.
    """
    paragraphs = markdown_cells(path)[0].split("\n\n")
    parts = {}
    for part in PARTS:
        label = f"**{part}.** "
        found = [text.removeprefix(label) for text in paragraphs if text.startswith(label)]
        if len(found) != 1:
            raise UserError(f"{path}: the first cell needs one paragraph that begins with {label.strip()}")
        parts[part] = found[0]
    pictures = [text for text in paragraphs if re.fullmatch(r"!\[[^\]]+\]\([^)]+\)", text)]
    if len(pictures) != 1 or not paragraphs[0].startswith("# "):
        raise UserError(f"{path}: the first cell needs a title and one picture in a paragraph of its own")
    return Opening(paragraphs[0].removeprefix("# "), parts, pictures[0])


def sections(notebooks: Path) -> list[str]:
    """The Markdown cells of the index, one for each notebook and a heading for each of the two groups.

    Args:
        notebooks: the folder that holds them.
    """
    cells = [_TITLE]
    for heading, group in (("## The paper's tables and figures", PAPER), ("## What this project adds", OURS)):
        cells.append(heading)
        for name, scale in group.items():
            found = opening(notebooks / f"{name}.ipynb")
            texts = "\n\n".join(f"**{part}.** {found.parts[part]}" for part in PARTS)
            source = f"Drawn from the results of the scale `{scale}`."
            cells.append(f"### [{found.title}]({name}.ipynb)\n\n{texts}\n\n{found.picture}\n\n{source}")
    return cells


def write(notebooks: Path) -> Path:
    """Writes the index and returns its path."""
    cells = [
        {"cell_type": "markdown", "id": f"index-{number:02}", "metadata": {}, "source": text.splitlines(keepends=True)}
        for number, text in enumerate(sections(notebooks))
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path = notebooks / f"{NAME}.ipynb"
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
