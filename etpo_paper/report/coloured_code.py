"""Code in a figure, each token on a background that shows its value.

A line break is drawn as the sign ↵ and the end token as ∎, so that they have a colour as well, and a line that is wider
than the axes continues after ↪. Letters have one fixed size and lines begin at the top, so the axes must have their
final size before the code is drawn; `code_height` computes how high they should be.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, SymLogNorm
from matplotlib.patches import Rectangle

# Bad, indifferent, good; the ends are light enough for black text on them. An odd number of shades has a middle: white.
_COLOURS = LinearSegmentedColormap.from_list("credit", ["#EC7F3C", "#FFFFFF", "#5FABDD"], N=257)

LINEAR = 0.02  # up to this size of a value colours are linear, beyond it logarithmic
_LINEAR_SHARE = 0.3  # of the colours, in units of those of a factor of ten

_FONT = "DejaVu Sans Mono"  # ships with matplotlib
# Inches. A letter is a whole number of dots wide both on screen and in the files: a renderer that places letters on
# whole dots would otherwise write a token wider than its background.
_GLYPH = 0.06
_GLYPH_IN_SIZES = 1233 / 2048  # width of a letter in units of the font size
_LINE = 2.3 * _GLYPH  # from line to line
_CONTINUED, _NEW_LINE, _END = "↪ ", "↵", "∎"


def credit_colours(full: float) -> ScalarMappable:
    """The colours of values: orange for bad ones, white for 0, blue for good ones.

    They are logarithmic beyond ±0.02, so that values can be told apart on one scale although those of one method are
    ten times as large as those of another.

    Args:
        full: the size of a value from which on the colour is full, greater than 0.02.

    Returns:
        What `coloured_code` and `Figure.colorbar` need.
    """
    return ScalarMappable(SymLogNorm(LINEAR, _LINEAR_SHARE, vmin=-full, vmax=full, base=10), _COLOURS)


def coloured_code(axes: Axes, pieces: Sequence[str], values: Sequence[float], colours: ScalarMappable) -> None:
    """Draws tokens as text, line by line, each on a background in the colour of its value.

    Args:
        axes: where to draw; their limits are set, their ticks and frame removed.
        pieces: text of each token, [tokens]; the end token is "".
        values: value of each token, [tokens].
        colours: see `credit_colours`.
    """
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
                axes.add_patch(
                    Rectangle(
                        (column, line),
                        len(text),
                        1,
                        clip_on=False,
                        facecolor=backgrounds[token],
                        edgecolor="#DDDDDD",
                        linewidth=0.3,
                    )
                )
            shown = text.lstrip(" ")
            axes.text(
                column + len(text) - len(shown),
                line + 0.72,
                shown,
                family=_FONT,
                fontsize=72 * _GLYPH / _GLYPH_IN_SIZES,
                color="#777777" if text in (_CONTINUED, _NEW_LINE, _END) else "black",
                parse_math=False,  # a $ in code is a $
            )
            column += len(text)


def code_height(pieces: Sequence[str], width: float) -> float:
    """The height that `coloured_code` needs for some tokens in axes of a given width, both in inches."""
    return len(_code_lines(pieces, width)) * _LINE


def _code_lines(pieces: Sequence[str], width: float) -> list[list[tuple[int | None, str]]]:
    # Lines of (token, text). A token may cover several lines; a sign that belongs to no token has None.
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
            # The sign of a line break may be drawn in the margin: it is not worth another line.
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
