"""What every notebook does first: check the parameters it was given.

Papermill puts the values a user passes (`-p`, `-y`) into a cell of their own behind the cell tagged
`parameters`, and only *warns* about a name that the notebook does not know: a mistyped parameter would
silently draw the wrong figure. `check_parameters` reads the names back from the injected cell and refuses
unknown ones. It also teaches IPython to show a `UserError` as its one line instead of a page of traceback.
"""

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from etpo_core.errors import UserError, unknown

# The comment papermill writes on top of the cell that it injects.
_INJECTED = "# Parameters"


def _one_line(error: UserError) -> list[str]:
    return [f"UserError: {error}"]


UserError._render_traceback_ = _one_line  # IPython asks an exception for this before it prints a traceback


def check_parameters(namespace: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuses parameters that the notebook does not have, and a scale that does not exist.

    Call it in the first code cell after the parameters: `check_parameters(globals(), {"scale"})`.

    Args:
        namespace: the notebook's `globals()`.
        known: names of the notebook's parameters.

    Raises:
        UserError: names an unknown parameter and lists the known ones, or names an unknown scale.
    """
    known = set(known)
    for name in injected_names(_executed_cells(namespace)):
        if name not in known:
            raise unknown("notebook parameter", name, known)
    for name in sorted(known):
        if name not in namespace:
            raise UserError(f"parameter {name!r} has no value; set it in the cell tagged `parameters`")
    if "scale" in known:
        if not isinstance(namespace["scale"], str):
            raise UserError(f"parameter scale must be the name of a scale, not {namespace['scale']!r}")
        from etpo_paper.base.settings import load_settings

        load_settings(namespace["scale"])  # says which scales there are


def injected_names(cells: Iterable[str]) -> list[str]:
    """Names that papermill's injected cells assign, in order.

    Args:
        cells: sources of the cells run so far.
    """
    names = []
    for source in cells:
        if not source.lstrip().startswith(_INJECTED):
            continue
        for statement in ast.parse(source).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _executed_cells(namespace: Mapping[str, Any]) -> list[str]:
    # Asked of IPython, not of the global `In`: a parameter could be called that, too.
    try:
        from IPython import get_ipython
    except ImportError:
        return []
    shell = get_ipython()
    if shell is None:
        return [cell for cell in namespace.get("In", []) if isinstance(cell, str)]
    return list(shell.history_manager.input_hist_raw)
