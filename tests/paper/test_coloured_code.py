"""Code whose tokens are coloured by a value: where each token is drawn, and in which colour."""

import matplotlib
import matplotlib.pyplot as plt
import pytest

from etpo_paper.base import paths
from etpo_paper.report import plotting
from etpo_paper.report.coloured_code import code_height, coloured_code, credit_colours


@pytest.fixture(autouse=True)
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")


PIECES = ["    ", "cost", "$1$", " =", " \tx", "\n   ", " y", "\n", ""]


def draw_code(values, scale=1.0, width=6.0, name="code"):
    plotting.use_style()
    figure = plt.figure(figsize=(width, 2))
    axes = figure.add_axes([0, 0, 1, 1])
    coloured_code(axes, PIECES, values, credit_colours(scale))
    texts = [(text.get_text(), text.get_position()) for text in axes.texts]
    boxes = [(patch.get_xy(), patch.get_width(), patch.get_facecolor()) for patch in axes.patches]
    assert axes.get_xlim() == (0, pytest.approx(width / 0.06))
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
    assert good[0] < better[0] < 1, "half as good is less blue"
    assert boxes[5][2] == boxes[6][2] != white, "a token on two lines has its colour on both"
    assert boxes[7][2] == good, "what lies beyond the scale has the full colour"


def test_colours_are_linear_near_zero_and_logarithmic_beyond():
    def blueness(*values):
        return [1 - red for red, *_ in credit_colours(2.0).to_rgba(values)]

    small, twice, tenth, one = blueness(0.01, 0.02, 0.1, 1.0)
    assert 2 * small == pytest.approx(twice, abs=0.01)
    steps = [b - a for a, b in zip(blueness(0.02, 0.06, 0.18), blueness(0.06, 0.18, 0.54), strict=True)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.01), "a factor has one step of colour anywhere"
    assert one < 2.5 * tenth
    ends = credit_colours(2.0).to_rgba([-2.0, 0.0, 2.0])
    assert ends[1].tolist() == [1, 1, 1, 1] and ends[0][0] > ends[0][2] and ends[2][2] > ends[2][0]


def test_coloured_code_breaks_long_lines_and_says_its_height():
    texts, boxes, _ = draw_code([0] * 9, width=0.6)  # ten letters wide
    assert [text for text, _ in texts if text] == ["cost", "$1", "↪ ", "$", "=", "x", "↵", "y", "↵", "∎"]
    assert [at for at, _, _ in boxes] == [
        (0, 0), (4, 0), (8, 0), (2, 1), (3, 1), (5, 1), (10, 1), (0, 2), (3, 2), (5, 2), (0, 3),
    ]  # fmt: skip
    assert code_height(PIECES, 0.6) == pytest.approx(4 * 2.3 * 0.06)
    assert code_height(["x" * 10, "\n"], 0.6) == code_height(["x", "\n"], 0.6)
    assert code_height(["x" * 26], 0.6) == pytest.approx(3 * 2.3 * 0.06)  # 10 + 8 + 8
    assert code_height(["x" * 27], 0.6) == pytest.approx(4 * 2.3 * 0.06)


def test_coloured_code_is_byte_stable():
    values = [0.1 * k for k in range(9)]
    first = draw_code(values)[2]
    matplotlib.rcParams["font.monospace"] = ["cmtt10"]
    matplotlib.rcParams["font.size"] = 30
    assert draw_code(values)[2] == first
    assert draw_code(values[::-1])[2] != first
