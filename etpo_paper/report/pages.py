"""Notebooks as HTML pages that need nothing else: no script, no network, pictures and equations inside.

An equation becomes an SVG drawing (`ziamath`), because browsers without a mathematical font show MathML badly and a
typesetter in the page would be a megabyte of script. Links to other notebooks lead to their pages; links to other files
of the repository lead back into the checkout that the site was built in.
"""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import ziamath
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from etpo_core.errors import UserError

TALLEST = 14.0  # em; an equation that is taller was laid out wrongly
_EM = 16.0  # pixels of the pages' text
_STYLE = """
body { margin: 0 auto; max-width: 62rem; padding: 0 1rem 3rem; font: 1rem/1.5 system-ui, sans-serif; color: #1b1b1b;
  overflow-wrap: break-word; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: .8rem 0; border-bottom: 1px solid #ccc; }
nav .after { margin-left: auto; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.35rem; margin-top: 2.2rem; } h3 { margin-top: 2rem; }
a { color: #0b5394; } a.anchor-link { display: none; }
p, li, h1, h2, h3, blockquote { max-width: 48rem; } p:has(> img) { max-width: none; }
img { max-width: 100%; height: auto; }
pre, code { font: .8rem/1.4 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { overflow-x: auto; margin: .6rem 0; padding: .6rem .8rem; background: #f6f7f8; border-radius: 4px; }
p code, li code, td code { background: #f0f1f3; padding: 0 .2em; border-radius: 3px; }
pre.out { background: none; border-left: 3px solid #ccc; border-radius: 0; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border: 0; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .6rem; border: 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top;
  min-width: 3.5rem; overflow-wrap: normal; }
.equation { overflow-x: auto; overflow-y: hidden; text-align: center; margin: 1rem 0; }
.source { color: #555; font-size: .9rem; } .missing { background: #fff4d6; padding: .5rem .8rem; border-radius: 4px; }
@media (max-width: 40rem) { h1 { font-size: 1.4rem; } pre, code, table { font-size: .8rem; } }
"""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><nav>{links}</nav><main>{body}</main></body></html>
"""


def read(path: Path) -> dict[str, Any]:
    """A notebook as JSON."""
    book: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return book


def error_name(book: dict[str, Any]) -> str | None:
    """The name of the exception that a notebook's execution ended with, or None."""
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    return next((output["ename"] for output in outputs if output["output_type"] == "error"), None)


def page(title: str, body: str, before: str | None, after: str | None) -> str:
    """A whole page.

    Args:
        title: of the browser's tab.
        body: HTML.
        before: the notebook whose page comes before, if any.
        after: the notebook whose page comes after, if any.
    """
    links = '<a href="index.html">All notebooks</a>'
    links += f'<a href="{before}.html">← {before}</a>' if before else ""
    links += f'<a class="after" href="{after}.html">{after} →</a>' if after else ""
    style = _STYLE + HtmlFormatter(nobackground=True).get_style_defs(".highlight")
    return _PAGE.format(title=html.escape(title), style=style, links=links, body=body)


def cells(book: dict[str, Any], folder: Path, drawn: bool) -> list[str]:
    """The cells of a notebook as HTML.

    Args:
        book: the notebook.
        folder: where links and pictures start from.
        drawn: whether the notebook draws its figures itself, so that the picture of its first cell is left out.
    """
    parts = []
    for number, cell in enumerate(book["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            if number == 0 and drawn:
                source = re.sub(r"^!\[.*\)$", "", source, flags=re.MULTILINE)
            parts.append(markdown(source, folder))
        elif cell["cell_type"] == "code":
            parts.append(highlight(source, PythonLexer(), HtmlFormatter()))
            parts += [_output(output, folder) for output in cell.get("outputs", [])]
    return parts


def markdown(source: str, folder: Path) -> str:
    """Markdown with equations as HTML."""
    return MarkdownWithMath(renderer=_Renderer(folder)).render(source)


def equation(tex: str, display: bool) -> str:
    """An equation as SVG inside HTML.

    Raises:
        UserError: it cannot be drawn.
    """
    # ziamath 0.13 knows no \\[2pt], and makes \left and \right 2,000 pixels high around a sum with a lower limit only.
    known = re.sub(r"\\\\\[\w+\]", r"\\\\", tex.strip())
    known = re.sub(r"(\\(?:sum|prod)_(?:\{[^{}]*\}|\w))(?!\^)", r"\1^{}", known)
    try:
        drawing = ziamath.Latex(known, size=_EM * 1.1, inline=not display)
        _, height = drawing.getsize()
        svg, below = drawing.svg(), drawing.getyofst()
    except Exception as error:  # the library has no error of its own
        raise UserError(f"equation {tex.strip()!r} cannot be drawn: {error}") from None
    if height > TALLEST * _EM:
        raise UserError(f"equation {tex.strip()!r} is drawn {height / _EM:.0f} em high; write it differently")
    label = f'role="img" aria-label="{html.escape(tex.strip())}"'
    if display:
        return f'<div class="equation math" {label}>{svg}</div>'
    style = f"display:inline-block;line-height:0;vertical-align:{below:.2f}px"
    return f'<span class="math" {label} style="{style}">{svg}</span>'


class _Renderer(IPythonRenderer):
    """Markdown for a page of the site, see `markdown`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(escape=False)
        self._folder = folder

    def block_math(self, body: str) -> str:
        return equation(body, display=True)

    def inline_math(self, body: str) -> str:
        return equation(body, display=False)

    def table(self, text: str) -> str:
        return f'<div class="wide"><table>{text}</table></div>'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        path, mark, anchor = url.partition("#")
        if not re.match(r"[a-z]+:", url) and path:
            if path.endswith(".ipynb") and "/" not in path:
                path = path.removesuffix(".ipynb") + ".html"
            else:
                path = f"../../{(self._folder / path).resolve().relative_to(self._folder.resolve().parent)}"
        return str(super().link(text, path + mark + anchor, title))

    def image(self, text: str, url: str, title: str | None = None) -> str:
        path = self._folder / url
        if not path.is_file():
            raise UserError(f"{path} is missing; restore it with `git checkout figures`")
        inside = base64.b64encode(path.read_bytes()).decode("ascii")
        return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{inside}">'


def _output(output: dict[str, Any], folder: Path) -> str:
    if output["output_type"] == "stream":
        return f'<pre class="out">{html.escape("".join(output["text"]))}</pre>' if output["name"] == "stdout" else ""
    data = {kind: "".join(value) for kind, value in output.get("data", {}).items() if isinstance(value, str | list)}
    if "image/png" in data:
        picture = data["image/png"].replace("\n", "")
        return f'<p><img alt="A figure, explained above" src="data:image/png;base64,{picture}"></p>'
    if "text/html" in data:
        return f'<div class="wide">{data["text/html"]}</div>'
    if "text/markdown" in data:
        return markdown(data["text/markdown"], folder)
    return f'<pre class="out">{html.escape(data.get("text/plain", ""))}</pre>'
