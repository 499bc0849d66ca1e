"""How every figure and table of the project looks and is written.

A notebook draws with matplotlib after `use_style()` and hands the figure to `save_figure`, a frame to
`save_table`. Both write below `figures/{scale}/{notebook}/` and both are byte-stable: the same numbers give
the same files, on any day and whatever the user's matplotlib settings are, so that a figure can be deleted,
drawn again and compared. Names, colours and line styles of the methods are fixed here and nowhere else
(palette of Okabe and Ito, which colour-blind readers can tell apart; line styles differ too, for print in
black and white). Tasks whose data are a declared stand-in carry a dagger wherever a number of theirs
appears.
"""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from etpo_paper.base import paths

# In the order of every legend and table: baselines without training first, ablations last.
LABELS = {
    "reflection_gpt4": "Reflection (GPT-4)",
    "reflection": "Reflection",
    "ppo_no_kl": "PPO without KL",
    "ppo_kl": "PPO-KL",
    "ppo_kl_memory": "PPO-KL with memory",
    "ntpo": "NTPO",
    "poad": "POAD",
    "released": "Released code",
    "etpo": "ETPO",
    "etpo_memory": "ETPO with memory",
    "etpo_center_memory": "ETPO centred, with memory",
    "etpo_no_reflection": "ETPO without reflection",
    "etpo_action_level": "ETPO without token-level backup",
}
_COLOURS = {
    "reflection_gpt4": "#000000",
    "reflection": "#8A8A8A",
    "ppo_no_kl": "#7F6A5D",
    "ppo_kl": "#0072B2",
    "ppo_kl_memory": "#003B5C",
    "ntpo": "#B8A300",
    "poad": "#56B4E9",
    "released": "#CC79A7",
    "etpo": "#D55E00",
    "etpo_memory": "#8C2D04",
    "etpo_center_memory": "#B40068",
    "etpo_no_reflection": "#E69F00",
    "etpo_action_level": "#009E73",
}
_LINES: dict[str, Any] = {
    "reflection_gpt4": ":",
    "reflection": (0, (5, 1.5)),
    "ppo_no_kl": (0, (1, 2)),
    "ppo_kl": "-.",
    "ppo_kl_memory": (0, (6, 1, 1, 1, 1, 1)),
    "ntpo": (0, (4, 1, 1, 1)),
    "poad": (0, (2, 1)),
    "released": (0, (1, 1)),
    "etpo": "-",
    "etpo_memory": (0, (6, 1, 1, 1)),
    "etpo_center_memory": (0, (9, 1.5)),
    "etpo_no_reflection": (0, (3, 1, 1, 1, 1, 1)),
    "etpo_action_level": (0, (7, 2)),
}
_OTHER_COLOUR = "#7B3294"
CHARACTERS_AN_INCH = 17  # of a footnote, about

# Classes of a data set, in order: shades that differ in lightness.
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8A8A8A")

# Bad, indifferent, good; the ends are light enough for black text on them. An odd number of shades has a middle: white.
_CREDIT_COLOURS = LinearSegmentedColormap.from_list("credit", ["#EC7F3C", "#FFFFFF", "#5FABDD"], N=257)

_CODE_FONT = "DejaVu Sans Mono"  # ships with matplotlib, too
# Inches. A whole number of dots both on screen and in `_DPI`: a renderer that places letters on whole dots would
# otherwise write a token wider than its background.
_GLYPH = 0.06
_GLYPH_IN_SIZES = 1233 / 2048  # of the font
_LINE = 2.3 * _GLYPH  # from line to line
_CONTINUED, _NEW_LINE, _END = "↪ ", "↵", "∎"

DAGGER = "†"
STAND_IN_NOTE = f"{DAGGER} stand-in data, not the paper's: the table is replaced by a declared substitute."

_STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs on every machine
    "mathtext.fontset": "dejavusans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "figure.figsize": (6.4, 3.8),
    "figure.dpi": 100,
    "pdf.fonttype": 42,  # text stays text
}
_DPI = 150


def use_style() -> None:
    """Sets the one style, after dropping whatever a user's matplotlibrc says; call before drawing."""
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_STYLE)
    if matplotlib.get_backend().lower() not in ("agg", "inline", "module://matplotlib_inline.backend_inline"):
        plt.switch_backend("Agg")  # no window system is needed, or wanted, in a pipeline


def ordered(methods: Iterable[str]) -> list[str]:
    """The methods in the order of every legend and table; unlisted ones follow by name."""
    rank = {name: position for position, name in enumerate(LABELS)}
    return sorted(set(methods), key=lambda name: (rank.get(name, len(rank)), name))


