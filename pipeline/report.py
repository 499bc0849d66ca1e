"""Command `report`: all notebooks, executed and rendered, as a static site in build/report.

    python -m pipeline.report           # what `make report` does; open build/report/index.html
    python -m pipeline.report --index   # write notebooks/00_index.ipynb again from the notebooks' first cells

Each notebook is executed once by the stage `figures`, in a copy of the root where figures go to a temporary folder:
nothing of the checkout is written but build/. A notebook that lacks its inputs is shown as it is committed, with the
line that says what is missing. The pages need no network and no script, see `etpo_paper/report/pages.py`.
"""

import html
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.report import index, pages
from pipeline import entry

SITE = paths.ROOT / "build" / "report"
WORKERS = 2


def execute(scale: str, name: str) -> tuple[dict[str, Any], str | None]:
    """Executes a notebook by the stage `figures`, away from the checkout.

    Returns:
        The executed notebook and None, or the notebook as it is committed and what its inputs lack.

    Raises:
        UserError: a cell failed.
    """
    source = pages.read(paths.NOTEBOOKS / f"{name}.ipynb")
    with tempfile.TemporaryDirectory() as place:
        for path in paths.ROOT.iterdir():
            if path.name not in {"figures", "build", ".git"}:
                (Path(place) / path.name).symlink_to(path)
        command = [sys.executable, "-m", "pipeline.figures", "--scale", scale, "--notebook", name]
        done = subprocess.run(command, env=os.environ | {"ETPO_ROOT": place}, capture_output=True, text=True)
        copy = Path(place) / "build" / "notebooks" / scale / f"{name}.ipynb"
        executed = pages.read(copy) if copy.is_file() else source
        if done.returncode == 0:
            return executed, None
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
        last = last.replace(f"{place}/", "")
        if pages.error_name(executed) != "UserError":
            raise UserError(f"notebook {name}: {last}")
        return source, last


def build(scales: Mapping[str, str]) -> list[str]:
    """Writes the site.

    Args:
        scales: for each notebook, in the order of the site, the scale whose results it reads.

    Returns:
        A line for each page.
    """
    SITE.parent.mkdir(parents=True, exist_ok=True)
    new = SITE.with_name("report.partial")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    names, lines, notebooks = list(scales), [], paths.NOTEBOOKS
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(execute, scales.values(), names)
        for number, (name, (book, missing)) in enumerate(zip(names, found, strict=True)):
            before, after = names[number - 1] if number else None, (names[number + 1 :] or [None])[0]
            said = f"Not executed here: {missing}" if missing else f"Executed with the results of {scales[name]}."
            body = [f'<p class="{"missing" if missing else "source"}">{html.escape(said)}</p>']
            body += pages.cells(book, notebooks, drawn=missing is None)
            page = pages.page(name, "".join(body), before, after)
            (new / f"{name}.html").write_text(page, encoding="utf-8")
            lines.append(f"{name}: {said[0].lower()}{said[1:]}")
            print(lines[-1], flush=True)
    book = pages.read(notebooks / f"{index.NAME}.ipynb")
    page = pages.page("All notebooks", "".join(pages.cells(book, notebooks, drawn=False)), None, names[0])
    (new / "index.html").write_text(page, encoding="utf-8")
    shutil.rmtree(SITE, ignore_errors=True)
    new.rename(SITE)
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command from its command line."""
    parser = entry.parser(__doc__)
    parser.add_argument("--index", action="store_true", help="only write notebooks/00_index.ipynb again")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        if arguments.index:
            print(index.write(paths.NOTEBOOKS))
            return
        build(index.SCALES)
        print(f"{len(index.SCALES) + 1} pages: {SITE / 'index.html'}")


if __name__ == "__main__":
    main()
