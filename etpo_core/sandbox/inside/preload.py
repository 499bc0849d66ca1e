"""Imports and warms up everything that a program may need, before the walls go up.

A child process cannot open files, so a module that is not loaded here cannot be imported there. A few small models are
fitted as well: the first call of a function costs several times as much as later calls, and every child would have to
pay for it again. Fitting in the zygote is safe only because the libraries use one thread: once a process has run a
parallel OpenMP loop, the children that it forks hang in their first one.
"""

import importlib
import io
import os
import pkgutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress

# These start threads or are large, and scikit-learn works without them. Those that the user names are let in.
_KEPT_OUT = {"torch", "pyarrow", "matplotlib", "cupy", "jax", "dask", "polars", "tensorflow", "IPython", "pandas"}
_KEPT_OUT |= {"pytest", "hypothesis"}
# Loaded whole where they are installed, because they import much of themselves at the first use only.
_WHOLE = ("numpy", "scipy", "joblib", "threadpoolctl", "sklearn", "narwhals", "dateutil", "pandas")
_LEFT_OUT = {"tests", "test", "conftest", "this", "__main__", "_build_utils", "_precompute", "f2py", "distutils"}
_LEFT_OUT |= {"antigravity", "idlelib", "tkinter", "turtle", "turtledemo", "lib2to3"}  # of the standard library


class Gate:
    """The first import finder: refuses modules with the error that a missing module raises."""

    def __init__(self, names: set[str] | None) -> None:
        """Refuses the named top-level packages, or with None every module that is not built into the interpreter."""
        self._names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises ModuleNotFoundError for a refused module and leaves all others to the next finder."""
        if self._names is None:
            refused = name not in sys.builtin_module_names
        else:
            refused = name.partition(".")[0] in self._names
        if refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def preload(extra: list[str]) -> None:
    """Imports the usual modules and those named in `extra`; takes one to three seconds, once for each worker.

    Raises:
        SystemExit: a module of `extra` cannot be imported or starts threads; the message says so in one line.
    """
    gate = Gate(_KEPT_OUT - {name.partition(".")[0] for name in extra})
    sys.meta_path.insert(0, gate)
    for name in extra:
        _load(name)
    with redirect_stdout(io.StringIO()):  # a few modules print
        for name in (*sorted(sys.stdlib_module_names), *_WHOLE):
            _load_whole(name)
    sys.meta_path.remove(gate)
    _fill_caches()
    _fit_once()


def _load_whole(name: str) -> None:
    """Imports a module and all that is below it."""
    if name.rpartition(".")[2] in _LEFT_OUT:
        return
    try:
        package = importlib.import_module(name)
    except Exception:  # it may need a package that is not installed, or another system
        return
    for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
        _load_whole(f"{name}.{module.name}")


def _load(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SystemExit(f"cannot preload {name!r} ({why}); install it or take it off the list") from None
    if os.path.isdir("/proc/self/task") and len(os.listdir("/proc/self/task")) > 1:
        raise SystemExit(f"cannot preload {name!r} (it starts threads when imported); take it off the list")


def _fill_caches() -> None:
    """Has the libraries read those files now that they would read, and remember, at their first use."""
    import joblib
    from sklearn.utils._openmp_helpers import _openmp_effective_n_threads
    from sklearn.utils.parallel import _get_threadpool_controller
    from threadpoolctl import ThreadpoolController

    loaded = ThreadpoolController().lib_controllers  # reads /proc/self/maps, as each new controller would
    for library in loaded:
        library.set_num_threads(1)  # not every library reads the environment: scipy's reader of matrices does not
    _get_threadpool_controller()
    ThreadpoolController._load_libraries = lambda self: self.lib_controllers.extend(loaded)
    pkgutil.iter_modules = _loaded_modules
    with suppress(ImportError, OSError):  # the picture of an estimator opens a file of this folder each time
        from sklearn.utils._repr_html import estimator

        with open(os.path.join(os.path.dirname(estimator.__file__), "estimator.js")) as file:
            script = file.read()
        estimator.open = lambda *_: io.StringIO(script)
    _openmp_effective_n_threads()
    joblib.cpu_count(only_physical_cores=True)
    # Two on every machine, for programs that leave one core to others; joblib alone would say one.
    os.cpu_count = joblib.cpu_count = lambda only_physical_cores=False: 2
    time.tzset()
    time.strftime("%c")
    time.strptime("2024", "%Y")


def _loaded_modules(path: Iterable[str] | None = None, prefix: str = "") -> Iterator[pkgutil.ModuleInfo]:
    """What `pkgutil.iter_modules` would find in folders, as far as it is loaded; `all_estimators` searches so."""
    wanted = {os.path.normpath(folder) for folder in path or ()}
    for package in [name for name, module in sys.modules.items() if hasattr(module, "__path__")]:
        if wanted.intersection(map(os.path.normpath, sys.modules[package].__path__)):
            for name in [name for name in sys.modules if name.rpartition(".")[0] == package]:
                member = name.rpartition(".")[2]
                yield pkgutil.ModuleInfo(None, prefix + member, hasattr(sys.modules[name], "__path__"))


def _fit_once() -> None:
    """Runs common models eight times, after which the interpreter has specialised their code."""
    import numpy as np
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    x = np.random.default_rng(0).normal(size=(40, 4))
    y = np.arange(40) % 3
    models = (
        make_pipeline(StandardScaler(), LogisticRegression()),
        RandomForestClassifier(8, random_state=0),
        GradientBoostingClassifier(n_estimators=8, random_state=0),
        KNeighborsClassifier(),
        SVC(random_state=0),
        GaussianNB(),
        DecisionTreeClassifier(random_state=0),
    )
    for _ in range(8):
        for model in models:
            model.fit(x, y).predict(x)
            if hasattr(model, "predict_proba"):
                model.predict_proba(x)
