"""Bodies of `build_model`: how they are written, run, and broken on purpose.

`body_of` writes a construction as imports, the construction itself and a call of `fit`. `run_body` runs a body as the
executor does: it defines `build_model`, fits the model and asks it for probabilities. It does so inside this process,
which is safe because it only runs code that was made here from the installed scikit-learn, never an answer of a
language model. `broken` makes a mistake that beginners and language models make as well (a missing import, `X, y`
instead of `x_train, y_train`, a wrong keyword, a misspelt name, ...), and running the broken body gives the true error
message.
"""

import contextlib
import io
import random
import re
import signal
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_iris

from etpo_core.sandbox import clean_message
from etpo_paper.environment.prompts import program
from etpo_paper.warm_start.mining import Construction, classifiers, public_names

INDENT = "    "
_FIT = "model.fit(x_train, y_train)"
_FILE = "<program>"


def body_of(construction: Construction, chained: bool = False) -> str:
    """Writes a construction as the body of `build_model`.

    Args:
        construction: the classifier that is assigned to `model`.
        chained: whether `fit` is called on the line of the construction instead of on a line of its own.
    """
    modules: dict[str, list[str]] = {}
    for name in construction.names:
        modules.setdefault(public_names()[name], []).append(name)
    lines = [f"from {module} import {', '.join(names)}" for module, names in sorted(modules.items())]
    if chained:
        lines.append(f"model = {construction.expression}.fit(x_train, y_train)")
    else:
        lines += [f"model = {construction.expression}", _FIT]
    return "".join(f"{INDENT}{line}\n" for line in lines)


# --------------------------------------------------------------------------------------------------- running


def trial_sets() -> list[tuple[np.ndarray, np.ndarray]]:
    """Two small tables that ship with scikit-learn and are no tasks: 3 classes [50, 4] and 2 classes [40, 6]."""
    iris_x, iris_y = load_iris(return_X_y=True)
    cancer_x, cancer_y = load_breast_cancer(return_X_y=True)
    return [(iris_x[::3], iris_y[::3]), (cancer_x[:40, :6], cancer_y[:40])]


def run_body(body: str, x: np.ndarray, y: np.ndarray, seconds: float = 60.0) -> str | None:
    """Runs the program of a body on a table: it fits the model and calls `predict_proba`.

    Args:
        body: the action.
        x: features, float [rows, features].
        y: labels, int [rows].
        seconds: the time limit, which is far longer than any body in the corpus needs.

    Returns:
        None if the model gives finite probabilities of the right shape. Otherwise the error in the executor's wording,
        e.g. "NameError: name 'X' is not defined (line 7)", without the names of folders on this machine.
    """
    source = program(body)
    try:
        with _time_limit(seconds), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            space: dict[str, Any] = {}
            state = np.random.get_state()
            np.random.seed(0)  # estimators without a random_state draw from it, so this makes the corpus repeatable
            try:
                exec(compile(source, _FILE, "exec"), space)
                probabilities = np.asarray(space["build_model"](x.copy(), y.copy()).predict_proba(x))
            finally:
                np.random.set_state(state)
    except Exception as error:
        return _error_text(error)
    if probabilities.shape != (len(x), len(np.unique(y))) or not np.isfinite(probabilities).all():
        return f"ValueError: predict_proba gives shape {probabilities.shape} or values that are not finite"
    return None


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"no model after {seconds:.0f} s")

    try:
        before = signal.signal(signal.SIGALRM, stop)
    except (ValueError, AttributeError):  # another thread, or a system without this signal: run without a limit
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _error_text(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        message, line = error.msg, error.lineno
    else:
        message = str(error)
        frames = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == _FILE]
        line = frames[-1] if frames else None
    # Python prints the elements of a set in an order that differs between processes.
    message = re.sub(r"\{('[^{}]*')\}", lambda found: "{" + ", ".join(sorted(found[1].split(", "))) + "}", message)
    message = clean_message(message.encode("utf-8", "replace"))
    return f"{type(error).__name__}: {message}" + (f" (line {line})" if line else "")


