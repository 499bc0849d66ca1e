"""What the written code is made of: complexity and habits of a program, read off its syntax tree.

The action of the agent is the body of a function. `measure` parses it, without ever running it, and says
how long it is, which families of estimators it calls, whether it builds a pipeline and whether it prepares
its data first. The families are scikit-learn's own subpackages (`linear_model`, `ensemble`, ...), and the
list of estimators is asked of the installed scikit-learn, so that nothing here goes stale. `construction`
condenses a program to the estimators it calls, in order: the unit in which habits appear and spread during
training.
"""

import ast
import hashlib
import importlib
import warnings
from dataclasses import dataclass
from functools import cache

import pandas as pd
from sklearn.base import ClassifierMixin, TransformerMixin

from etpo_paper.environment.prompts import program
from etpo_paper.report.results import LATE, period

_PACKAGES = (
    "calibration", "cluster", "decomposition", "discriminant_analysis", "dummy", "ensemble", "feature_extraction",
    "feature_selection", "gaussian_process", "impute", "kernel_approximation", "linear_model", "multiclass",
    "naive_bayes", "neighbors", "neural_network", "preprocessing", "random_projection", "semi_supervised", "svm",
    "tree",
)  # fmt: skip
_PIPELINE_CALLS = {"make_pipeline", "Pipeline", "make_column_transformer", "ColumnTransformer"}
NOTHING = "(no estimator)"
NOT_PYTHON = "(not Python)"


@dataclass(frozen=True)
class Measures:
    """Complexity of one program.

    Attributes:
        parses: whether the body is Python at all; if not, only `lines` is counted.
        lines: lines that are neither empty nor a comment.
        nodes: nodes of the syntax tree of the body, a length that ignores layout and names.
        families: families of the classifiers that are called, sorted, e.g. ("ensemble", "linear_model").
        preprocessing: names of the transformers that are called, sorted, e.g. ("StandardScaler",).
        pipeline: whether a pipeline or a column transformer is built.
        construction: the estimators called, in order, e.g. "StandardScaler + LogisticRegression".
        fingerprint: equal for programs that differ in layout and comments only.
    """

    parses: bool
    lines: int
    nodes: int
    families: tuple[str, ...]
    preprocessing: tuple[str, ...]
    pipeline: bool
    construction: str
    fingerprint: str


@cache
def _known() -> tuple[dict[str, str], frozenset[str]]:
    # Classifier -> family, and the transformers. Importing them all takes a second: only when asked.
    classifiers, transformers = {}, set()
    for family in _PACKAGES:
        package = importlib.import_module(f"sklearn.{family}")
        for name, kind in vars(package).items():
            # What a package only imports from another one counts there.
            own = isinstance(kind, type) and kind.__module__.startswith(f"sklearn.{family}")
            if not own or name in _PIPELINE_CALLS or name.startswith("_") or name.endswith("Regressor"):
                continue
            if issubclass(kind, ClassifierMixin):
                classifiers[name] = family
            elif issubclass(kind, TransformerMixin):
                transformers.add(name)
    return classifiers, frozenset(transformers)


def measure(body: str) -> Measures:
    """Measures a body of `build_model`, indented as the agent writes it.

    Args:
        body: the action's text.
    """
    lines = sum(1 for line in body.splitlines() if line.strip() and not line.strip().startswith("#"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in the agent's strings
            function = ast.parse(program(body)).body[-1]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Measures(False, lines, 0, (), (), False, NOT_PYTHON, _digest(body.strip()))
    if not isinstance(function, ast.FunctionDef):
        return Measures(False, lines, 0, (), (), False, NOT_PYTHON, _digest(body.strip()))
    statements = function.body[:-1]  # without the `return model` of the environment
    classifiers, transformers = _known()
    calls = [name for statement in statements for name in _calls(statement)]
    estimators = [name for name in calls if name in classifiers or name in transformers]
    return Measures(
        parses=True,
        lines=lines,
        nodes=sum(1 for statement in statements for _ in ast.walk(statement)),
        families=tuple(sorted({classifiers[name] for name in calls if name in classifiers})),
        preprocessing=tuple(sorted({name for name in calls if name in transformers})),
        pipeline=any(name in _PIPELINE_CALLS for name in calls),
        construction=" + ".join(dict.fromkeys(estimators)) or NOTHING,
        fingerprint=_digest("\n".join(ast.dump(statement) for statement in statements)),
    )


def measure_samples(samples: pd.DataFrame) -> pd.DataFrame:
    """Adds the measures to samples of code, a column each.

    Args:
        samples: of `results.load_samples`.

    Returns:
        The samples with parses, lines, nodes, families (count), preprocessing (whether any), pipeline,
        construction, fingerprint and ran (whether the status is "ok").
    """
    measures = [measure(code or "") for code in samples["code"]]
    frame = samples.reset_index(drop=True).copy()
    for name in ("parses", "lines", "nodes", "pipeline", "construction", "fingerprint"):
        frame[name] = [getattr(entry, name) for entry in measures]
    frame["families"] = [len(entry.families) for entry in measures]
    frame["preprocessing"] = [bool(entry.preprocessing) for entry in measures]
    frame["ran"] = frame["status"] == "ok"
    return frame


def winning_construction(measured: pd.DataFrame) -> str | None:
    """The construction most frequent among code that ran in the last fifth of the updates.

    Args:
        measured: of `measure_samples`; ties are broken by name.

    Returns:
        Its name, or None if nothing ran.
    """
    if measured.empty:
        return None
    late = measured[measured["ran"] & (period(measured["update"]) == LATE)]
    if late.empty:
        late = measured[measured["ran"]]
    if late.empty:
        return None
    counts = late["construction"].value_counts()
    return sorted(counts[counts == counts.max()].index)[0]


def spread(measured: pd.DataFrame, name: str) -> pd.DataFrame:
    """The share of samples that are a construction, by update, and when it first appeared.

    Args:
        measured: of `measure_samples`.
        name: the construction.

    Returns:
        Columns update, share; the first row with share > 0 is its first appearance.
    """
    is_it = measured["construction"] == name
    return is_it.groupby(measured["update"]).mean().rename("share").reset_index()


def _calls(statement: ast.stmt) -> list[str]:
    found = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    found.sort(key=lambda node: (node.func.end_lineno, node.func.end_col_offset))
    names = []
    for node in found:
        if isinstance(node.func, ast.Name):
            names.append(node.func.id)
        elif isinstance(node.func, ast.Attribute):
            names.append(node.func.attr)
    return names


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
