"""The lock of a run: one process at a time, and nothing that a killed process leaves blocks for good."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from etpo_core.errors import UserError
from etpo_paper.base import lock, paths
from etpo_paper.data.tasks import load_task, prepare_task, save_task
from etpo_paper.model import models
from etpo_paper.training.run import Run

RUN = Run("smoke", "etpo", "diabetes", 0)
HOLDER = """
import sys, time
from etpo_paper.base import lock
from etpo_paper.training.run import Run
lock.LEASE = float(sys.argv[1])
with lock.sole_maker(Run("smoke", "etpo", "diabetes", 0).folder):
    print("held", flush=True)
    time.sleep(60)
"""

SAVER = """
import sys
from pathlib import Path
from etpo_paper.data.tasks import load_task, prepare_task, save_task
task = prepare_task("balance-scale")
for _ in range(100):
    save_task(task, Path(sys.argv[1]))
    load_task("balance-scale", Path(sys.argv[1]))
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    return tmp_path


@pytest.fixture
def other(root):
    """A function that starts another process, which holds the run."""
    started = []

    def start(lease=120.0):
        command = [sys.executable, "-c", HOLDER, str(lease)]
        environment = {**os.environ, "ETPO_ROOT": str(root)}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=paths.ROOT
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def take():
    with lock.sole_maker(RUN.folder):
        pass


def test_a_run_that_another_process_holds_is_refused_with_its_host_and_process(other):
    process = other()
    with pytest.raises(lock.HeldError) as caught:
        take()
    host = re.escape(socket.gethostname())
    assert re.search(
        f"host {host}, process {process.pid}.* delete {re.escape(str(lock.lock_of(RUN.folder)))}", str(caught.value)
    )


def test_the_lock_is_beside_the_results_and_gone_at_the_end(root):
    with lock.sole_maker(RUN.folder):
        assert [path.name for path in RUN.folder.parent.iterdir()] == ["seed0.lock"]
        with pytest.raises(lock.HeldError, match=f"process {os.getpid()}"):
            take()
    assert not any(RUN.folder.parent.iterdir())
    ignored = subprocess.run(["git", "check-ignore", "results/study/etpo/diabetes/seed0.lock"], cwd=paths.ROOT)
    assert ignored.returncode == 0
    assert "results/*/*/*/*.lock*" in (paths.ROOT / ".dvcignore").read_text().splitlines()


def test_the_lock_of_a_killed_process_does_not_block(other):
    process = other()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lock.lock_of(RUN.folder).exists()
    take()
    assert not lock.lock_of(RUN.folder).exists()


def foreign(age):
    """Puts another host's lock in place, last renewed some seconds ago."""
    with lock.sole_maker(RUN.folder):
        text = lock.lock_of(RUN.folder).read_text()
    text = re.sub(r"host=.*", "host=elsewhere", text)
    lock.lock_of(RUN.folder).write_text(text)
    os.utime(lock.lock_of(RUN.folder), (time.time() - age,) * 2)


def test_the_lock_of_another_host_is_taken_over_when_nobody_renews_it(root, monkeypatch, capsys):
    monkeypatch.setattr(lock, "LEASE", 0.5)
    foreign(age=0)
    with pytest.raises(lock.HeldError, match="host elsewhere, process"):
        take()
    os.utime(lock.lock_of(RUN.folder), (time.time() - 9,) * 2)
    take()
    assert "no sign of life from host elsewhere" in capsys.readouterr().err


@pytest.mark.nightly  # watches the lock for three seconds
def test_the_lock_of_another_host_whose_clock_is_behind_is_not_taken_over(root, monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 2.0)
    monkeypatch.setattr(lock, "PATIENCE", 1.0)
    foreign(age=3600)
    done = threading.Event()

    def renew():
        while not done.wait(0.2):
            os.utime(lock.lock_of(RUN.folder), (time.time() - 3600,) * 2)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(lock.HeldError, match="host elsewhere"):
            take()
    finally:
        done.set()
        thread.join()


def test_who_loses_the_lock_ends_at_once(other):
    process = other(lease=0.6)
    lock.lock_of(RUN.folder).unlink()
    assert process.wait(20) == lock.HELD
    assert "error: the work ends because its lock" in process.stderr.read()


def test_who_waits_takes_the_lock_when_it_is_free(root, capsys):
    done = threading.Event()

    def wait():
        with lock.sole_maker(RUN.folder, wait=True):
            done.set()

    thread = threading.Thread(target=wait)
    with lock.sole_maker(RUN.folder):
        thread.start()
        assert not done.wait(0.5)
    thread.join(10)
    assert done.is_set() and "waiting for another process (host " in capsys.readouterr().err


def test_a_model_that_several_need_is_made_once(root, monkeypatch):
    """The first run of a fresh clone on several cores; each would remove what the others write."""
    monkeypatch.setattr(paths, "MODELS", root / "models")
    card, made = {"start": {"sha256": "0"}}, []

    def make(name, start):
        made.append(name)
        time.sleep(0.3)
        (paths.MODELS / name).mkdir()
        (paths.MODELS / name / "card.json").touch()
        return card

    monkeypatch.setattr(models, "_make", make)
    monkeypatch.setattr(models, "check_files", lambda name: card)
    monkeypatch.setattr(models.starts, "read_start", lambda name: card)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(models.model, ["tiny"] * 4)) == [card] * 4
    assert made == ["tiny"]


def test_a_table_that_several_write_is_whole_at_any_time(root):
    """Each reader finds all of the table, and no writer takes another one's part away."""
    task = prepare_task("balance-scale")
    save_task(task, root)
    other = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(root)], cwd=paths.ROOT, stderr=subprocess.PIPE, text=True
    )
    while other.poll() is None:
        save_task(task, root)
        assert load_task("balance-scale", root).sha256 == task.sha256
    assert other.returncode == 0, other.stderr.read()
    assert {path.suffix for path in root.glob("*.*")} == {".csv", ".json"}


def test_a_folder_in_the_place_of_a_lock_is_one_line(root):
    lock.lock_of(RUN.folder).mkdir(parents=True)
    with pytest.raises(
        UserError, match=f"^{lock.lock_of(RUN.folder)} is a folder where .* belongs: rename or delete the folder$"
    ):
        take()
    assert lock.lock_of(RUN.folder).is_dir()
