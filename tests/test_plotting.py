"""Figures and tables: the same bytes every time, and cells as a reader sees them."""

import hashlib

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from etpo_core import paths, plotting


@pytest.fixture(autouse=True)
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    return tmp_path / "figures"


def draw():
    plotting.use_style()
    figure, axes = plt.subplots()
    axes.plot([1, 2], [0.5, 0.8], **plotting.line("etpo"))
    plotting.band(axes, [1, 2], [0.4, 0.7], [0.6, 0.9], "etpo")
    axes.legend()
    plotting.footnote(figure, [plotting.STAND_IN_NOTE, ""])
    written = plotting.save_figure(figure, "smoke", "test", "curve")
    plt.close(figure)
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in written]


def test_figures_are_byte_stable_whatever_the_users_settings(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    first = draw()
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    matplotlib.rcParams["font.size"] = 30
    matplotlib.rcParams["savefig.facecolor"] = "red"
    assert draw() == first


def test_figure_files_lie_where_they_should(figures):
    draw()
    assert sorted(path.name for path in (figures / "smoke" / "test").iterdir()) == ["curve.pdf", "curve.png"]
    pdf = (figures / "smoke" / "test" / "curve.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"CreationDate" not in pdf


def test_methods_have_distinct_names_colours_and_lines():
    for look in (plotting.label, plotting.colour, plotting.line_style):
        assert len({str(look(method)) for method in plotting.LABELS}) == len(plotting.LABELS)
    assert plotting.ordered(["etpo", "zzz", "reflection", "etpo"]) == ["reflection", "etpo", "zzz"]
    assert plotting.label("zzz") == "zzz"


def test_stand_ins_are_marked():
    assert plotting.mark("kidney-stone", "urine") == "kidney-stone†"
    assert plotting.mark("diabetes", None) == plotting.mark("diabetes", float("nan")) == "diabetes"
    assert plotting.mark("diabetes", False) == plotting.mark("diabetes", "") == "diabetes"


def test_table_in_three_formats(figures):
    frame = pd.DataFrame({"task": ["a_b†", "c|d"], "score": [0.123456789, float("nan")], "n": [1, 2]})
    text = plotting.save_table(frame, "smoke", "test", "t", caption="5 % of & all", notes=["† note"], digits=2)
    place = figures / "smoke" / "test"
    assert (place / "t.csv").read_text() == "task,score,n\na_b†,0.123457,1\nc|d,,2\n"
    assert text == (place / "t.md").read_text()
    assert text.splitlines() == [
        "5 % of & all", "", "| task | score | n |", "| --- | --- | --- |", "| a_b† | 0.12 | 1 |",
        "| c\\|d | – | 2 |", "", "† note",
    ]  # fmt: skip
    tex = (place / "t.tex").read_text()
    assert r"\caption{5 \% of \& all}" in tex
    assert r"a\_b$^\dagger$ & 0.12 & 1 \\" in tex
    assert "c|d & -- & 2" in tex


def test_bold_and_code_cells():
    frame = pd.DataFrame({"cell": ["**0.9** ± 0.1", "x = {1}\ny = 2"]})
    assert "| **0.9** ± 0.1 |" in plotting.markdown(frame)
    assert "| x = {1}<br>y = 2 |" in plotting.markdown(frame)
    tex = plotting.latex(frame)
    assert r"\textbf{0.9} $\pm$ 0.1 \\" in tex
    assert r"x = \{1\}; y = 2 \\" in tex
