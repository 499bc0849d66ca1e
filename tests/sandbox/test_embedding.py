"""The executor in somebody else's project: threads, event loops, notebooks, pytest, bare scripts, users, a wheel.

What docs/executor.md says under "In your own project" is tried here.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from programs import INNOCENT, LIMITS, REQUIRED, body, needs_wall, quick_body
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB

from etpo_core.sandbox import Outcome, SandboxPool, Status, bubblewrap

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NOBODY = 54321  # a user that the machine has no entry for, as containers have them
# What a person would write, at the top level of a file; the workers load numpy only.
SCRIPT = """
import sys
from pathlib import Path
from etpo_core.sandbox import SandboxPool, worker
worker._INSIDE = Path({inside!r})
import numpy as np
pool = SandboxPool(workers=2)
x, y = np.arange(80.0).reshape(40, 2), np.arange(40) % 2
print(*[outcome.status for outcome in pool.score_many({programs!r}, x, y, range(2))], "torch" in sys.modules)
pool.close()
"""
PROGRAMS = [quick_body(""), quick_body("1 / 0")]
SAID = "ok snippet_error False"


def script(inside):
    return SCRIPT.format(inside=str(inside), programs=PROGRAMS)


def environment(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (CHECKOUT, HERE, CHECKOUT / "tests"))), **more}


@needs_wall
def test_threads_share_a_pool(pool, table, honest):
    """Eight threads at once, each with a program of its own and one that all of them ask for."""
    programs = [[f"{INNOCENT}# thread {n}", f"assert False, {n}", f"{INNOCENT}# shared"] for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda sources: pool.score_many(sources, *table, [0]), programs))
    for n, outcomes in enumerate(found):
        assert [o.score for o in outcomes] == [honest, None, honest]
        assert outcomes[1].message == str(n)


@needs_wall
def test_an_event_loop_goes_on_while_it_waits(pool, table, honest):
    async def several():
        calls = [asyncio.to_thread(pool.score, f"{INNOCENT}# call {n}", *table, [0]) for n in range(6)]
        waiting, turns = asyncio.gather(*calls), 0
        while not waiting.done():
            await asyncio.sleep(0.001)
            turns += 1
        return await waiting, turns

    outcomes, turns = asyncio.run(several())
    assert [o.score for o in outcomes] == [honest] * 6 and turns > 1


@needs_wall
def test_a_cancelled_await_leaves_the_program_to_its_limits(pool, table, honest):
    looping = body("while True: pass  # nobody waits")

    async def impatient():
        await asyncio.wait_for(asyncio.to_thread(pool.score, looping, *table, [0]), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())  # at its end it waits for its threads
    outcome = pool.score(looping, *table, [0])  # known by now
    assert outcome.status is Status.TIMEOUT and outcome.cpu_s >= LIMITS.cpu_s
    assert pool.score(f"{INNOCENT}# after it", *table, [0]).score == honest


@needs_wall
def test_workers_read_no_packages_of_a_user(pool, table):
    source = body("import sys; assert sys.flags.no_user_site and sys.flags.safe_path")
    assert pool.score(source, *table, [0]).status is Status.OK


@needs_wall
def test_a_pool_opens_and_scores_inside_a_running_loop(quick_workers, table):
    """As a cell of a notebook does, whose kernel has a loop."""

    async def cell():
        with SandboxPool(1) as pool:
            return pool.score(PROGRAMS[0], *table, [0])

    assert asyncio.run(cell()).status is Status.OK


@needs_wall
def test_the_example_of_a_reward_function(pool, table, monkeypatch):
    """Called and awaited by the names that TRL hands over; the honest program's score is worked out by hand."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "examples"))
    import reward_function

    other = table[0] + 3 * table[1][:, None], table[1]
    completions = [f"Here:\n```python\n{INNOCENT}```\nIt fits.", INNOCENT, *reward_function.COMPLETIONS[1:]]
    given = {"prompts": [""] * 4, "completions": completions, "completion_ids": [[0]] * 4, "trainer_state": None}
    reward = reward_function.rewards(pool, {"mine": table, "easy": other})
    found = reward(**given, table=["mine", "easy", "mine", "easy"])
    expected = [by_hand(*table), by_hand(*other), -1.0, -1.0]
    assert found == pytest.approx(expected, abs=1e-6)  # scores are rounded to six decimals
    assert asyncio.run(reward_function.awaited(reward)(**given, table=["mine", "easy", "mine", "easy"])) == found
    monkeypatch.setattr(pool, "score_many", lambda programs, *_, **__: [Outcome(Status.INFRASTRUCTURE_FAULT)])
    assert reward(prompts=[""], completions=[INNOCENT], table=["mine"]) == [None]


