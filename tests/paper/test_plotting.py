"""Figures and tables: the same bytes every time, and cells as a reader sees them."""

import hashlib

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from etpo_paper.base import paths
from etpo_paper.report import plotting


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


PIECES = ["    ", "cost", "$1$", " =", " \tx", "\n   ", " y", "\n", ""]


def draw_code(values, scale=1.0, width=6.0, name="code"):
    plotting.use_style()
    figure = plt.figure(figsize=(width, 2))
    axes = figure.add_axes([0, 0, 1, 1])
    colours = plotting.coloured_code(axes, PIECES, values, scale)
    texts = [(text.get_text(), text.get_position()) for text in axes.texts]
    boxes = [(patch.get_xy(), patch.get_width(), patch.get_facecolor()) for patch in axes.patches]
    assert axes.get_xlim() == (0, pytest.approx(width / 0.06)) and colours.get_clim() == (-scale, scale)
    written = plotting.save_figure(figure, "smoke", "test", name)
    assert not any(text.get_parse_math() for text in axes.texts), "a $ in code is a $"
    for dpi in (100, 150):  # on screen and in the file: the letters fill their background and do not leave it
        figure.set_dpi(dpi)
        figure.canvas.draw()
        for text in axes.texts:
            room = len(text.get_text()) * 0.06 * dpi
            assert abs(text.get_window_extent(figure.canvas.get_renderer()).width - room) < 0.2 * 0.06 * dpi
    plt.close(figure)
    return texts, boxes, [path.read_bytes() for path in written]


def test_coloured_code_puts_each_token_on_its_colour_line_by_line():
    values = [0, -1, 1, 0.5, 0, -0.5, 2, 0, 0]
    texts, boxes, _ = draw_code(values)
    assert [text for text, _ in texts if text] == ["cost", "$1$", "=", "x", "↵", "y", "↵", "∎"]
    assert [at for at, _, _ in boxes] == [
        (0, 0), (4, 0), (8, 0), (11, 0), (13, 0), (18, 0), (0, 1), (3, 1), (5, 1), (0, 2),
    ]  # fmt: skip
    assert [width for _, width, _ in boxes] == [4, 4, 3, 2, 5, 1, 3, 2, 1, 1]
    white, bad, good, better = (boxes[k][2] for k in (0, 1, 2, 3))
    assert white == (1, 1, 1, 1)
    assert bad[0] > bad[2] and good[2] > good[0], "worse is orange, better is blue"
    assert good[0] < better[0] < 1, "half as good is half as blue"
    assert boxes[5][2] == boxes[6][2] != white, "a token on two lines has its colour on both"
    assert boxes[7][2] == good, "what lies beyond the scale has the full colour"
    assert draw_code([v * 10 for v in values], scale=10.0)[1] == boxes


def test_coloured_code_breaks_long_lines_and_says_its_height():
    texts, boxes, _ = draw_code([0] * 9, width=0.6)  # ten letters wide
    assert [text for text, _ in texts if text] == ["cost", "$1", "↪ ", "$", "=", "x", "↵", "y", "↵", "∎"]
    assert [at for at, _, _ in boxes] == [
        (0, 0), (4, 0), (8, 0), (2, 1), (3, 1), (5, 1), (10, 1), (0, 2), (3, 2), (5, 2), (0, 3),
    ]  # fmt: skip
    assert plotting.code_height(PIECES, 0.6) == pytest.approx(4 * 2.3 * 0.06)
    assert plotting.code_height(["x" * 10, "\n"], 0.6) == plotting.code_height(["x", "\n"], 0.6)
    assert plotting.code_height(["x" * 26], 0.6) == pytest.approx(3 * 2.3 * 0.06)  # 10 + 8 + 8
    assert plotting.code_height(["x" * 27], 0.6) == pytest.approx(4 * 2.3 * 0.06)


def test_coloured_code_is_byte_stable():
    values = [0.1 * k for k in range(9)]
    first = draw_code(values)[2]
    matplotlib.rcParams["font.monospace"] = ["cmtt10"]
    matplotlib.rcParams["font.size"] = 30
    assert draw_code(values)[2] == first
    assert draw_code(values[::-1])[2] != first


def test_a_footnote_is_no_wider_than_its_figure(figures):
    def width(note):
        figure, axes = plt.subplots()
        axes.plot([1, 2], [0.5, 0.8])
        plotting.footnote(figure, [note])
        png = plotting.save_figure(figure, "smoke", "test", "wide")[0]
        plt.close(figure)
        return plt.imread(png).shape[1]

    plotting.use_style()
    assert width("kidney-stone seed 0, " * 30) == width("short")
