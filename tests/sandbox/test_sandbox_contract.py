"""What a program must do to count, what it may do, and what it may use up."""

# ruff: noqa: E501  one case a line

import time

import numpy as np
import pytest
from programs import INNOCENT, LIMITS, body, needs_wall

from etpo_core.sandbox import Limits, Status

FIT = (
    "from sklearn.{module} import {name}\n"
    "def build_model(x_train, y_train):\n    return {name}({arguments}).fit(x_train, y_train)\n"
)


def model(answer, extra=""):
    """A program whose model answers predict_proba with an expression over x."""
    return (
        f"import numpy as np\nclass Model:\n    {extra or 'classes_ = np.array([0, 1])'}\n"
        f"    def predict_proba(self, x):\n        return {answer}\n"
        "def build_model(x_train, y_train):\n    return Model()\n"
    )


@pytest.mark.parametrize(
    ("source", "status", "text", "line"),
    [
        ("def build_model(x, y:\n    return 1", Status.SNIPPET_ERROR, "SyntaxError", 1),
        ("def build_model(x, y):\n  a = 1\n    b = 2", Status.SNIPPET_ERROR, "IndentationError", 3),
        ("", Status.SNIPPET_ERROR, "defines no function build_model", None),
        ("build_model = 3", Status.SNIPPET_ERROR, "TypeError: 'int' object is not callable", None),
        ("def build_model():\n    pass", Status.SNIPPET_ERROR, "TypeError", None),
        ("def build_model(x, y):\n    pass", Status.SNIPPET_ERROR, "returned None", None),
        ("def build_model(x, y):\n    return int", Status.SNIPPET_ERROR, "returned the class int", None),
        ("def build_model(x, y):\n    return X", Status.SNIPPET_ERROR, "NameError: name 'X' is not defined (line 2)", 2),
        ("1 / 0\ndef build_model(x, y): pass", Status.SNIPPET_ERROR, "ZeroDivisionError: division by zero (line 1)", 1),
        ("def build_model(x, y):\n    import sklearn.nothing", Status.SNIPPET_ERROR, "sklearn.nothing", 2),
        ("def build_model(x, y):\n    from sklearn import nothing", Status.SNIPPET_ERROR, "cannot import name", 2),
        ("def build_model(x, y):\n    import torch", Status.SNIPPET_ERROR, "No module named 'torch' (line 2)", 2),
        ("from sklearn.svm import SVC\ndef build_model(x, y):\n    return SVC()", Status.SNIPPET_ERROR, "decision_function alone", None),
        (FIT.format(module="linear_model", name="Ridge", arguments=""), Status.SNIPPET_ERROR, "has no predict_proba", None),
        (FIT.format(module="linear_model", name="LogisticRegression", arguments="").replace(".fit(x_train, y_train)", ""),
         Status.SNIPPET_ERROR, "NotFittedError", None),
        ("def build_model(x, y):\n    yield 1", Status.SNIPPET_ERROR, "generator", None),
        ("a = '\0'", Status.SNIPPET_ERROR, "", None),
        ("a = '\ud800'", Status.SNIPPET_ERROR, "", None),
        ("x" * 70000, Status.SNIPPET_ERROR, "longer than 65536 bytes", None),
        (body("raise SystemExit('score=1.0')"), Status.SNIPPET_ERROR, "SystemExit", 4),
        (body("raise KeyboardInterrupt"), Status.SNIPPET_ERROR, "KeyboardInterrupt", 4),
        (body("breakpoint()"), Status.SNIPPET_ERROR, "BdbQuit", 5),
        (body("input()"), Status.SNIPPET_ERROR, "EOFError", 4),
        (body("import sys; sys.exit(0)"), Status.SNIPPET_ERROR, "SystemExit", 4),
        (body("def f(): f()\nf()"), Status.SNIPPET_ERROR, "RecursionError", 4),
        (body("import os; os._exit(0)"), Status.NO_RESULT, "without an answer", None),
        (body("import os; os._exit(99)"), Status.NO_RESULT, "without an answer", None),
        (body("import os; os.close(3)"), Status.NO_RESULT, "without an answer", None),
        (body("import ctypes; ctypes.string_at(0)"), Status.CRASH, "SIGSEGV", None),
        (body("import os; os.abort()"), Status.CRASH, "SIG", None),
        (model("np.full((len(x), 1), 0.5)"), Status.BAD_OUTPUT, "shape", None),
        (model("np.full((3, 2), 0.5)"), Status.BAD_OUTPUT, "shape", None),
        (model("np.full((len(x), 2, 1), 0.5)"), Status.BAD_OUTPUT, "shape", None),
        (model("np.full((len(x), 2), np.nan)"), Status.BAD_OUTPUT, "NaN", None),
        (model("np.full((len(x), 2), 'a')"), Status.BAD_OUTPUT, "not numbers", None),
        (model("np.full((len(x), 2), 1j)"), Status.BAD_OUTPUT, "not numbers", None),
        (model("np.full((len(x), 2), 0.5)", "classes_ = np.array([0, 0])"), Status.OK, "", None),
        (model("[[0.5, 0.5] for _ in x]"), Status.OK, "", None),
        (model("np.full((len(x), 2), 0.5)", "pass"), Status.OK, "", None),
        (model("np.full((len(x), 2), 0.5)", "classes_ = np.array(['a', 'b'])"), Status.OK, "", None),
        ("build_model = lambda a, b: __import__('sklearn.naive_bayes').naive_bayes.GaussianNB().fit(a, b)", Status.OK, "", None),
        (body("import warnings\nfor i in range(5000): warnings.warn(str(i))"), Status.OK, "", None),
        (body("print('x' * 50_000_000)"), Status.OK, "", None),
        (body("x_train[:] = 0; y_train[0] = 1 - y_train[0]\nx_train += np.arange(len(x_train))[:, None]"), Status.OK, "", None),
        (body("try:\n    import lightgbm_absent\nexcept ImportError:\n    pass"), Status.OK, "", None),
        (body("import threading\nfor _ in range(4):\n    t = threading.Thread(target=sum, args=([1],)); t.start(); t.join()"), Status.OK, "", None),
    ],
)  # fmt: skip
def test_contract(run, table, source, status, text, line):
    before = [array.copy() for array in table]
    outcome = run(source)
    assert outcome.status is status, outcome
    assert text in outcome.error_text
    assert outcome.line == line
    assert (outcome.score is None) == (status is not Status.OK)
    assert all((a == b).all() for a, b in zip(before, table, strict=True))


