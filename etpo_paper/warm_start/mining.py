"""Reads real constructions of classifiers out of the installed scikit-learn.

The docstrings and test functions of scikit-learn are full of calls such as `LogisticRegression(C=10, max_iter=500)` or
`make_pipeline(StandardScaler(), SVC())`, written by its authors (BSD-3-Clause). This module finds these calls with
Python's own parser. It keeps the arguments that mean the same everywhere (literals, other constructors of scikit-learn,
`np.` expressions) and drops keyword arguments that refer to a variable of the surrounding code. A call in which a
positional argument does so is left out. Nothing is run here.
"""

import ast
import doctest
import importlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sklearn
from sklearn.base import ClassifierMixin

# The modules that public names are taken from. A body only needs what makes a model, so `datasets`, `metrics`, `utils`
# and the like are left out.
_MODULES = (
    "calibration cluster compose decomposition discriminant_analysis dummy ensemble feature_selection "
    "gaussian_process gaussian_process.kernels impute kernel_approximation linear_model model_selection multiclass "
    "naive_bayes neighbors neural_network pipeline preprocessing random_projection semi_supervised svm tree"
).split()
_PIPELINES = ("Pipeline", "make_pipeline")
# In the executor these would print, start processes or leave files behind.
_UNWANTED_KEYWORDS = {"verbose", "n_jobs", "memory"}


@dataclass(frozen=True, order=True)
class Construction:
    """One construction of a classifier.

    Attributes:
        classifier: name of the class that classifies, e.g. "SVC" for a pipeline that ends in an SVC.
        expression: the call as source text on one line.
        names: the scikit-learn names that the call uses, sorted.
    """

    classifier: str
    expression: str
    names: tuple[str, ...]

    @property
    def is_pipeline(self) -> bool:
        """Whether the construction is a pipeline."""
        return self.expression.startswith(_PIPELINES)


@cache
def public_names() -> dict[str, str]:
    """The public names of scikit-learn with the module that each is imported from.

    Searches over parameters are left out, because they are slow.
    """
    names: dict[str, str] = {}
    for module in _MODULES:
        path = f"sklearn.{module}"
        imported = importlib.import_module(path)
        own = [n for n, item in vars(imported).items() if n[0] != "_" and getattr(item, "__module__", "") == path]
        for name in getattr(imported, "__all__", own):
            if "SearchCV" not in name and name != "LogisticRegressionCV":
                names.setdefault(name, path)
    return names


@cache
def classifiers() -> frozenset[str]:
    """The names of the public classifier classes."""
    found = set()
    for name, module in public_names().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            item = getattr(importlib.import_module(module), name, None)
        if isinstance(item, type) and issubclass(item, ClassifierMixin):
            found.add(name)
    return frozenset(found)


def mine(package: Path | None = None) -> list[Construction]:
    """Finds every distinct construction in the docstring examples and test functions of a package.

    Args:
        package: a folder of Python files, by default the installed scikit-learn.

    Returns:
        The constructions, sorted.
    """
    package = package or Path(sklearn.__file__).parent
    found: set[Construction] = set()
    for path in sorted(package.rglob("*.py")):
        for tree in _trees(path, is_test="tests" in path.relative_to(package).parts):
            found.update(_constructions(tree))
    return sorted(found)


def _trees(path: Path, is_test: bool) -> Iterator[ast.AST]:
    """Parses a test file, or the docstring examples of a module, if a classifier may be constructed there."""
    text = path.read_text(encoding="utf-8")
    if is_test:
        if any(name in text for name in classifiers()):
            yield ast.parse(text)
        return
    examples = "\n".join(line for line in text.splitlines() if line.lstrip().startswith((">>>", "...")))
    if not any(name in examples for name in _called_names()):
        return
    parser = doctest.DocTestParser()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node)):
            try:
                source = "".join(example.source for example in parser.get_examples(doc))
                yield ast.parse(source)
            except (ValueError, SyntaxError):
                continue  # some examples are not valid Python, on purpose


@cache
def _called_names() -> frozenset[str]:
    return classifiers() | set(_PIPELINES)


def _constructions(tree: ast.AST) -> Iterator[Construction]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _called(node) not in _called_names():
            continue
        call = _plain_call(node)
        if call is None:
            continue
        names = {item.id for item in ast.walk(call) if isinstance(item, ast.Name)} - {"np"}
        yield Construction(_classifier(call), ast.unparse(call), tuple(sorted(names)))


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _classifier(call: ast.Call) -> str:
    """The name of the class that is called, or that of the last step of a pipeline."""
    last: ast.AST | None = None
    if _called(call) == "make_pipeline" and call.args:
        last = call.args[-1]
    if _called(call) == "Pipeline":
        steps = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "steps"), None)
        if isinstance(steps, ast.List) and steps.elts and isinstance(steps.elts[-1], ast.Tuple):
            last = steps.elts[-1].elts[-1]
    return _classifier(last) if isinstance(last, ast.Call) else _called(call)


def _plain(node: ast.AST | None) -> ast.expr | None:
    """Copies an expression without what depends on the surrounding code; None if it then has no meaning."""
    if isinstance(node, ast.Constant):
        return node
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return node
    if isinstance(node, ast.Name):
        return node if node.id in public_names() else None
    if isinstance(node, ast.Attribute):
        return node if isinstance(node.value, ast.Name) and node.value.id == "np" else None
    if isinstance(node, ast.List | ast.Tuple):
        items = _all_plain(node.elts)
        return None if items is None else type(node)(items, ast.Load())
    if isinstance(node, ast.Dict):
        keys, values = _all_plain(node.keys), _all_plain(node.values)
        return None if keys is None or values is None else ast.Dict([*keys], values)
    if isinstance(node, ast.Call):
        return _plain_call(node)
    return None


def _all_plain(nodes: Sequence[ast.AST | None]) -> list[ast.expr] | None:
    """`_plain` of each expression, or None if one of them then has no meaning."""
    copies = [copy for copy in map(_plain, nodes) if copy is not None]
    return copies if len(copies) == len(nodes) else None


def _plain_call(node: ast.Call) -> ast.Call | None:
    function, arguments = _plain(node.func), _all_plain(node.args)
    if function is None or arguments is None:
        return None
    keywords = []
    for keyword in node.keywords:
        value = _plain(keyword.value)
        if keyword.arg and value is not None and keyword.arg not in _UNWANTED_KEYWORDS:
            keywords.append(ast.keyword(keyword.arg, value))
    return ast.Call(function, arguments, keywords)
