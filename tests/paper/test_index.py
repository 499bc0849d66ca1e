"""The index of the notebooks says what their first cells say."""

import json

import fixtures_results as fixtures
import pytest

from etpo_core.errors import UserError
from etpo_paper.report import index

NOTEBOOKS = fixtures.CHECKOUT / "notebooks"
FIRST = """\
# Two

**Question.** Is one plus one
two?

**Answer.** Yes.

**In the paper.** No.

![A sum](../figures/a.png)"""


def notebook(path, *cells):
    book = {"cells": [{"cell_type": kind, "source": text.splitlines(keepends=True)} for kind, text in cells]}
    path.write_text(json.dumps(book))
    return path


def test_the_first_cell_is_read(tmp_path):
    path = notebook(tmp_path / "a.ipynb", ("markdown", FIRST), ("code", "1"), ("markdown", "end"))
    found = index.opening(path)
    assert (found.title, found.picture) == ("Two", "![A sum](../figures/a.png)")
    assert found.parts == {"Question": "Is one plus one\ntwo?", "Answer": "Yes.", "In the paper": "No."}
    assert index.markdown_cells(path) == [FIRST, "end"]


@pytest.mark.parametrize(
    ("part", "named"),
    [("**Answer.**", "Answer"), ("**In the paper.**", "In the paper"), ("![A", "picture"), ("# T", "title")],
)
def test_a_first_cell_without_a_part_is_one_line(tmp_path, part, named):
    path = notebook(tmp_path / "a.ipynb", ("markdown", FIRST.replace(part, "gone")))
    with pytest.raises(UserError, match=named):
        index.opening(path)


def test_every_notebook_is_in_the_index_once():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {index.NAME, *index.PAPER, *index.OURS}
    assert not set(index.PAPER) & set(index.OURS)


def test_the_committed_index_is_what_the_notebooks_say(tmp_path):
    for path in NOTEBOOKS.glob("*.ipynb"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "00_index.ipynb").unlink()
    written = index.write(tmp_path).read_text(encoding="utf-8")
    committed = (NOTEBOOKS / "00_index.ipynb").read_text(encoding="utf-8")
    assert written == committed, "write it again: python -m pipeline.report --index"
    assert written.index("best program within K") < written.index("highest reward of each") < written.index("Credit:")