@pytest.mark.parametrize(
    ("source", "statuses"),
    [
        (body("while True: pass"), {Status.TIMEOUT}),
        (body("import signal\nfor s in (1, 2, 14, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"), {Status.TIMEOUT}),
        (body("import re; re.match('(a+)+b', 'a' * 40)"), {Status.TIMEOUT}),
        (body("class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E"), {Status.TIMEOUT}),
        (body("10 ** 10 ** 9"), {Status.TIMEOUT, Status.OUT_OF_MEMORY}),
        (body("np.ones(10 ** 10)"), {Status.OUT_OF_MEMORY}),
        (body("a = []\nwhile True: a.append(np.zeros(1 << 24))"), {Status.OUT_OF_MEMORY}),
        (body("'a' * 2 ** 40"), {Status.OUT_OF_MEMORY}),
        (body("import mmap\nm = mmap.mmap(-1, 8 << 30)"), {Status.OUT_OF_MEMORY, Status.SNIPPET_ERROR}),
        (body("import threading, time\nfor _ in range(10 ** 5): threading.Thread(target=time.sleep, args=(9,)).start()"),
         {Status.SNIPPET_ERROR, Status.OUT_OF_MEMORY}),
        (body("import os\nwhile True: os.dup(0)"), {Status.SNIPPET_ERROR}),
        ("a = " + "(" * 5000 + ")" * 5000, {Status.SNIPPET_ERROR, Status.OUT_OF_MEMORY}),
        (body("import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()"),
         {Status.TIMEOUT, Status.CRASH, Status.OUT_OF_MEMORY}),
        (model("np.ones((len(x), 1 << 28))"), {Status.OUT_OF_MEMORY}),
    ],
)  # fmt: skip
def test_resources(run, source, statuses):
    outcome = run(source)
    assert outcome.status in statuses, outcome
    assert outcome.error_type and outcome.message and outcome.cpu_s < LIMITS.cpu_s + 1.5