def runs(body: str, tables: list[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Whether a body gives probabilities on every table."""
    return all(run_body(body, x, y) is None for x, y in tables)


# -------------------------------------------------------------------------------------------------- breaking


def broken(body: str, rng: random.Random) -> str | None:
    """Makes one realistic mistake in a body; None if the kind of mistake that was drawn does not apply to it."""
    mistake = rng.choice(_MISTAKES)
    result = mistake(body, rng)
    return None if result == body else result


def _without_import(body: str, rng: random.Random) -> str:
    imports = re.findall(rf"^{INDENT}from .*\n", body, re.M)
    return body.replace(rng.choice(imports), "", 1) if imports else body


def _other_data_names(body: str, rng: random.Random) -> str:
    return body.replace("x_train, y_train", rng.choice(["X, y", "X_train, y_train", "x, y", "X_train, Y_train"]))


def _wrong_keyword(body: str, rng: random.Random) -> str:
    keywords = sorted(set(re.findall(r"[(,] ?(\w+)=", body)))
    wrong = ["n_estimator", "num_estimators", "c", "kernal", "learning_rates", "max_iters", "seed", "n_neighbor"]
    if keywords:
        return re.sub(rf"\b{rng.choice(keywords)}=", rng.choice(wrong) + "=", body, count=1)
    return re.sub(r"\(\)", f"({rng.choice(wrong)}={rng.choice([1, 10, 100])})", body, count=1)


def _misspelt_name(body: str, rng: random.Random) -> str:
    name = rng.choice(sorted(set(re.findall(r"\b[A-Z][A-Za-z]+\b", body)) & public_names().keys()) or [""])
    if not name:
        return body
    at = rng.randrange(1, len(name))
    typo = rng.choice([name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], name.replace("Classifier", "")])
    only_once = rng.random() < 0.5  # in the import alone, or in the import and the construction
    return body.replace(name, typo, 1) if only_once else body.replace(name, typo)


def _wrong_module(body: str, rng: random.Random) -> str:
    modules = re.findall(r"from (sklearn\.[\w.]+) import", body)
    others = sorted(set(public_names().values()) | {"sklearn.classifiers", "sklearn.models"})
    return body.replace(rng.choice(modules), rng.choice(others), 1) if modules else body


def _wrong_value(body: str, rng: random.Random) -> str:
    values = re.findall(r"=('[a-z_0-9]+'|[\d.]+)(?=[,)])", body)
    wrong = ["'l3'", "'automatic'", "-1", "0", "'none'"]
    return body.replace(f"={rng.choice(values)}", f"={rng.choice(wrong)}", 1) if values else body


def _unclosed(body: str, rng: random.Random) -> str:
    at = rng.choice([match.start() for match in re.finditer(r"\)", body)] or [len(body)])
    return body[:at] + body[at + 1 :]


def _wrong_method(body: str, rng: random.Random) -> str:
    return body.replace(".fit(", f".{rng.choice(['train', 'fit_model', 'build', 'fit_predict'])}(", 1)


def _not_fitted(body: str, rng: random.Random) -> str:
    return body.replace(INDENT + _FIT + "\n", "").replace(".fit(x_train, y_train)", "")


def _other_result_name(body: str, rng: random.Random) -> str:
    return re.sub(r"\bmodel\b", rng.choice(["clf", "classifier", "pipe"]), body)


def _wrong_indent(body: str, rng: random.Random) -> str:
    lines = body.splitlines(keepends=True)
    at = rng.randrange(1, len(lines))
    lines[at] = rng.choice(["  ", "      "]) + lines[at].lstrip()
    return "".join(lines)


def _no_probability(body: str, rng: random.Random) -> str:
    return body.replace("probability=True, ", "").replace(", probability=True", "").replace("probability=True", "")


def _other_class(body: str, rng: random.Random) -> str:
    used = [name for name in re.findall(r"\b[A-Z][A-Za-z]+\b", body) if name in classifiers()]
    others = ["LinearSVC", "RidgeClassifier", "SVC", "LinearRegression"]
    return body.replace(rng.choice(used), rng.choice(others)) if used else body


# The most common mistakes are listed twice, so they are drawn twice as often.
_MISTAKES = (
    _without_import,
    _without_import,
    _other_data_names,
    _other_data_names,
    _wrong_keyword,
    _wrong_keyword,
    _misspelt_name,
    _misspelt_name,
    _wrong_module,
    _wrong_value,
    _unclosed,
    _wrong_method,
    _not_fitted,
    _other_result_name,
    _wrong_indent,
    _no_probability,
    _other_class,
)
