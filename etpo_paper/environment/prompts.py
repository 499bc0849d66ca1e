"""States and actions as text: what the agent reads, and the program that is made of its answer.

A state of the text MDP is a `Prompt`: the beginning of a Python file, up to where the body of `build_model` should
stand (`prefix`), and the line that follows the body (`suffix`). The action is the body and nothing else, so the same
action works for a model that continues text and for one that fills in the middle. `task_prompt` is the first state of
an episode. `reflection_prompt` is the state after a failure: it shows the failed body with its error and asks for a
second version. It begins with the whole task prompt, so that the networks compute the common beginning of all states of
a task only once. `program` makes the program that the executor runs.

A chat model may answer with a whole file instead. An action that is a Python module and defines `build_model` is run as
the module that it is; a body is indented and therefore never one. The state after its failure shows the file, its
error, and the task's file anew.
"""

import ast
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

SIGNATURE = "def build_model(x_train: np.ndarray, y_train: np.ndarray):\n"
SUFFIX = "    return model\n"
NUMPY = "import numpy as np\n"
SECOND = "# The second version below is fixed."
MAX_ERROR_CHARACTERS = 200


@dataclass(frozen=True)
class Prompt:
    """A state: the text before the action (`prefix`) and the text after it (`suffix`)."""

    prefix: str
    suffix: str = SUFFIX


@dataclass(frozen=True)
class Action:
    """The agent's answer to a prompt.

    Attributes:
        body: text of the body of `build_model`, or of a whole module.
        token_count: number of tokens of the answer; None where a server does not count them.
        tokens: the sampled token ids, including the end token; empty for a model behind an endpoint.
        log_probs: log mu of each token, where mu is the distribution it was drawn from; empty likewise.
        finished: False if the answer reached the length limit before its end token.
    """

    body: str
    token_count: int | None
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    finished: bool = True


def task_prompt(description: str, features: int, rows: int) -> Prompt:
    """The first state s_0 of an episode.

    Args:
        description: short name of the data set, e.g. "Balance Scale".
        features: number of columns of x_train.
        rows: number of rows of x_train, which is half the rows of the task.
    """
    return Prompt(
        f'"""Classification with a {description} dataset."""\n\n{NUMPY}\n\n'
        + SIGNATURE
        + '    """Import the modules needed, then train a scikit-learn classifier called model\n'
        + f'    with x_train of shape ({rows}, {features}) and the labels y_train.\n    """\n'
    )


def reflection_prompt(description: str, features: int, rows: int, body: str, error: str) -> Prompt:
    """The state after a failure: the failed function, its error, and the head of a second version.

    Args:
        description: see `task_prompt`.
        features: see `task_prompt`.
        rows: see `task_prompt`.
        body: the action that failed.
        error: the executor's error text, e.g. "NameError: name 'X' is not defined (line 3)". It is put on one line
            and cut after 200 characters.
    """
    message = re.sub(r"\s+", " ", error).strip()[:MAX_ERROR_CHARACTERS]
    first = task_prompt(description, features, rows).prefix
    if is_module(body):
        return Prompt(f"{program(body)}\n\n# The file above fails: {message}\n{SECOND}\n\n\n{first}")
    failed = first + body.rstrip("\n") + "\n" + SUFFIX
    return Prompt(f"{failed}\n\n# The function above fails: {message}\n{SECOND}\n\n\n{SIGNATURE}")


def program(body: str) -> str:
    """The program that the executor runs for an action: `build_model` with the action as its body, or the module.

    A module sees numpy as `np`, as the file does that it answers to.
    """
    tree = _module(body)
    if tree is None:
        return f"{NUMPY}\n\n{SIGNATURE}" + body.rstrip("\n") + "\n" + SUFFIX
    if "np" in bound_names(tree.body):
        return body
    # Nothing but the docstring may stand above an import from __future__.
    future = [n.end_lineno or 0 for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    lines, head = body.split("\n"), max(future, default=0)
    return "\n".join([*lines[:head], NUMPY, *([] if head else [""]), *lines[head:]])


def is_module(action: str) -> bool:
    """Whether an action is a Python module that defines `build_model`, and not the body of that function."""
    return _module(action) is not None


def _module(action: str) -> ast.Module | None:
    if action.lstrip("\n")[:1].isspace():
        return None
    tree = parsed(action)
    return tree if tree is not None and "build_model" in bound_names(tree.body) else None


def parsed(text: str) -> ast.Module | None:
    """The text as Python, or None if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the agent's strings
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def bound_names(statements: Iterable[ast.stmt]) -> set[str]:
    """The names that statements bind where they stand: functions, classes, imports, variables."""
    names: set[str] = set()
    for statement in statements:
        scope = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for node in [statement] if scope else ast.walk(statement):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.Name(id=name, ctx=ast.Store()):
                    names.add(name)
                case ast.alias():
                    names.add(node.asname or node.name.partition(".")[0])
    return names