@pytest.mark.parametrize(
    "text", ["import time; time.sleep(1e6)", "import os, time; os.write(3, b'E'); time.sleep(1e6)"]
)
def test_sleepers_meet_the_wall_clock(run, pool, monkeypatch, text):
    monkeypatch.setattr(pool, "limits", Limits(cpu_s=5, wall_s=1.0))
    started = time.monotonic()
    outcome = pool.score(body(text), np.arange(20.0)[:, None], np.arange(20) % 2, [3])
    assert outcome.status is Status.TIMEOUT and "longer than 1 s" in outcome.message
    assert time.monotonic() - started < 6
    monkeypatch.undo()
    run(INNOCENT)


@needs_wall
@pytest.mark.parametrize("kind", ["fit", "predict"])
def test_files_stay_shut_in_every_phase(run, kind):
    late = "class M(GaussianNB):\n    def predict_proba(self, x):\n        open('/etc/hostname')\n"
    late += "return M().fit(x_train, y_train)"
    outcome = run(body("open('/etc/hostname')" if kind == "fit" else late))
    assert outcome.error_type == "PermissionError"


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("ensemble", "RandomForestClassifier", "n_estimators=10, n_jobs=-1"),
        ("ensemble", "HistGradientBoostingClassifier", "max_iter=10"),
        ("ensemble", "BaggingClassifier", "n_jobs=-1"),
        ("ensemble", "AdaBoostClassifier", "n_estimators=5"),
        ("ensemble", "GradientBoostingClassifier", "n_estimators=10"),
        ("neighbors", "KNeighborsClassifier", "n_jobs=-1"),
        ("neural_network", "MLPClassifier", "max_iter=20"),
        ("gaussian_process", "GaussianProcessClassifier", ""),
        ("discriminant_analysis", "LinearDiscriminantAnalysis", ""),
        ("tree", "DecisionTreeClassifier", "max_depth=3"),
    ],
)
def test_estimators_work(run, module, name, arguments):
    outcome = run(FIT.format(module=module, name=name, arguments=arguments))
    assert outcome.status is Status.OK, outcome


def test_search_and_clusters_work(run):
    outcome = run(
        "import pandas as pd\nfrom joblib import parallel_backend\nfrom sklearn.cluster import KMeans\n"
        "from sklearn.linear_model import LogisticRegression\nfrom sklearn.model_selection import GridSearchCV\n"
        "from sklearn.pipeline import make_pipeline\n"
        "def build_model(x_train, y_train):\n"
        "    pd.DataFrame(x_train).describe()\n"
        "    with parallel_backend('loky'):\n"
        "        search = GridSearchCV(LogisticRegression(), {'C': [0.1, 1.0]}, n_jobs=-1, cv=3)\n"
        "        return make_pipeline(KMeans(4), search).fit(x_train, y_train)\n"
    )
    assert outcome.status is Status.OK, outcome


def test_a_failing_first_split_ends_the_job(pool, table):
    failing = body("import time; time.sleep(0.05); raise ValueError('first')")
    outcome = pool.score(failing, *table, range(5))
    assert outcome.status is Status.SNIPPET_ERROR and outcome.scores == ()
    assert outcome.wall_s < pool.score(body("import time; time.sleep(0.05)"), *table, range(5)).wall_s