def label(method: str) -> str:
    """The name a reader sees, e.g. "PPO-KL" for `ppo_kl`."""
    return LABELS.get(method, method)


def colour(method: str) -> str:
    """The method's colour, the same in every figure."""
    return _COLOURS.get(method, _OTHER_COLOUR)


def line_style(method: str) -> Any:
    """The method's matplotlib line style, the same in every figure."""
    return _LINES.get(method, "-")


def line(method: str) -> dict[str, Any]:
    """Keyword arguments for `Axes.plot`: colour, line style and label of a method."""
    return {"color": colour(method), "linestyle": line_style(method), "label": label(method)}


def mark(task: str, stand_in: bool | str | None) -> str:
    """The task's name as shown, with a dagger where its data are a stand-in."""
    missing = stand_in is None or (isinstance(stand_in, float) and math.isnan(stand_in))
    return f"{task}{DAGGER}" if not missing and stand_in else task


def counted(number: int, thing: str) -> str:
    """A number with its noun, e.g. "1 task" or "4 tasks"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def band(axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], method: str) -> None:
    """Shades an interval [low, high] around a method's curve."""
    axes.fill_between(x, low, high, color=colour(method), alpha=0.18, linewidth=0)


def whole_numbers(axes: Axes) -> None:
    """Keeps the ticks of the x axis at whole numbers: updates and steps have no halves."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def coloured_code(axes: Axes, pieces: Sequence[str], values: Sequence[float], scale: float) -> ScalarMappable:
    """Draws tokens as text, line by line, each on a background that says its value.

    A line break is drawn as the sign ↵ and the end token as ∎, so that they show their colour as well; a line that is
    wider than the axes goes on behind ↪. Letters have one size and lines begin at the top, so the axes must have their
    final size; `code_height` says how high they should be.

    Args:
        axes: where; its limits are set, its ticks and frame are taken away.
        pieces: text of each token, [tokens]; the end token is "".
        values: of each token, [tokens].
        scale: > 0, the value at which the colour is full; 0 is white, and -scale is full on the other side.

    Returns:
        What `Figure.colorbar` wants.
    """
    colours = ScalarMappable(Normalize(-scale, scale), _CREDIT_COLOURS)
    backgrounds = colours.to_rgba(np.asarray(values, dtype=float))
    place, dots = axes.get_window_extent(), axes.figure.dpi
    width, height = place.width / dots, place.height / dots
    axes.set_xlim(0, width / _GLYPH)
    axes.set_ylim(height / _LINE, 0)
    axes.set_axis_off()
    for line, segments in enumerate(_code_lines(pieces, width)):
        column = 0
        for token, text in segments:
            if token is not None:
                box = {"facecolor": backgrounds[token], "edgecolor": "#DDDDDD", "linewidth": 0.3}
                axes.add_patch(Rectangle((column, line), len(text), 1, clip_on=False, **box))
            shown = text.lstrip(" ")
            axes.text(
                column + len(text) - len(shown),
                line + 0.72,
                shown,
                family=_CODE_FONT,
                fontsize=72 * _GLYPH / _GLYPH_IN_SIZES,
                color="#777777" if text in (_CONTINUED, _NEW_LINE, _END) else "black",
                parse_math=False,  # a $ in code is a $
            )
            column += len(text)
    return colours


def code_height(pieces: Sequence[str], width: float) -> float:
    """The height that `coloured_code` needs for some tokens in axes of a width, both in inches."""
    return len(_code_lines(pieces, width)) * _LINE


def _code_lines(pieces: Sequence[str], width: float) -> list[list[tuple[int | None, str]]]:
    # Lines of (token, text); a token may lie on several lines, and a sign that is no token's has None.
    columns = int(width / _GLYPH + 1e-6)
    lines: list[list[tuple[int | None, str]]] = [[]]
    room = columns
    for token, piece in enumerate(pieces):
        parts = piece.expandtabs(4).replace("\n", f"{_NEW_LINE}\n").split("\n") if piece else [_END]
        for number, part in enumerate(parts):
            if number > 0:
                lines.append([])
                room = columns
            text = "".join(c if c.isprintable() else "·" for c in part)
            # The sign of a line break may stand in the margin: it alone is no reason for another line.
            while len(text.removesuffix(_NEW_LINE)) > room:
                if room:
                    lines[-1].append((token, text[:room]))
                text = text[room:]
                lines.append([(None, _CONTINUED)])
                room = columns - len(_CONTINUED)
            if text:
                lines[-1].append((token, text))
                room -= len(text)
    return lines


def footnote(figure: Figure, lines: Iterable[str]) -> None:
    """Writes small lines under a figure: what is missing, what is a stand-in, how many seeds.

    A line longer than the figure is wide is broken: a figure is saved as wide as what stands on it.
    """
    width = int(CHARACTERS_AN_INCH * figure.get_figwidth())
    text = "\n".join(textwrap.fill(entry, width) for entry in lines if entry)
    if text:
        figure.text(0.01, -0.02, text, ha="left", va="top", fontsize=7, color="#444444")


def folder(scale: str, notebook: str) -> Path:
    """The folder of a notebook's figures and tables at a scale; made if absent."""
    place = paths.FIGURES / scale / notebook
    place.mkdir(parents=True, exist_ok=True)
    return place


