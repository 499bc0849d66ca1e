"""How stages and notebooks are tested without starting processes: in this process, on a project of a test's own."""

import importlib
import io
import itertools
import pkgutil
import subprocess
import sys
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
OURS = ("etpo_core.", "etpo_paper.", "pipeline.", "benchmarks.")
_one_at_a_time = threading.Lock()  # of what is done instead of processes: printing is caught for all threads


def run_module(module, *arguments):
    """Does `python -m MODULE ARGUMENTS` in this process; returns its exit status and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    found = importlib.import_module(module)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        try:
            found.main()
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@contextmanager
def nothing_is_timed():
    """Has a stage take the number of threads and the precision that its settings say, without trying what is faster."""
    from etpo_paper.base import machine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "_rate", lambda dtype: 1.0)
        yield


def instead_of_processes(monkeypatch):
    """Has `subprocess.run` do what `python -m MODULE` of ours would, in this process.

    Returns:
        A list that grows by the command and the environment of each.
    """
    commands, run = [], subprocess.run

    def instead(command, **options):
        if command[:2] != [sys.executable, "-m"] or not command[2].startswith(OURS):
            return run(command, **options)
        commands.append((command, options.get("env")))
        with _one_at_a_time:
            return run_module(*command[2:])

    monkeypatch.setattr(subprocess, "run", instead)
    return commands


def move(monkeypatch, root):
    """Has the project live in another folder, for this process and those that it starts."""
    import pipeline
    from etpo_paper.base import paths

    for module in pkgutil.iter_modules(pipeline.__path__, "pipeline."):
        importlib.import_module(module.name)  # a module that is imported later would keep the folders of the test
    old = paths.ROOT
    # Copies, because a thread that another test has left may still import.
    for module in [module for name, module in sys.modules.copy().items() if name.startswith(OURS)]:
        for name, value in vars(module).copy().items():
            if isinstance(value, Path) and value.is_relative_to(old):
                monkeypatch.setattr(module, name, root / value.relative_to(old))
    monkeypatch.setenv("ETPO_ROOT", str(root))


# Notebooks -----------------------------------------------------------------------------------------------------------


def execute_here(manager):
    """Executes the code cells of a notebook that papermill manages, in this process instead of a kernel's.

    Cells are executed as plain Python, so what IPython would show of their last lines is not made.
    """
    import matplotlib.pyplot as plt
    import nbformat
    from IPython.display import display

    names = {"__name__": "__main__", "In": [""], "display": display}
    with plt.rc_context():
        for index, cell in enumerate(manager.nb.cells):
            manager.cell_start(cell, index)
            try:
                if cell.cell_type == "code":
                    names["In"].append(cell.source)
                    exec(compile(cell.source, f"cell {index}", "exec"), names)
            except Exception as error:
                shown = {"ename": type(error).__name__, "evalue": str(error), "traceback": [repr(error)]}
                cell.outputs, cell.execution_count = [nbformat.v4.new_output("error", **shown)], len(names["In"]) - 1
                manager.cell_exception(cell, index, exception=error)
                break
            finally:
                manager.cell_complete(cell, index)
        plt.close("all")


class InThisProcess:
    """Within it, papermill executes notebooks by `execute_here`; all that it does besides stays the same."""

    def __enter__(self):
        from papermill.engines import Engine, papermill_engines

        class Here(Engine):
            @classmethod
            def execute_managed_notebook(cls, nb_man, kernel_name, **_):
                execute_here(nb_man)

        self._engines, self._usual = papermill_engines, papermill_engines.get_engine(None)
        papermill_engines.register(None, Here)
        return self

    def __exit__(self, *error):
        self._engines.register(None, self._usual)


def stop_after_an_update(patch):
    """Has `etpo fit` stopped as by Ctrl-C when it has made an update."""
    from etpo_paper.use import fit

    train = fit.train

    def stops(*given):
        yield from itertools.islice(train(*given), 1)
        raise KeyboardInterrupt

    patch.setattr(fit, "train", stops)
