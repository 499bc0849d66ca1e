"""The lock of a run: one process at a time, and nothing that a killed process leaves blocks for good."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from etpo_paper.base import paths
from etpo_paper.training import lock
from etpo_paper.training.run import Run

RUN = Run("smoke", "etpo", "diabetes", 0)
HOLDER = """
import sys, time
from etpo_paper.training import lock
from etpo_paper.training.run import Run
lock.LEASE = float(sys.argv[1])
with lock.sole_maker(Run("smoke", "etpo", "diabetes", 0)):
    print("held", flush=True)
    time.sleep(60)
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
    with lock.sole_maker(RUN):
        pass


def test_a_run_that_another_process_holds_is_refused_with_its_host_and_process(other):
    process = other()
    with pytest.raises(lock.RunHeldError) as caught:
        take()
    host = re.escape(socket.gethostname())
    assert re.search(f"host {host}, process {process.pid}.* delete {re.escape(str(RUN.lock))}", str(caught.value))


def test_the_lock_is_beside_the_results_and_gone_at_the_end(root):
    with lock.sole_maker(RUN):
        assert [path.name for path in RUN.folder.parent.iterdir()] == ["seed0.lock"]
        with pytest.raises(lock.RunHeldError, match=f"process {os.getpid()}"):
            take()
    assert not any(RUN.folder.parent.iterdir())
    ignored = subprocess.run(["git", "check-ignore", "results/study/etpo/diabetes/seed0.lock"], cwd=paths.ROOT)
    assert ignored.returncode == 0
    assert "results/*/*/*/*.lock*" in (paths.ROOT / ".dvcignore").read_text().splitlines()


def test_the_lock_of_a_killed_process_does_not_block(other):
    process = other()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RUN.lock.exists()
    take()
    assert not RUN.lock.exists()


def foreign(age):
    """Puts another host's lock in place, last renewed some seconds ago."""
    with lock.sole_maker(RUN):
        text = RUN.lock.read_text()
    text = re.sub(r"host=.*", "host=elsewhere", text)
    RUN.lock.write_text(text)
    os.utime(RUN.lock, (time.time() - age,) * 2)


def test_the_lock_of_another_host_is_taken_over_when_nobody_renews_it(root, monkeypatch, capsys):
    monkeypatch.setattr(lock, "LEASE", 0.5)
    foreign(age=0)
    with pytest.raises(lock.RunHeldError, match="host elsewhere, process"):
        take()
    os.utime(RUN.lock, (time.time() - 9,) * 2)
    take()
    assert "no sign of life from host elsewhere" in capsys.readouterr().err


def test_the_lock_of_another_host_whose_clock_is_behind_is_not_taken_over(root, monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 2.0)
    monkeypatch.setattr(lock, "PATIENCE", 1.0)
    foreign(age=3600)
    done = threading.Event()

    def renew():
        while not done.wait(0.2):
            os.utime(RUN.lock, (time.time() - 3600,) * 2)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(lock.RunHeldError, match="host elsewhere"):
            take()
    finally:
        done.set()
        thread.join()


def test_who_loses_the_lock_ends_at_once(other):
    process = other(lease=0.6)
    RUN.lock.unlink()
    assert process.wait(20) == lock.HELD
    assert "error: the run ends because its lock" in process.stderr.read()
