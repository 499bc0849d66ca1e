"""Walls that are missing are noticed, named and mended; walls that pretend are seen through."""

import importlib.util
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from programs import HONEST, INNOCENT, LIMITS, body, children, needs_wall, until

from etpo_core.errors import UserError
from etpo_core.sandbox import SandboxPool, Status, Tier, bubblewrap, walls
from etpo_core.sandbox import worker as worker_module
from etpo_core.sandbox.doctor import as_text, examine
from etpo_core.sandbox.filter import Unavailable

X, Y = np.arange(80.0).reshape(40, 2) % 7, np.arange(40) % 2
LAYERS = ["system-call filter", "Landlock", "bubblewrap"]
# What a container may forbid, as a filter of a process that then tries the walls or, with `doctor`, runs the doctor. A
# line of output for each list of things that it is to lack; the first line names the modules that are loaded for it.
WITHOUT = """
import dataclasses, errno, json, os, sys
from etpo_core.sandbox import Tier
from etpo_core.sandbox.walls import probe
print(json.dumps(sorted(sys.modules)), flush=True)
import pyseccomp as seccomp
from etpo_core.sandbox.doctor import examine
for lacks in sys.argv[2:]:
    if os.fork():
        os.wait()
        continue
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    if "namespaces" in lacks:
        rules.add_rule(seccomp.ERRNO(errno.EPERM), "unshare")
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
        for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
            rules.add_rule(seccomp.ERRNO(errno.EPERM), "clone", seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag))
    if "landlock" in lacks:
        rules.add_rule(seccomp.ERRNO(errno.ENOSYS), 444)
    if "package" in lacks:
        os.environ["PATH"] = "/nowhere"
    rules.load()
    found = probe()
    layers = [dataclasses.asdict(layer) for layer in found.layers]
    report = examine() if sys.argv[1] == "doctor" else {"layers": layers, "tier": str(found.tier)}
    print(json.dumps(report), flush=True)
    os._exit(0)
"""
LACKS = {"nothing": [], "namespaces": ["bubblewrap"], "landlock": ["Landlock"], "namespaces landlock": LAYERS[1:]}
LACKS["package"] = ["bubblewrap"]


def reports(what):
    """The modules that trying the walls loads; by what is lacking, what a process finds that lacks it."""
    ended = subprocess.run([sys.executable, "-c", WITHOUT, what, *LACKS], capture_output=True, text=True)
    modules, *found = map(json.loads, ended.stdout.splitlines())
    assert len(found) == len(LACKS), ended.stderr
    return modules, dict(zip(LACKS, found, strict=True))


@pytest.fixture(scope="module")
def tried():
    return reports("probe")


@pytest.fixture
def fresh():
    """Has the walls tried anew, and forgets what was found."""
    walls.probe.cache_clear()
    yield
    walls.probe.cache_clear()


def holding(report):
    return [layer["name"] for layer in report["layers"] if layer["holds"]]


@needs_wall
@pytest.mark.nightly
def test_the_doctor_of_this_machine():
    report = examine()
    assert report["healthy"] and [layer["name"] for layer in report["layers"]] == LAYERS
    assert all(test["holds"] for test in report["self_test"]) and len(report["self_test"]) == 8
    assert report["cost"]["wall_ms"] > report["cost"]["child_cpu_ms"] > 0
    assert all(bool(layer["mend"]) != layer["holds"] for layer in report["layers"])
    text = as_text(report)
    assert f"tier {report['tier']}" in text and "ms an execution" in text and "EXPECTED" not in text


def check(found, lacking):
    """What is lacking is found to be so and named with its remedy; the tier is what is left."""
    without = LACKS[lacking]
    report = found[lacking]
    assert holding(report) == [name for name in holding(found["nothing"]) if name not in without]
    left = holding(report)
    assert report["tier"] == ("A" if left == LAYERS else "B" if left == LAYERS[:2] else "C")
    for layer in report["layers"]:
        assert layer["detail"]
        if layer["name"] in without:
            assert layer["mend"]


@needs_wall
@pytest.mark.parametrize("lacking", [name for name in LACKS if name != "nothing"])
def test_a_wall_that_something_forbids_is_named(tried, lacking):
    check(tried[1], lacking)


@needs_wall
def test_bubblewrap_that_is_not_installed_is_named_as_a_package(tried):
    layer = tried[1]["package"]["layers"][2]
    assert layer["detail"] == "not installed" and "apt install bubblewrap" in layer["mend"]


