"""Figures: the same bytes every time, and a look of its own for every method."""

import hashlib

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from etpo_paper.base import paths
from etpo_paper.report import names, plotting
from etpo_paper.report.statistics import Interval


@pytest.fixture(autouse=True)
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    return tmp_path / "figures"


def draw():
    plotting.use_style()
    figure, axes = plt.subplots()
    curve = Interval(np.array([0.5, 0.8]), np.array([0.4, 0.7]), np.array([0.6, 0.9]))
    plotting.draw_curves(axes, np.array([1, 2]), {"etpo": curve})
    axes.legend()
    plotting.footnote(figure, [names.STAND_IN_NOTE, ""])
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
    for look in (names.label, plotting.colour, plotting.line_style):
        assert len({str(look(method)) for method in names.LABELS}) == len(names.LABELS)
    assert names.ordered(["etpo", "zzz", "reflection", "etpo"]) == ["reflection", "etpo", "zzz"]
    assert names.label("zzz") == "zzz"


def test_stand_ins_are_marked():
    assert names.task_label("kidney-stone", "urine") == "kidney-stone†"
    assert names.task_label("diabetes", None) == names.task_label("diabetes", float("nan")) == "diabetes"
    assert names.task_label("diabetes", False) == names.task_label("diabetes", "") == "diabetes"


def interval(*points):
    point = np.array(points, dtype=float)
    return Interval(point, point - 0.1, point + 0.1)


def test_curves_of_different_lengths_share_their_beginning():
    plotting.use_style()
    figure, axes = plt.subplots()
    curves = {"etpo": interval(0.1, 0.2, 0.3), "ppo_kl": interval(0.5, 0.4)}
    plotting.draw_curves(axes, plotting.counting(curves), curves, drawstyle="steps-post")
    drawn = [(line.get_label(), line.get_xdata().tolist(), line.get_drawstyle()) for line in axes.get_lines()]
    assert drawn == [("ETPO", [1, 2, 3], "steps-post"), ("PPO-KL", [1, 2], "steps-post")]
    assert len(axes.collections) == 2, "a band for each"
    plt.close(figure)


def test_the_axis_shows_where_rising_curves_differ():
    figure, axes = plt.subplots()
    flat, rising = np.full(20, 0.8), np.concatenate([[-1.0, -1.0], np.linspace(0.6, 0.9, 18)])
    plotting.show_differences(axes, {"etpo": interval(*rising), "reflection": interval(*flat)})
    # From the third of twenty points on: 0.6 to 0.9, and 15 % of the difference on either side.
    assert axes.get_ylim() == pytest.approx((0.6 - 0.045, 0.9 + 0.045))
    plt.close(figure)


@pytest.mark.parametrize(("count", "shape", "labelled"), [(1, (1, 1), 1), (3, (1, 3), 3), (4, (2, 3), 3)])
def test_panels_fill_a_grid_and_the_lowest_are_labelled(count, shape, labelled):
    figure, used = plotting.panels(count, 3, 2.0, 1.5, "reward")
    plotting.label_lowest(used, 3, "update")
    assert len(used) == count and len(figure.axes) == shape[0] * shape[1]
    assert [axes.axison for axes in figure.axes] == [True] * count + [False] * (len(figure.axes) - count)
    assert tuple(figure.get_size_inches()) == pytest.approx((2.0 * shape[1] + 0.4, 1.5 * shape[0] + 0.4))
    assert [axes.get_xlabel() for axes in used] == [""] * (count - labelled) + ["update"] * labelled
    assert [axes.get_ylabel() for axes in used] == ["reward" if k % shape[1] == 0 else "" for k in range(count)]
    plt.close(figure)


def test_a_legend_above_names_each_line_once():
    figure, used = plotting.panels(2, 2, 2.0, 1.5, "reward")
    used[0].plot([1, 2], [1, 2], label="a")
    used[1].plot([1, 2], [1, 2], label="b")
    used[1].plot([1, 2], [1, 2], label="a")
    plotting.legend_above(figure, used)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    plt.close(figure)


def test_an_axis_of_scores_spans_no_less_than_a_twentieth():
    figure, axes = plt.subplots()
    plotting.show_differences(axes, {"etpo": interval(*np.full(20, 0.868)), "ppo_kl": interval(*np.full(20, 0.866))})
    assert axes.get_ylim() == pytest.approx((0.867 - 0.025, 0.867 + 0.025))
    plt.close(figure)


def test_ends_have_a_row_each_and_no_line_without_an_interval():
    figure, axes = plt.subplots()
    ends = {"ppo_kl": interval(0.5), "etpo": Interval(np.array(0.5), np.array(np.nan), np.array(np.nan))}
    plotting.draw_ends(axes, {method: Interval(*(part.squeeze() for part in end)) for method, end in ends.items()})
    assert [text.get_text() for text in axes.get_yticklabels()] == ["PPO-KL", "ETPO"]
    drawn = [(line.get_xdata(), line.get_ydata()) for line in axes.get_lines()]
    assert [list(y) for _, y in drawn] == [[0, 0], [0], [1]] and drawn[0][0] == pytest.approx([0.4, 0.6])
    plt.close(figure)
    figure, axes = plt.subplots()
    plotting.draw_ends(axes, {"etpo": Interval(*(np.array(end) for end in (0.5, 0.499, 0.501)))})
    assert axes.get_xlim() == pytest.approx((0.49, 0.51))
    plt.close(figure)


def test_a_legend_is_no_wider_than_its_figure():
    plotting.use_style()
    figure, used = plotting.panels(1, 1, 5.1, 1.5, "reward")
    for method in names.LABELS:
        used[0].plot([1, 2], [1, 2], **plotting.line(method))
    plotting.legend_above(figure, used)
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(names.LABELS)
    assert legend.get_window_extent().width <= figure.bbox.width
    plt.close(figure)


@pytest.mark.parametrize("method", names.LABELS)
def test_a_legend_shows_a_dash_pattern_twice(method):
    plotting.use_style()
    figure, axes = plt.subplots()
    (line,) = axes.plot([1, 2], [1, 2], **plotting.line(method))
    pattern = line._dash_pattern[1] or (0.0,)
    handle = matplotlib.rcParams["legend.handlelength"] * matplotlib.rcParams["legend.fontsize"]
    assert handle >= 1.9 * sum(pattern), "in points"
    plt.close(figure)


def test_a_dashed_line_lies_over_a_solid_one_and_so_is_seen_where_they_meet():
    assert plotting.line_style("etpo") == "-"
    dashed = [plotting.line(method)["zorder"] for method in names.LABELS if method != "etpo"]
    assert min(dashed) > plotting.line("etpo")["zorder"]


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
