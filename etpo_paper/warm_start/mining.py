"""Reads real classifier constructions out of the installed scikit-learn.

scikit-learn's docstrings and test functions are full of calls such as `LogisticRegression(C=10, max_iter=500)` or
`make_pipeline(StandardScaler(), SVC())`, written by its authors (BSD-3-Clause). This module finds every such call with
Python's own parser, keeps the arguments that stand for themselves - literals, other scikit-learn constructors,
`np.` expressions - and drops the keywords that refer to a variable of the surrounding code. Nothing is run here.
"""

import ast
import doctest
import importlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sklearn
from sklearn.base import ClassifierMixin

# Where public names live. Not `datasets`, `metrics`, `utils`: a body needs only what makes a model.
_MODULES = (
    "calibration cluster compose decomposition discriminant_analysis dummy ensemble feature_selection "
    "gaussian_process gaussian_process.kernels impute kernel_approximation linear_model model_selection multiclass "
    "naive_bayes neighbors neural_network pipeline preprocessing random_projection semi_supervised svm tree"
).split()
_PIPELINES = ("Pipeline", "make_pipeline")
# These would print, start processes or leave files behind in the executor.
_UNWANTED_KEYWORDS = {"verbose", "n_jobs", "memory"}


@dataclass(frozen=True, order=True)
class Construction:
    """One construction of a classifier.

    Attributes:
        classifier: name of the class that decides, e.g. "SVC" for a pipeline that ends in an SVC.
        expression: the call as source text on one line.
        names: the scikit-learn names that it uses, sorted.
    """

    classifier: str
    expression: str
    names: tuple[str, ...]

    @property
    def is_pipeline(self) -> bool:
        """Whether the model is a pipeline."""
        return self.expression.startswith(_PIPELINES)


@cache
def public_names() -> dict[str, str]:
    """Public scikit-learn names and the module each is imported from; slow searches over parameters are left out."""
    names = {}
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
    """Names of the public classifier classes."""
    found = set()
    for name, module in public_names().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            item = getattr(importlib.import_module(module), name, None)
        if isinstance(item, type) and issubclass(item, ClassifierMixin):
            found.add(name)
    return frozenset(found)


def mine(package: Path | None = None) -> list[Construction]:
    """Every distinct construction in a package's docstring examples and test functions, sorted.

    Args:
        package: folder of Python files; by default the installed scikit-learn.
    """
    package = package or Path(sklearn.__file__).parent
    found = set()
    for path in sorted(package.rglob("*.py")):
        for tree in _trees(path, is_test="tests" in path.relative_to(package).parts):
            found.update(_constructions(tree))
    return sorted(found)


def _trees(path: Path, is_test: bool) -> Iterator[ast.AST]:
    text = path.read_text(encoding="utf-8")
    if is_test:
        if any(name in text for name in classifiers()):
            yield ast.parse(text)
        return
    if ">>>" not in text:
        return
    parser = doctest.DocTestParser()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node)):
            try:
                source = "".join(example.source for example in parser.get_examples(doc))
                yield ast.parse(source)
            except (ValueError, SyntaxError):
                continue  # an example that is not meant to be parsed


def _constructions(tree: ast.AST) -> Iterator[Construction]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _called(node) not in {*_PIPELINES, *classifiers()}:
            continue
        call = _plain(node)
        if call is None:
            continue
        names = {item.id for item in ast.walk(call) if isinstance(item, ast.Name)} - {"np"}
        yield Construction(_decides(call), ast.unparse(call), tuple(sorted(names)))


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _decides(call: ast.Call) -> str:
    """Name of the class of a call, or of the last step of a pipeline."""
    last: ast.AST | None = None
    if _called(call) == "make_pipeline" and call.args:
        last = call.args[-1]
    if _called(call) == "Pipeline":
        steps = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "steps"), None)
        if isinstance(steps, ast.List) and steps.elts and isinstance(steps.elts[-1], ast.Tuple):
            last = steps.elts[-1].elts[-1]
    return _decides(last) if isinstance(last, ast.Call) else _called(call)


def _plain(node: ast.AST) -> ast.expr | None:
    """A copy of an expression with everything in it standing for itself, or None if that cannot be."""
    if isinstance(node, ast.Constant):
        return node
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
        return node
    if isinstance(node, ast.Name):
        return node if node.id in public_names() else None
    if isinstance(node, ast.Attribute):
        return node if isinstance(node.value, ast.Name) and node.value.id == "np" else None
    if isinstance(node, ast.List | ast.Tuple):
        items = [_plain(item) for item in node.elts]
        return None if None in items else type(node)(items, ast.Load())
    if isinstance(node, ast.Dict):
        keys, values = [_plain(key) for key in node.keys], [_plain(value) for value in node.values]
        return None if None in keys + values else ast.Dict(keys, values)
    if isinstance(node, ast.Call):
        return _plain_call(node)
    return None


def _plain_call(node: ast.Call) -> ast.Call | None:
    function = _plain(node.func)
    arguments = [_plain(argument) for argument in node.args]
    if function is None or None in arguments:
        return None
    keywords = []
    for keyword in node.keywords:
        value = _plain(keyword.value)
        if keyword.arg and value is not None and keyword.arg not in _UNWANTED_KEYWORDS:
            keywords.append(ast.keyword(keyword.arg, value))
    return ast.Call(function, arguments, keywords)