@needs_wall
def test_the_executor_loads_nothing_else_of_ours(tried):
    ours = [name for name in tried[0] if name.startswith(("etpo_core.", "etpo_paper", "pipeline"))]
    assert all(name == "etpo_core.errors" or name.startswith("etpo_core.sandbox") for name in ours), ours
    assert not {"torch", "transformers"} & set(tried[0])


@needs_wall
@pytest.mark.nightly
def test_the_doctor_where_something_is_forbidden():
    found = reports("doctor")[1]
    for lacking, report in found.items():
        check(found, lacking)
        assert report["healthy"] and all(test["holds"] for test in report["self_test"]), lacking


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
def test_a_pool_says_what_holds(tier_pool, tier):
    pool, count = tier_pool(tier), {"A": 3, "B": 2, "C": 1}[tier]
    assert pool.tier == tier and list(pool.layers) == LAYERS[:count]
    assert pool.score(INNOCENT, X, Y, [0]).tier == tier


@needs_wall
def test_a_worker_whose_walls_fell_is_not_used(quick_workers, monkeypatch):
    others = children(os.getpid())
    with SandboxPool(1, LIMITS) as pool:
        monkeypatch.setattr(worker_module.Worker, "wait_tried", lambda self: (0, 0))
        for pid in set(children(os.getpid())) - set(others):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not pool._workers[0].whole)
        outcome = pool.score(HONEST, X, Y, [0])
    assert outcome.status is Status.INFRASTRUCTURE_FAULT and "walls of a new worker" in outcome.message


def test_tier_d_is_refused_unless_asked_for(quick_workers):
    with pytest.raises(UserError, match="allow_unsafe=True"):
        SandboxPool(1, tier=Tier.D)
    with (
        pytest.warns(RuntimeWarning, match="WITHOUT a sandbox"),
        SandboxPool(1, allow_unsafe=True, tier=Tier.D) as pool,
    ):
        assert pool.layers == () and pool.tier is Tier.D


def test_the_file_tree_of_the_workers_holds_libraries_only():
    if bubblewrap.executable() is None:
        pytest.skip("bubblewrap is not installed")
    here = os.path.dirname(importlib.util.find_spec("sklearn").origin)
    assert len(os.listdir(f"{here}/datasets/data")) > 1  # the control: the tables with their labels are there outside
    code = f"""if True:
        import importlib.util, os
        assert os.listdir({here!r} + "/datasets/data") == ["__init__.py"], "labels"
        assert not os.path.exists({os.getcwd()!r} + "/etpo_paper/environment/episodes.py"), "the project"
        there = [name for name in ("numpy", "sklearn", "pandas", "pytest", "torch") if importlib.util.find_spec(name)]
        assert there == ["numpy", "sklearn", "pandas"], there
    """
    command = bubblewrap.command(("pandas",), worker_module._INSIDE)
    ended = subprocess.run([*command, sys.executable, "-P", "-s", "-c", code], capture_output=True, text=True)
    if "new namespace" in ended.stderr or "uid map" in ended.stderr:
        pytest.skip("no namespaces here")
    assert ended.returncode == 0, ended.stderr


@needs_wall
def test_a_module_to_preload_is_named_when_it_is_missing(quick_workers):
    with pytest.raises(UserError, match="cannot preload 'no_such_module'.*install it"):
        SandboxPool(1, preload=["no_such_module"])
    with pytest.raises(UserError, match="list of module names"):
        SandboxPool(1, preload="pandas")


@needs_wall
def test_modules_are_there_when_named(pool):
    source = body("import pandas; assert pandas.DataFrame({'a': [1]}).a.sum() == 1")
    assert pool.score(source, X, Y, [0]).error_type == "ModuleNotFoundError"
    with SandboxPool(1, LIMITS, preload=["pandas"]) as other:
        assert other.score(source, X, Y, [0]).error_text == ""


def test_landlock_takes_away_every_right_that_the_kernel_knows(monkeypatch):
    monkeypatch.syspath_prepend(str(worker_module._INSIDE))
    from landlock import rights

    # The numbers of rights that the kernel's header defines, by ABI: of files, of the network, of scopes.
    counts = {1: (13, 0, 0), 2: (14, 0, 0), 3: (15, 0, 0), 4: (15, 2, 0), 5: (16, 2, 0), 6: (16, 2, 2)}
    counts |= {7: (16, 2, 2), 8: (16, 2, 2), 9: (17, 2, 2), 10: (17, 4, 2), 11: (17, 4, 2)}
    assert {version: tuple(mask.bit_length() for mask in rights(version)) for version in counts} == counts
    assert all(mask + 1 == 1 << mask.bit_length() for version in counts for mask in rights(version))
