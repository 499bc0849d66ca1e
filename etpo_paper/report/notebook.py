"""What every notebook has in common: it checks the parameters that it was given, and it states its answer first.

Papermill puts the values that a user passes (`-p`, `-y`) into a cell of their own behind the cell tagged `parameters`.
It only *warns* about a name that the notebook does not know, so that a mistyped parameter would silently draw the wrong
figure, and writes a value of a type that it does not know as text, so that a `numpy.int64(3)` arrives as "3".
`check_parameters` reads the names back from the injected cell and refuses both. Importing this module also makes
IPython show a `UserError` as one line instead of a page of traceback.
"""

import ast
import io
import json
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from etpo_core.errors import UserError, unknown
from etpo_paper.base.settings import load_settings

# The comment that papermill writes at the top of the cell it injects.
_INJECTED = "# Parameters"


def _one_line(error: UserError) -> list[str]:
    return [f"UserError: {error}"]


# IPython calls this method of an exception, if there is one, before it prints a traceback.
UserError._render_traceback_ = _one_line  # type: ignore[attr-defined]


def check_parameters(namespace: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuses parameters that the notebook does not have or has of another type, and a scale that does not exist.

    Call it in the first code cell after the parameters: `check_parameters(globals(), {"scale"})`.

    Args:
        namespace: the notebook's `globals()`.
        known: names of the notebook's parameters.

    Raises:
        UserError: names an unknown parameter and lists the known ones, names one that is text where the notebook's own
            value is a number or the reverse, or names an unknown scale.
    """
    known, cells = set(known), _executed_cells(namespace)
    for name in injected_names(cells):
        if name not in known:
            raise unknown("notebook parameter", name, known)
        own = next((kind for cell in cells if (kind := _kind(cell, name))), None)
        if own is not None and not isinstance(namespace.get(name), own):
            advice = "papermill makes text of numpy's numbers, so give it Python's"
            raise UserError(f"parameter {name}: got {namespace.get(name)!r}, expected {_CALLED[own]}; {advice}")
    for name in sorted(known):
        if name not in namespace:
            raise UserError(f"parameter {name!r} has no value; set it in the cell tagged `parameters`")
    if "scale" in known:
        if not isinstance(namespace["scale"], str):
            raise UserError(f"parameter scale must be the name of a scale, not {namespace['scale']!r}")
        load_settings(namespace["scale"])  # raises for an unknown scale


def execute(path: Path, **parameters: Any) -> None:
    """Executes the code cells of a notebook in this process, for what they write; nothing of what they show is kept.

    A kernel, which papermill starts, writes the same bytes and takes seconds to start.

    Args:
        path: of the notebook.
        parameters: values instead of those in the cell tagged `parameters`.
    """
    import matplotlib.pyplot as plt

    names: dict[str, Any] = {"__name__": "__main__"}
    with plt.rc_context(), redirect_stdout(io.StringIO()):
        for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
                if "parameters" in cell["metadata"].get("tags", []):
                    names |= parameters
        plt.close("all")


def answer(text: str, notes: Iterable[str] = ()) -> str:
    """The answer to a notebook's question as Markdown, and below it what a reader must know beside it.

    Args:
        text: the answer in whole sentences.
        notes: an item of the list each, see `results.notes`.
    """
    listed = "\n".join(f"- {note}" for note in notes)
    return f"**Answer.** {text}" + (f"\n\n{listed}" if listed else "")


def injected_names(cells: Iterable[str]) -> list[str]:
    """Names that papermill's injected cells assign, in order.

    Args:
        cells: source code of the cells executed so far.
    """
    names: list[str] = []
    for source in cells:
        if not source.lstrip().startswith(_INJECTED):
            continue
        for statement in ast.parse(source).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


_CALLED = {bool: "true or false", int: "a whole number", float | int: "a number"}


def _kind(source: str, name: str) -> Any:
    """The type of the number that a cell of the notebook itself assigns to a name, None if there is none."""
    if source.lstrip().startswith(_INJECTED):
        return None
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a command of IPython
        return None
    for statement in statements:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            value = getattr(statement.value, "value", None)
            return float | int if isinstance(value, float) else type(value) if isinstance(value, int) else None
    return None


def _executed_cells(namespace: Mapping[str, Any]) -> list[str]:
    # IPython is asked rather than the global `In`, because a parameter could have that name too.
    try:
        from IPython import get_ipython
    except ImportError:
        return []
    shell = get_ipython()
    if shell is None:
        return [cell for cell in namespace.get("In", []) if isinstance(cell, str)]
    return list(shell.history_manager.input_hist_raw)
