"""Faults of the host and of the workers: nothing hangs, nothing is left behind, nobody is charged wrongly.

The workers load numpy only, because most of these tests start one or two and end them.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from programs import HONEST, LOOP, alive, children, looping_child, needs_wall, quick_body, until
from quick_workers import workers_from

from etpo_core.errors import UserError
from etpo_core.sandbox import Limits, SandboxPool, Status, Tier
from etpo_core.sandbox import pool as pool_module
from etpo_core.sandbox import worker as worker_module

X, Y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
LONG = Limits(cpu_s=60, wall_s=120, memory_mb=512)  # a loop ends only when something else ends it
SOON = 40.0  # seconds in which a pool must be of use again: not after the 60 s of a loop


@pytest.fixture(scope="module", autouse=True)
def quick(quick_program):
    with workers_from(quick_program):
        yield quick_program


@pytest.fixture(scope="module")
def others():
    """Children that this process had before the workers of this file."""
    return children(os.getpid())


@pytest.fixture(scope="module")
def single(others):
    """One worker with long limits.

    It is started by a process with many threads and much address space, none of which may count for its children.
    """
    big = np.zeros(1 << 31, dtype=np.uint8)  # 2 GiB, never touched
    threads = [threading.Thread(target=time.sleep, args=(0.5,)) for _ in range(50)]
    for thread in threads:
        thread.start()
    with SandboxPool(1, LONG, allow_unsafe=True) as opened:
        yield opened
    assert big.size


def test_limits_do_not_depend_on_the_size_of_the_host(single):
    assert single.score(quick_body("np.ones(300 << 17)"), X, Y, [0]).status is Status.OK  # 300 MiB of 512
    assert single.score(quick_body("np.ones(600 << 17)"), X, Y, [0]).status is Status.OUT_OF_MEMORY


def test_interrupting_a_batch_leaves_a_usable_pool(single, others):
    def interrupt():
        looping_child(os.getpid(), others)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        single.score_many([LOOP + f"# {i}" for i in range(3)], X, Y, [0])
    thread.join()
    interrupted = time.monotonic()
    assert single.score(HONEST + "# interrupted", X, Y, [0]).status is Status.OK
    assert time.monotonic() - interrupted < SOON


def test_leaving_an_iterator_early_stops_the_rest(single):
    outcomes = single.score_iter([HONEST, LOOP + "# iterator"], X, Y, [0])
    assert next(outcomes).status is Status.OK
    outcomes.close()
    started = time.monotonic()
    assert single.score(HONEST + "# iterator", X, Y, [0]).status is Status.OK
    assert time.monotonic() - started < SOON


def test_what_was_begun_ahead_is_stopped_when_nobody_asks_for_it(single, others):
    sleepers = [quick_body(f"import time; time.sleep(100)  # {n}") for n in range(3)]
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="no memory"), single.ahead(X, Y, [0]) as start:
        for sleeper in sleepers:
            start(sleeper)
        time.sleep(0.3)
        raise RuntimeError("no memory")
    # The worker is free again, and what was cut short is not remembered: it runs when it is asked for.
    assert single.score(HONEST + "# ahead", X, Y, [0]).status is Status.OK
    assert time.monotonic() - began < SOON
    single.limits = Limits(cpu_s=60, wall_s=0.5)
    try:
        assert single.score(sleepers[0], X, Y, [0]).status is Status.TIMEOUT
    finally:
        single.limits = LONG


@needs_wall
def test_lost_workers_are_replaced_and_a_second_loss_is_charged(single, others):
    result = []
    thread = threading.Thread(target=lambda: result.append(single.score(LOOP + "# lost", X, Y, [0])))
    thread.start()
    for _ in range(2):
        worker, child = looping_child(os.getpid(), others)
        os.kill(worker, signal.SIGKILL)
        until(lambda child=child: not alive(child))  # a child dies with its zygote
    thread.join(60)
    assert result[0].status is Status.CRASH and "worker" in result[0].message
    # A worker that is lost while idle is replaced too, and nobody is charged.
    assert single.score(HONEST + "# lost", X, Y, [0]).status is Status.OK
    for pid in set(children(os.getpid())) - set(others):
        os.kill(pid, signal.SIGKILL)
    assert single.score(HONEST + "# idle", X, Y, [0]).status is Status.OK


def test_close_ends_what_runs_and_those_who_wait(others, single):
    before = children(os.getpid())
    pool = SandboxPool(1, LONG, allow_unsafe=True)
    caught = []

    def wait():
        try:
            pool.score_many([LOOP, LOOP + "#"], X, Y, [0])
        except UserError as error:
            caught.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    worker, child = looping_child(os.getpid(), before)
    pool.close()
    thread.join(30)
    assert not thread.is_alive() and "closed" in caught[0]
    until(lambda: not alive(child) and not alive(worker))
    pool.close()
    with pytest.raises(UserError, match="closed"):
        pool.score(HONEST, X, Y, [0])


# The host in a process of its own ------------------------------------------------------------------------------------

# Imports everything once and forks a host for each program that it is given, as a line of JSON. A host says its process
# id, then what its program says, and whether Ctrl-C ended it: that works there however the tests were started.
HOSTS = """
import json, os, signal, sys, threading, time
from pathlib import Path
import numpy as np
from etpo_core.sandbox import Limits, SandboxPool, walls, worker
real = worker._INSIDE
x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the hosts
for line in sys.stdin:
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        worker._INSIDE = Path(sys.argv[1])
        print(os.getpid(), flush=True)
        try:
            exec(json.loads(line))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        os._exit(0)
