"""The site of rendered notebooks: two small ones are executed and rendered, offline and without writing figures."""

import json
import re

import fixtures_results as fixtures
import pytest
from stages import InThisProcess

from etpo_core.errors import UserError
from etpo_paper.report import index, pages
from pipeline import report

PICTURE = bytes.fromhex("89504e470d0a1a0a")
ABOVE = ("markdown", "# A sum\n\n**Question.** Is $1 + 1 < 3$?\n\n![A figure](../figures/a.png)")
SCALE = ("code", 'scale = "smoke"')
DRAWS = (
    "code",
    "from etpo_paper.base import paths\n(paths.FIGURES / scale).mkdir(parents=True)\n"
    '(paths.FIGURES / scale / "a.csv").write_text("1")\nprint(scale)',
)
LACKS = (
    "code",
    'from etpo_core.errors import UserError\nraise UserError("no <table>; make it: python -m pipeline.data")',
)
FAILS = ("code", "1 / 0")


def write(root, name, *cells):
    book = {"cells": [], "metadata": {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}}
    for number, (kind, text) in enumerate(cells):
        cell = {"cell_type": kind, "id": f"c{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        book["cells"].append(cell | ({"outputs": [], "execution_count": None} if kind == "code" else {}))
    book["cells"][1]["metadata"] = {"tags": ["parameters"]} if cells[1][0] == "code" else {}
    (root / "notebooks" / f"{name}.ipynb").write_text(json.dumps(book | {"nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture
def root(tmp_path, at, monkeypatch):
    """A root with three notebooks and an index, where the stage `figures` runs in this process."""
    root = tmp_path / "root"
    (root / "notebooks").mkdir(parents=True)
    fixtures.make_root(root)
    (root / "figures").mkdir()
    (root / "figures" / "a.png").write_bytes(PICTURE)
    write(root, "draws", ABOVE, SCALE, DRAWS, ("markdown", "[next](lacks.ipynb), [file](../params.yaml)"))
    write(root, "lacks", ABOVE, SCALE, LACKS)
    write(root, "fails", ABOVE, SCALE, FAILS)
    write(
        root, "00_index", ("markdown", "# All\n\n[A sum](draws.ipynb)"), ("markdown", "![A figure](../figures/a.png)")
    )
    at(root)

    def run(command, **options):  # as the process would: with the folders that the environment names
        from pathlib import Path

        from stages import move, run_module

        with pytest.MonkeyPatch.context() as patch, InThisProcess():
            move(patch, Path(options["env"]["ETPO_ROOT"]))
            return run_module(*command[2:])

    monkeypatch.setattr(report.subprocess, "run", run)
    monkeypatch.setattr(report, "WORKERS", 1)  # of threads, which would move the folders of one another
    return root


def test_two_notebooks_become_pages_that_need_nothing_else(root):
    before = sorted(path for path in root.rglob("*") if path.is_file())
    said = report.build({"draws": "smoke", "lacks": "smoke"})
    assert said == [
        "draws: executed with the results of smoke.",
        "lacks: not executed here: no <table>; make it: python -m pipeline.data",
    ]
    site = root / "build" / "report"
    assert sorted(path for path in root.rglob("*") if path.is_file() and site not in path.parents) == before
    assert sorted(path.name for path in site.iterdir()) == ["draws.html", "index.html", "lacks.html"]
    texts = {path.stem: path.read_text() for path in site.iterdir()}
    for text in texts.values():
        assert "<script" not in text and not re.search(r'(?:src|href)="(?:https?:)?//', text)
    assert 'aria-label="1 + 1 &lt; 3"' in texts["draws"] and "paths</span>" in texts["draws"]
    assert 'href="lacks.html">next' in texts["draws"] and 'href="../../params.yaml">file' in texts["draws"]
    assert "<img" not in texts["draws"]  # it draws its figure itself
    assert (
        "no &lt;table&gt;; make it" in texts["lacks"] and 'src="data:image/png;base64,iVBORw0KGgo="' in texts["lacks"]
    )
    assert 'href="draws.html">A sum' in texts["index"] and "data:image/png;base64,iVBORw0KGgo=" in texts["index"]


def test_each_kind_of_output_is_shown(tmp_path):
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["a < ", "b"]},
        {"output_type": "stream", "name": "stderr", "text": ["a warning"]},
        {"output_type": "execute_result", "data": {"text/html": ["<table></table>"], "text/plain": ["plain"]}},
        {"output_type": "execute_result", "data": {"text/markdown": "| a |\n|---|\n| $x$ |", "text/plain": "plain"}},
        {"output_type": "display_data", "data": {"image/png": "aGk=\n", "text/plain": "plain"}},
        {"output_type": "execute_result", "data": {"text/plain": "<3>"}},
    ]
    cell = {"cell_type": "code", "source": ["1"], "outputs": outputs}
    _, printed, warning, table, text, picture, plain = pages.cells({"cells": [cell]}, tmp_path, drawn=True)
    assert (
        printed == '<pre class="out">a &lt; b</pre>' and warning == "" and plain == '<pre class="out">&lt;3&gt;</pre>'
    )
    assert table == '<div class="wide"><table></table></div>' and 'src="data:image/png;base64,aGk="' in picture
    assert text.startswith('<div class="wide"><table>') and 'aria-label="x"' in text


def test_a_cell_that_fails_is_one_line_and_leaves_the_site_as_it_was(root):
    old = root / "build" / "report" / "index.html"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    with pytest.raises(UserError, match=r"notebook fails: .*ZeroDivisionError: division by zero"):
        report.build({"fails": "smoke"})
    assert old.read_text() == "old"


@pytest.mark.parametrize("name", [index.NAME, *index.SCALES])
def test_every_equation_of_the_notebooks_can_be_drawn(name):
    notebooks = fixtures.CHECKOUT / "notebooks"
    texts = index.markdown_cells(notebooks / f"{name}.ipynb")
    drawn = "".join(pages.markdown(text, notebooks) for text in texts)
    assert "$" not in re.sub(r"<(?:pre|code)\b.*?</(?:pre|code)>|aria-label=\"[^\"]*\"", "", drawn, flags=re.DOTALL)
    assert drawn.count('class="equation math"') == sum(text.count("$$") for text in texts) / 2


@pytest.mark.parametrize("tex", [r"\left( \sum_{j} p \right)", r"\begin{cases} a & b\\[2pt] c & d \end{cases}"])
def test_an_equation_that_the_library_draws_wrongly_is_written_differently(tex):
    drawn = pages.equation(tex, display=True)
    assert float(re.search(r'height="([\d.]+)', drawn)[1]) < 60


def test_an_equation_that_cannot_be_drawn_is_one_line():
    with pytest.raises(UserError, match="cannot be drawn"):
        pages.equation(r"\frac{1}{", display=True)
    with pytest.raises(UserError, match="em high; write it differently"):
        pages.equation(r"\left( \max_{j} \bigcup_{j} p \right)", display=True)