def by_hand(x, y):
    """Mean ROC AUC of naive Bayes over the five halves."""
    halves = [train_test_split(x, y, test_size=0.5, random_state=seed) for seed in range(5)]
    fits = [(GaussianNB().fit(x_train, y_train), x_test, y_test) for x_train, x_test, y_train, y_test in halves]
    return sum(roc_auc_score(y_test, fit.predict_proba(x_test)[:, 1]) for fit, x_test, y_test in fits) / 5


@needs_wall
@pytest.mark.parametrize("how", ["a file", pytest.param("standard input", marks=pytest.mark.nightly)])
def test_a_script_needs_no_main_guard(quick_program, tmp_path, how):
    (tmp_path / "script.py").write_text(script(quick_program))
    command = [sys.executable, "script.py"] if how == "a file" else [sys.executable, "-"]
    given = None if how == "a file" else script(quick_program)
    done = subprocess.run(command, cwd=tmp_path, env=environment(), input=given, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (SAID, "")


@needs_wall
def test_another_user_whom_the_machine_does_not_know(quick_program, tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user already")
    monkeypatch.syspath_prepend(str(CHECKOUT / "tests" / "nightly"))
    import unprivileged

    monkeypatch.setattr(unprivileged, "NOBODY", NOBODY)
    drop, why_not = unprivileged.command_as_nobody()
    if drop is None:
        pytest.skip(why_not)
    # pytest's folders are closed to others, so the script and the worker's program are handed over otherwise.
    inside = CHECKOUT / "etpo_core" / "sandbox" / "inside"
    alone = environment(HOME="/nonexistent")
    done = subprocess.run(
        [*drop, sys.executable, "-"], cwd="/", env=alone, input=script(inside), capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == (SAID, "")


def test_bubblewrap_finds_the_worker_where_the_package_is_installed(tmp_path):
    """In an environment of its own, so that the folder of the worker's program lies in that one's site-packages."""
    if bubblewrap.executable() is None:
        pytest.skip("bubblewrap is not installed")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
    subprocess.run(["cp", "-r", CHECKOUT / "etpo_core", site], check=True)
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # numpy and scikit-learn
    code = """if True:
        import subprocess, sys
        from etpo_core.sandbox import bubblewrap, worker
        assert str(worker._INSIDE).startswith(sys.prefix), worker._INSIDE
        look = "import os; print(sorted(os.listdir(%r)))" % str(worker._INSIDE.parent)
        subprocess.run([*bubblewrap.command((), worker._INSIDE), sys.executable, "-I", "-c", look])
    """
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True)
    if not REQUIRED and ("new namespace" in done.stderr or "uid map" in done.stderr):
        pytest.skip("no namespaces here")
    assert done.stdout.strip() == "['inside']", done.stderr


@pytest.mark.nightly
def test_a_container_without_namespaces_and_with_a_file_system_to_be_read():
    """Tier B, as an ordinary user who may write to /tmp alone."""
    wrap = ["bwrap", "--unshare-user", "--uid", "1000", "--gid", "1000", "--disable-userns", "--cap-drop", "ALL"]
    wrap += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
    if not shutil.which("bwrap") or subprocess.run([*wrap, "true"], capture_output=True).returncode:
        pytest.skip("bubblewrap of version 0.8 or newer is missing, or finds no namespaces here")
    source = script(CHECKOUT / "etpo_core" / "sandbox" / "inside") + "print(pool.tier)\n"
    command = [*wrap, sys.executable, "-"]
    done = subprocess.run(command, env=environment(), cwd="/", input=source, capture_output=True, text=True)
    assert (done.stdout.split("\n"), done.stderr) == ([SAID, "B", ""], "")


TESTS = """
import pytest
from programs import INNOCENT
@pytest.mark.parametrize("number", range(4))
def test_it(pool, table, number):
    assert pool.score(f"{INNOCENT}# {number}", *table, [0]).score > 0.7
"""


@needs_wall
@pytest.mark.nightly
def test_each_process_of_xdist_has_a_pool_of_its_own(tmp_path):
    (tmp_path / "test_mine.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text((HERE / "conftest.py").read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--numprocesses", "2", "--dist", "load"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "4 passed" in done.stdout, done.stdout + done.stderr


@needs_wall
@pytest.mark.nightly
def test_a_cell_of_a_notebook(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    from jupyter_client.kernelspec import NATIVE_KERNEL_NAME

    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    source = script(CHECKOUT / "etpo_core" / "sandbox" / "inside")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(book, kernel_name=NATIVE_KERNEL_NAME, timeout=300).execute(cwd=str(tmp_path))
    assert [out.text.strip() for out in book.cells[0].outputs] == [SAID]
