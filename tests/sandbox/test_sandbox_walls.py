"""Walls that are missing are noticed, named and mended; walls that pretend are seen through."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from programs import INNOCENT, LIMITS, body, needs_wall, open_tier

from etpo_core.errors import UserError
from etpo_core.sandbox import SandboxPool, Status, Tier, bubblewrap, walls
from etpo_core.sandbox import worker as worker_module
from etpo_core.sandbox.doctor import as_text
from etpo_core.sandbox.filter import Unavailable

X, Y = np.arange(80.0).reshape(40, 2) % 7, np.arange(40) % 2
LAYERS = ["system-call filter", "Landlock", "bubblewrap"]
# what a container may forbid, as a filter of the process that then runs the doctor
FORBID = """
import errno, sys
import pyseccomp as seccomp
rules = seccomp.SyscallFilter(seccomp.ALLOW)
if "namespaces" in sys.argv:
    rules.add_rule(seccomp.ERRNO(errno.EPERM), "unshare")
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        rules.add_rule(seccomp.ERRNO(errno.EPERM), "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
if "landlock" in sys.argv:
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), 444)
rules.load()
sys.argv[:] = ["doctor", "doctor", "--json"]
import runpy
runpy.run_module("etpo_core.sandbox", run_name="__main__")
"""


def doctor(*forbidden, path=None):
    """The doctor's report and exit status in a process that lacks something."""
    environment = os.environ | ({"PATH": path} if path is not None else {})
    ended = subprocess.run(
        [sys.executable, "-c", FORBID, *forbidden], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.stdout, ended.stderr
    return json.loads(ended.stdout), ended.returncode


@pytest.fixture
def fresh():
    """Has the walls tried anew, and forgets what was found."""
    walls.probe.cache_clear()
    yield
    walls.probe.cache_clear()


@pytest.fixture(scope="module")
def here():
    """What this machine has, by the doctor's own words."""
    return doctor()[0]


def holding(report):
    return [layer["name"] for layer in report["layers"] if layer["holds"]]


@needs_wall
def test_the_doctor_of_this_machine(here):
    assert here["healthy"] and [layer["name"] for layer in here["layers"]] == LAYERS
    assert all(test["holds"] for test in here["self_test"]) and len(here["self_test"]) == 8
    assert here["cost"]["wall_ms"] > here["cost"]["child_cpu_ms"] > 0
    assert all(bool(layer["mend"]) != layer["holds"] for layer in here["layers"])
    text = as_text(here)
    assert f"tier {here['tier']}" in text and "ms an execution" in text and "EXPECTED" not in text


@needs_wall
@pytest.mark.parametrize(
    ("forbidden", "without"),
    [(("namespaces",), ["bubblewrap"]), (("landlock",), ["Landlock"]), (("namespaces", "landlock"), LAYERS[1:])],
)
def test_the_doctor_where_something_is_forbidden(here, forbidden, without):
    report, status = doctor(*forbidden)
    left = [name for name in holding(here) if name not in without]
    assert status == 0 and holding(report) == left
    assert report["tier"] == ("C" if "Landlock" in without else "B" if "Landlock" in left else "C")
    for layer in report["layers"]:
        if layer["name"] in without:
            assert layer["detail"] and layer["mend"]
    assert all(test["holds"] for test in report["self_test"])


@needs_wall
def test_the_doctor_without_bubblewrap_names_its_package(here):
    report, status = doctor(path="/nowhere")
    assert status == 0 and "bubblewrap" not in holding(report)
    assert report["layers"][2]["detail"] == "not installed" and "install" in report["layers"][2]["mend"]
    assert report["layers"][2]["mend"].endswith("bubblewrap")


def test_the_doctor_without_a_filter_refuses(fresh, monkeypatch, capsys):
    from etpo_core.sandbox import __main__ as command

    def none():
        raise Unavailable("it is missing; run `pip install it`")

    monkeypatch.setattr(walls, "compile_filter", none)
    monkeypatch.setattr(sys, "argv", ["etpo_core.sandbox", "doctor"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "tier D" in said and "to mend: run `pip install it`" in said


@pytest.mark.parametrize(
    ("platform", "text"),
    [("darwin", "no kernel sandbox on macOS"), ("win32", "no kernel sandbox on Windows")],
)
def test_other_systems_are_refused(fresh, monkeypatch, platform, text):
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(UserError, match=text) as caught:
        SandboxPool(1)
    assert "allow_unsafe=True" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_library_names_its_package(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(UserError, match="pip install pyseccomp"):
        SandboxPool(1)


def test_a_missing_system_library_names_its_package(fresh, monkeypatch):
    import ctypes.util

    monkeypatch.delitem(sys.modules, "pyseccomp", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(UserError, match="apt install libseccomp2"):
        SandboxPool(1)


@needs_wall
@pytest.mark.parametrize("program", [bytes.fromhex("060000000000ff7f"), b"\xff" * 8], ids=["allows all", "is rejected"])
def test_a_filter_that_does_not_hold_is_noticed(fresh, monkeypatch, program):
    monkeypatch.setattr(walls, "compile_filter", lambda: program)
    with pytest.raises(UserError, match="does not enforce"):
        SandboxPool(1)


@needs_wall
@pytest.mark.parametrize("layer", LAYERS[1:])
def test_a_wall_that_pretends_is_noticed(fresh, monkeypatch, tmp_path, layer):
    if layer == "bubblewrap":  # it starts what it is to start, and holds nothing in
        (tmp_path / "bwrap").write_text('#!/bin/sh\nwhile [ "$1" != "--chdir" ]; do shift; done; shift 2; exec "$@"\n')
        (tmp_path / "bwrap").chmod(0o755)
        monkeypatch.setattr(bubblewrap, "executable", lambda: str(tmp_path / "bwrap"))
    else:
        copy = tmp_path / "inside"
        subprocess.run(["cp", "-r", str(worker_module._INSIDE), str(copy)], check=True)
        with (copy / "landlock.py").open("a") as file:
            file.write("\ndef give_up_files():\n    pass\n")
        monkeypatch.setattr(worker_module, "_INSIDE", copy)
    report = walls.probe()
    found = report.layers[LAYERS.index(layer)]
    assert not found.holds and found.mend
    with pytest.raises(UserError, match=f"tier A cannot be had here: {layer}"):
        report.walls(Tier.A, False, ())


@pytest.mark.parametrize("tier", ["A", "B", "C"])
def test_a_pool_says_what_holds(tier):
    with open_tier(tier) as pool:
        count = {"A": 3, "B": 2, "C": 1}[tier]
        assert pool.tier == tier and list(pool.layers) == LAYERS[:count]
        assert pool.score(INNOCENT, X, Y, [0]).tier == tier


@needs_wall
def test_a_worker_whose_walls_fell_is_not_used(monkeypatch):
    with SandboxPool(1, LIMITS) as pool:
        monkeypatch.setattr(worker_module.Worker, "wait_tried", lambda self: (0, 0))
        pool._workers[0].kill()
        outcome = pool.score(INNOCENT, X, Y, [0])
    assert outcome.status is Status.INFRASTRUCTURE_FAULT and "walls of a new worker" in outcome.message


def test_tier_d_is_refused_unless_asked_for():
    with pytest.raises(UserError, match="allow_unsafe=True"):
        SandboxPool(1, tier=Tier.D)
    with (
        pytest.warns(RuntimeWarning, match="WITHOUT a sandbox"),
        SandboxPool(1, allow_unsafe=True, tier=Tier.D) as pool,
    ):
        assert pool.layers == () and pool.tier is Tier.D


def in_bubblewrap(code):
    if bubblewrap.executable() is None:
        pytest.skip("bubblewrap is not installed")
    command = bubblewrap.command(("pandas",), worker_module._INSIDE)
    return subprocess.run([*command, sys.executable, "-P", "-s", "-c", code], capture_output=True, text=True)


def test_the_file_tree_of_the_workers_holds_libraries_only():
    here = os.path.dirname(importlib.util.find_spec("sklearn").origin)
    assert len(os.listdir(f"{here}/datasets/data")) > 1  # the control: the tables with their labels are there outside
    ended = in_bubblewrap(
        f"""if True:
        import os, sys, sklearn, pandas
        assert os.listdir({here!r} + "/datasets/data") == ["__init__.py"], "labels"
        assert not os.path.exists({os.getcwd()!r} + "/etpo_paper/environment/text_mdp.py"), "the project"
        assert importlib_finds("pytest") is None, "packages that are not needed"
    """.replace("importlib_finds", "__import__('importlib.util').util.find_spec")
    )
    if "new namespace" in ended.stderr or "uid map" in ended.stderr:
        pytest.skip("no namespaces here")
    assert ended.returncode == 0, ended.stderr


@needs_wall
def test_a_module_to_preload_is_named_when_it_is_missing():
    with pytest.raises(UserError, match="cannot preload 'no_such_module'.*install it"):
        SandboxPool(1, preload=["no_such_module"])
    with pytest.raises(UserError, match="list of module names"):
        SandboxPool(1, preload="pandas")


@needs_wall
def test_modules_are_there_when_named():
    source = body("import pandas; assert pandas.DataFrame({'a': [1]}).a.sum() == 1")
    with SandboxPool(1, LIMITS) as pool:
        assert pool.score(source, X, Y, [0]).error_type == "ModuleNotFoundError"
    with SandboxPool(1, LIMITS, preload=["pandas"]) as pool:
        assert pool.score(source, X, Y, [0]).error_text == ""


def test_the_package_stands_alone():
    script = textwrap.dedent("""
        import sys
        import etpo_core.sandbox
        ours = {name for name in sys.modules if name.startswith("etpo_core.")}
        assert all(name == "etpo_core.errors" or name.startswith("etpo_core.sandbox") for name in ours), ours
        assert not {"torch", "transformers"} & set(sys.modules)
    """)
    subprocess.run([sys.executable, "-c", script], check=True)


@needs_wall
def test_models_that_use_the_other_rows_are_found(pool):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), np.arange(60) % 2
    ranks = """
import numpy as np
class Model:
    classes_ = np.array([0, 1])
    def predict_proba(self, x):
        p = x[:, 0].argsort().argsort() / len(x)
        return np.c_[1 - p, p]
def build_model(x_train, y_train):
    return Model()
"""
    forest = "from sklearn.ensemble import RandomForestClassifier as F\n" + INNOCENT.replace("GaussianNB()", "F(9)")
    assert not pool.predicts_row_by_row(ranks, x, y, [0])
    assert pool.predicts_row_by_row(INNOCENT, x, y, [0, 1]) and pool.predicts_row_by_row(forest, x, y, [0])
    with pytest.raises(UserError, match="does not score"):
        pool.predicts_row_by_row("(", x, y, [0])