"""


@pytest.fixture(scope="module")
def hosts(quick):
    command = [sys.executable, "-c", HOSTS, quick]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def host(hosts):
    """Starts a host for a program; returns its process id and a function that reads the next line of what it says."""
    started = []

    def start(*lines):
        hosts.stdin.write(json.dumps("\n".join(lines)) + "\n")
        hosts.stdin.flush()
        started.append(int(hosts.stdout.readline()))
        return started[-1], lambda: hosts.stdout.readline().strip()

    yield start
    for pid in started:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


@needs_wall
def test_killing_the_host_leaves_nothing(host):
    pid, says = host(
        "made = []",
        "start = lambda: made.append(SandboxPool(1, Limits(cpu_s=60, wall_s=120)))",
        "thread = threading.Thread(target=start)",
        "thread.start(); thread.join()  # workers outlive the thread that started them",
        f"print(made[0].score({HONEST!r}, x, y, [0]).status, flush=True)",
        f"made[0].score({LOOP!r}, x, y, [0])",
    )
    assert says() == "ok"
    worker, child = looping_child(pid)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(worker) and not alive(child), 10)


@needs_wall
def test_a_host_killed_while_its_workers_start_leaves_nothing(host):
    pid, says = host(
        "worker._INSIDE = real  # takes seconds to start",
        "started = worker.Worker(walls.probe().walls(None, False, ()))",
        "started.wait_tried()  # it loads its libraries now, and listens to nobody",
        "print(started.pid, flush=True)",
        "started.wait_ready()",
        "time.sleep(60)",
    )
    worker = int(says())
    assert alive(worker)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(worker), 2)


@needs_wall
def test_ctrl_c_ends_the_host_and_all_that_it_started(host):
    pid, says = host(
        "with SandboxPool(1, Limits(cpu_s=60, wall_s=120)) as pool:",
        f"    pool.score({LOOP!r}, x, y, [0])",
    )
    worker, child = looping_child(pid)
    os.kill(pid, signal.SIGINT)
    assert says() == "interrupted"
    until(lambda: not alive(pid) and not alive(worker) and not alive(child), 5)


# Starting and remembering --------------------------------------------------------------------------------------------


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(pool_module, "_REMEMBERED", 3)
    ran, run = [], worker_module.Worker.run
    monkeypatch.setattr(worker_module.Worker, "run", lambda self, *job: ran.append(job[0]) or run(self, *job))
    with SandboxPool(1, allow_unsafe=True) as pool:
        sources = [f"raise ValueError({i})" for i in range(6)]
        assert [outcome.message for outcome in pool.score_many(sources, X, Y, [0])] == list("012345")
        assert pool.score(sources[5], X, Y, [0]).message == "5" and len(ran) == 12  # one of the last three
        assert pool.score(sources[2], X, Y, [0]).message == "2" and len(ran) == 14  # a failure runs twice


def test_a_worker_that_does_not_start_is_told(monkeypatch, tmp_path):
    with SandboxPool(1, allow_unsafe=True):
        pass  # the walls are tried before, with the real program
    (tmp_path / "__main__.py").write_text("raise ImportError('no sklearn')")
    monkeypatch.setattr(worker_module, "_INSIDE", tmp_path)
    with pytest.raises(UserError, match="no sklearn$"):
        SandboxPool(1, allow_unsafe=True)
    (tmp_path / "__main__.py").write_text("import absent")
    with pytest.raises(UserError, match="'absent'; workers do not read PYTHONPATH, install the package for /"):
        SandboxPool(1, allow_unsafe=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("number", [signal.SIGSEGV, 40], ids=["named", "without a name"])
def test_a_program_that_a_signal_ends_has_crashed(number):
    with SandboxPool(1, LONG, tier=Tier.D, allow_unsafe=True) as pool:
        outcome = pool.score(quick_body(f"import os; os.kill(os.getpid(), {int(number)})"), X, Y, [0])
    assert outcome.status is Status.CRASH and ("SIGSEGV" in outcome.message) == (number == signal.SIGSEGV), outcome


@needs_wall
def test_a_forked_process_is_told_to_open_a_pool_of_its_own(single):
    assert single.score(HONEST, X, Y, [0]).status is Status.OK
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            single.score(HONEST + "# in the fork", X, Y, [0])
        except UserError as error:
            os.write(writing, str(error).encode())
        finally:
            single.close()
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        assert b"opened by another process; open a new SandboxPool" in told.read()
    os.waitpid(pid, 0)
    assert single.score(HONEST + "# after the fork", X, Y, [0]).status is Status.OK


def test_a_worker_that_cannot_be_started_is_one_line(monkeypatch):
    def refuse(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(worker_module.socket, "socketpair", refuse)
    with pytest.raises(UserError, match="cannot start a worker: .*Too many open files"):
        SandboxPool(1, LONG)
