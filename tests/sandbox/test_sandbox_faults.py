"""Faults of the host and of the workers: nothing hangs, nothing is left behind, nobody is charged wrongly."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from programs import INNOCENT, body, needs_wall

from etpo_core.errors import UserError
from etpo_core.sandbox import Limits, SandboxPool, Status
from etpo_core.sandbox import pool as pool_module

LOOP = body("while True: pass")
X, Y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(text) for text in file.read().split()]


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def single():
    """One worker with long limits, so that its loops end only when something else ends them.

    It is started by a process with many threads and much address space, none of which may count for its children.
    """
    big = np.zeros(1 << 31, dtype=np.uint8)  # 2 GiB, never touched
    threads = [threading.Thread(target=time.sleep, args=(0.5,)) for _ in range(50)]
    for thread in threads:
        thread.start()
    with SandboxPool(1, Limits(cpu_s=60, wall_s=120, memory_mb=512), allow_unsafe=True) as opened:
        yield opened
    assert big.size


def test_limits_do_not_depend_on_the_size_of_the_host(single):
    assert single.score(body("np.ones(300 << 17)"), X, Y, [0]).status is Status.OK  # 300 MiB of 512
    assert single.score(body("np.ones(600 << 17)"), X, Y, [0]).status is Status.OUT_OF_MEMORY


def looping_child(pool):
    """Process ids of the first worker and of its running child, once that is in its loop."""

    def busy():
        worker = pool._workers[0]
        return worker.alive and worker.ready and children(worker.pid)

    until(busy, 60)
    time.sleep(0.2)  # let it get past its confinement and into the loop
    return pool._workers[0].pid, children(pool._workers[0].pid)[0]


@needs_wall
def test_lost_workers_are_replaced_and_a_second_loss_is_charged(single):
    os.kill(single._workers[0].pid, signal.SIGKILL)  # while idle: nobody is charged
    result = []
    thread = threading.Thread(target=lambda: result.append(single.score(LOOP + "# lost", X, Y, [0])))
    thread.start()
    for _ in range(2):
        worker, child = looping_child(single)
        os.kill(worker, signal.SIGKILL)
        until(lambda child=child: not alive(child))  # a child dies with its zygote
    thread.join(30)
    assert result[0].status is Status.CRASH and "worker" in result[0].message
    assert single.score(INNOCENT + "##", X, Y, [0]).status is Status.OK


def test_interrupting_a_batch_leaves_a_usable_pool(single):
    def interrupt():
        looping_child(single)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        single.score_many([LOOP + f"# {i}" for i in range(3)], X, Y, [0])
    thread.join()
    interrupted = time.monotonic()
    assert single._jobs == {key: job for key, job in single._jobs.items() if job.future.done()}
    assert single.score(INNOCENT + "###", X, Y, [0]).status is Status.OK
    assert time.monotonic() - interrupted < 40  # and not after the 60 s of the first loop


def test_leaving_an_iterator_early_stops_the_rest(single):
    outcomes = single.score_iter([INNOCENT, LOOP + "# iterator"], X, Y, [0])
    assert next(outcomes).status is Status.OK
    outcomes.close()
    started = time.monotonic()
    assert single.score(INNOCENT + "####", X, Y, [0]).status is Status.OK
    assert time.monotonic() - started < 40  # and not after the 60 s of the loop


def test_close_ends_what_runs_and_those_who_wait():
    pool = SandboxPool(1, Limits(cpu_s=60, wall_s=120), allow_unsafe=True)
    caught = []

    def wait():
        try:
            pool.score_many([LOOP, LOOP + "#"], X, Y, [0])
        except UserError as error:
            caught.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    worker, child = looping_child(pool)
    pool.close()
    thread.join(10)
    assert not thread.is_alive() and "closed" in caught[0]
    until(lambda: not alive(child) and not alive(worker))
    pool.close()
    with pytest.raises(UserError, match="closed"):
        pool.score(INNOCENT, X, Y, [0])


@needs_wall
def test_killing_the_host_leaves_nothing():
    script = textwrap.dedent(f"""
        import numpy as np, sys, threading, time
        from etpo_core.sandbox import Limits, SandboxPool
        made = []
        thread = threading.Thread(target=lambda: made.append(SandboxPool(1, Limits(cpu_s=60, wall_s=120))))
        thread.start(); thread.join()      # workers outlive the thread that started them
        pool = made[0]
        x = np.arange(40.0).reshape(20, 2)
        print(pool._workers[0].pid, pool.score({INNOCENT!r}, x, np.arange(20) % 2, [0]).status, flush=True)
        pool.score({LOOP!r}, x, np.arange(20) % 2, [0])
    """)
    host = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker, status = host.stdout.readline().split()
    assert status == "ok"
    until(lambda: children(int(worker)))
    child = children(int(worker))[0]
    host.kill()
    host.wait()
    host.stdout.close()
    until(lambda: not alive(int(worker)) and not alive(child), 5)


@needs_wall
def test_a_host_killed_while_its_workers_start_leaves_nothing():
    script = textwrap.dedent("""
        from etpo_core.sandbox.walls import probe
        from etpo_core.sandbox.worker import Worker
        worker = Worker(probe().walls(None, False, ()))
        worker.wait_tried()             # it loads its libraries now, and listens to nobody
        print(worker.pid, flush=True)
        worker.wait_ready()
        import time; time.sleep(60)
    """)
    host = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = int(host.stdout.readline())
    assert alive(worker)
    host.kill()
    host.wait()
    host.stdout.close()
    until(lambda: not alive(worker), 1)


@needs_wall
def test_ctrl_c_ends_the_host_and_all_that_it_started():
    script = textwrap.dedent(f"""
        import numpy as np
        from etpo_core.sandbox import Limits, SandboxPool
        with SandboxPool(1, Limits(cpu_s=60, wall_s=120)) as pool:
            print(pool._workers[0].pid, flush=True)
            pool.score({LOOP!r}, np.arange(40.0).reshape(20, 2), np.arange(20) % 2, [0])
    """)
    host = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    worker = int(host.stdout.readline())
    until(lambda: children(worker))
    child = children(worker)[0]
    host.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in host.communicate(timeout=20)[1]
    until(lambda: not alive(worker) and not alive(child), 2)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(pool_module, "_REMEMBERED", 3)
    with SandboxPool(1, allow_unsafe=True) as pool:
        pool.score_many([f"raise ValueError({i})" for i in range(6)], X, Y, [0])
        assert [job.source for job in pool._jobs.values()] == [""] * 3
        assert pool.score("raise ValueError(5)", X, Y, [0]).message == "5" and len(pool._jobs) == 3


def test_a_worker_that_does_not_start_is_told(monkeypatch, tmp_path):
    from etpo_core.sandbox import worker as worker_module

    with SandboxPool(1, allow_unsafe=True):
        pass  # the walls are tried before, with the real program
    (tmp_path / "__main__.py").write_text("raise ImportError('no sklearn')")
    monkeypatch.setattr(worker_module, "_INSIDE", tmp_path)
    with pytest.raises(UserError, match="no sklearn"):
        SandboxPool(1, allow_unsafe=True)


def test_many_runs_leave_the_host_as_it_was(pool, table):
    def state():
        gc.collect()
        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(os.listdir("/proc/self/task")),
            [len(children(worker.pid)) for worker in pool._workers],
            [len(os.listdir(f"/proc/{worker.pid}/fd")) for worker in pool._workers] if os.getuid() == 0 else 0,
            sorted(children(os.getpid())),
        )

    mixture = [
        INNOCENT,
        body("raise ValueError"),
        body("import os; os._exit(0)"),
        body("import os; os.write(3, b'x' * 99)"),
        body("import ctypes; ctypes.string_at(0)"),
        body("np.ones(10 ** 10)"),
        body("open('/etc/passwd')"),
        "(",
    ]
    pool.score_many([source + "# warm" for source in mixture], *table, [0])
    before = state()
    sources = [f"{source}# {i}" for i in range(25) for source in mixture]
    outcomes = pool.score_many(sources, *table, [0])
    assert len(outcomes) == 200 and state() == before
    for offset in range(len(mixture)):
        assert len({outcome.status for outcome in outcomes[offset :: len(mixture)]}) == 1
    assert Status.INFRASTRUCTURE_FAULT not in {outcome.status for outcome in outcomes}