def save_figure(figure: Figure, scale: str, notebook: str, name: str) -> list[Path]:
    """Writes a figure as PNG and PDF, the same bytes for the same drawing.

    Args:
        figure: what to write; it stays open, so that a notebook still shows it.
        scale: e.g. "laptop".
        notebook: name of the notebook, e.g. "main_table".
        name: file name without ending.

    Returns:
        The two paths, PNG first.
    """
    place = folder(scale, notebook)
    png, pdf = place / f"{name}.png", place / f"{name}.pdf"
    # Dates and version strings are left out: they would change the bytes without changing the figure.
    figure.savefig(png, dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    figure.savefig(pdf, bbox_inches="tight", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return [png, pdf]


def save_table(
    frame: pd.DataFrame,
    scale: str,
    notebook: str,
    name: str,
    caption: str = "",
    display: pd.DataFrame | None = None,
    notes: Sequence[str] = (),
    digits: int | Mapping[str, int] = 3,
) -> str:
    """Writes a table as CSV (the plain numbers), Markdown and LaTeX (as shown).

    Args:
        frame: the numbers; all columns are written, the index is not.
        scale: e.g. "laptop".
        notebook: name of the notebook.
        name: file name without ending.
        caption: one sentence above the table.
        display: the cells as text for Markdown and LaTeX, where they differ from plain numbers, e.g.
            "**0.912** ± 0.004"; `**` around a text makes it bold in both. Default: `frame`, rounded.
        notes: footnotes, a line each.
        digits: decimals of shown floats, for all columns or by column name.

    Returns:
        The Markdown text, for the notebook to show.
    """
    place = folder(scale, notebook)
    shown = _as_text(frame if display is None else display, digits)
    text = markdown(shown, caption, notes)
    frame.to_csv(place / f"{name}.csv", index=False, float_format="%.6f", lineterminator="\n")
    (place / f"{name}.md").write_text(text, encoding="utf-8")
    tex = latex(shown, caption, notes, label=f"tab:{notebook}-{name}")
    (place / f"{name}.tex").write_text(tex, encoding="utf-8")
    return text


def markdown(shown: pd.DataFrame, caption: str = "", notes: Sequence[str] = ()) -> str:
    """A frame of text as a Markdown table with a caption above and notes below."""
    header = [_markdown_cell(column) for column in shown.columns]
    lines = [caption, ""] if caption else []
    lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in shown.itertuples(index=False):
        lines.append("| " + " | ".join(_markdown_cell(cell) for cell in row) + " |")
    for note in notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def latex(shown: pd.DataFrame, caption: str = "", notes: Sequence[str] = (), label: str = "") -> str:
    """A frame of text as a LaTeX table; needs no package beyond LaTeX itself."""
    columns = len(shown.columns)
    lines = [r"\begin{table}", r"\centering"]
    if caption:
        lines.append(rf"\caption{{{_latex_cell(caption)}}}")
    if label:
        lines.append(rf"\label{{{label}}}")
    lines += [rf"\begin{{tabular}}{{{'l' * columns}}}", r"\hline"]
    lines += [" & ".join(_latex_cell(column) for column in shown.columns) + r" \\", r"\hline"]
    for row in shown.itertuples(index=False):
        lines.append(" & ".join(_latex_cell(cell) for cell in row) + r" \\")
    lines += [r"\hline", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {_latex_cell(note)}" for note in notes]
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def _as_text(frame: pd.DataFrame, digits: int | Mapping[str, int]) -> pd.DataFrame:
    def cell(value: object, places: int) -> str:
        if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
            return "–"
        if isinstance(value, float):
            return f"{value:.{places}f}"
        return str(value)

    places = {column: digits if isinstance(digits, int) else digits.get(column, 3) for column in frame.columns}
    return pd.DataFrame(
        {str(column): [cell(value, places[column]) for value in frame[column]] for column in frame.columns},
        dtype=object,
    )


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
