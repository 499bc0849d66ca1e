"""A test of endurance for the executor: thousands of hostile programs, and its processes killed at random moments.

There are three tables. "hostile" shows what the host process holds (descriptors, threads, memory, processes) before and
after many different hostile programs. In "kills", a pool scores programs while SIGKILL ends its zygotes and the
processes that started them; the table counts the outcomes and how many scores were wrong. In "hosts", whole host
processes are killed at random moments between start and work; the table counts the processes that outlive them. The
exit status is 1 if anything is wrong.

    python -m benchmarks.executor_faults --hostile 2000 --kills 500 --csv faults.csv
"""

import argparse
import collections
import csv
import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from etpo_core.sandbox import Limits, SandboxPool, Status

LIMITS = Limits(cpu_s=1, wall_s=20, memory_mb=512)
HEAD = "import numpy as np\nfrom sklearn.naive_bayes import GaussianNB\ndef build_model(x_train, y_train):\n    "
HONEST = HEAD + "return GaussianNB().fit(x_train, y_train)\n"
HOSTILE = (
    "raise ValueError('x' * 10**6)",
    "import os; os._exit(0)",
    "import os; os.write(3, b'x' * 99)",
    "import ctypes; ctypes.string_at(0)",
    "np.ones(10**10)",
    "open('/etc/passwd')",
    "import os; os.fork()",
    "import socket; socket.socket()",
    "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    "import threading, time\n    for i in range(64): threading.Thread(target=time.sleep, args=(60,)).start()",
    "import os\n    while True: os.dup(0)",
    "import sys; sys.exit('score=1.0')",
    "import ctypes; ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 + 39))",
    "import os; os.close(3)",
    "x = bytearray(400 << 20); return None",
)
LOOP = "while True: pass"
X = np.random.default_rng(0).normal(size=(120, 4))
Y = (X[:, 0] + np.random.default_rng(1).normal(size=120) > 0).astype(int)


def hostile(count: int) -> list[dict[str, Any]]:
    """What the host holds before and after `count` hostile programs, every fiftieth of which never ends."""
    with SandboxPool(2, LIMITS) as pool:
        honest = pool.score(HONEST, X, Y, [0]).score
        pool.score_many([f"{HEAD}{text}\n# warm" for text in HOSTILE], X, Y, [0])
        before = _holdings(pool)
        sources = [
            f"{HEAD}{LOOP if number % 50 == 49 else HOSTILE[number % len(HOSTILE)]}\n# {number}"
            for number in range(count)
        ]
        outcomes = pool.score_many(sources, X, Y, [0])
        after = _holdings(pool)
        again = pool.score(HONEST + "#", X, Y, [0]).score
    rows: list[dict[str, Any]] = [{"what": n, "before": before[n], "after": after[n]} for n in before]
    for row in rows:
        grown = row["after"] - row["before"]
        row["wrong"] = int(grown > 8 if row["what"].endswith("MiB") else grown != 0)
    scored = sum(outcome.status in (Status.OK, Status.INFRASTRUCTURE_FAULT) for outcome in outcomes)
    rows.append({"what": "hostile programs that scored", "before": 0, "after": scored, "wrong": scored})
    rows.append({"what": "honest score", "before": honest, "after": again, "wrong": int(honest != again)})
    return rows


def _holdings(pool: SandboxPool) -> dict[str, int]:
    """What the host and the zygotes hold now."""
    gc.collect()
    zygotes = [worker.pid for worker in pool._workers]
    return {
        "descriptors of the host": len(os.listdir("/proc/self/fd")),
        "threads of the host": threading.active_count(),
        "memory of the host, MiB": _memory(os.getpid()),
        "processes below the host": len(_descendants(os.getpid())),
        "memory of the zygotes, MiB": sum(_memory(pid) for pid in zygotes),
    }


def _memory(pid: int) -> int:
    """Anonymous resident memory of a process in MiB."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) >> 10


def _children(pid: int) -> list[int]:
    """The children of a process; none if it has ended."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return [int(c) for t in threads for c in Path(f"/proc/{pid}/task/{t}/children").read_text().split()]
    except OSError:
        return []


def _descendants(pid: int) -> list[int]:
    below = _children(pid)
    return below + [further for child in below for further in _descendants(child)]


def kills(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Scores honest programs while zygotes, or the processes that started them, are killed `count` times."""
    rng = random.Random(seed)
    outcomes: collections.Counter[str] = collections.Counter()
    wrong = 0
    with SandboxPool(2, LIMITS) as pool:
        honest = pool.score(HONEST, X, Y, range(3)).score
        stop = threading.Event()

        def work(name: int) -> None:
            nonlocal wrong
            number = 0
            while not stop.is_set():
                number += 1
                outcome = pool.score(f"{HONEST}# {name} {number}", X, Y, range(3))
                outcomes[str(outcome.status)] += 1
                wrong += outcome.score not in (honest, None)

        threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
        for thread in threads:
            thread.start()
        for done in range(count):
            _progress(done + 1, count)
            time.sleep(rng.uniform(0, 1))
            worker = rng.choice(pool._workers)
            try:  # a zygote that was killed before and is not yet replaced has no process
                os.kill(worker.pid if rng.random() < 0.5 else worker._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        stop.set()
        for thread in threads:
            thread.join()
        after = pool.score(HONEST + "#", X, Y, range(3))
    wrong += after.score != honest
    rows = [{"what": f"outcome {name}", "count": n, "wrong": 0} for name, n in sorted(outcomes.items())]
    return [
        {"what": "kills", "count": count, "wrong": 0},
        *rows,
        {"what": "wrong scores", "count": wrong, "wrong": wrong},
    ]


_HOST = """
import sys
from benchmarks.executor_faults import HEAD, LOOP, LIMITS, X, Y
from etpo_core.sandbox import SandboxPool
print("starting", flush=True)
with SandboxPool(2, LIMITS) as pool:
    while True:
        pool.score_many([f"{HEAD}{LOOP}", f"{HEAD}return None"], X, Y, [0])
        pool._jobs.clear()
"""


def hosts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Kills `count` hosts within four seconds of their start and counts the processes that outlive them."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become this process's children
    rng = random.Random(seed)
    survivors = processes = 0
    for done in range(count):
        _progress(done + 1, count)
        host = subprocess.Popen([sys.executable, "-c", _HOST], stdout=subprocess.PIPE)
        assert host.stdout is not None
        host.stdout.readline()
        time.sleep(rng.uniform(0, 4))
        processes += len(_descendants(host.pid))
        host.kill()
        host.wait()
        host.stdout.close()
        deadline = time.monotonic() + 2
        while _orphans() and time.monotonic() < deadline:
            time.sleep(0.02)
        survivors += len(_orphans())
    return [
        {"what": "hosts killed", "count": count, "wrong": 0},
        {"what": "processes they had", "count": processes, "wrong": 0},
        {"what": "processes that outlived them by 2 s", "count": survivors, "wrong": survivors},
    ]


def _orphans() -> list[int]:
    """The children of this process that are still alive, once those that ended are reaped."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return []
    return _children(os.getpid())


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done}/{total} ", end="" if done < total else "\n", file=sys.stderr, flush=True)


def main() -> None:
    """Runs all three, prints their tables and saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hostile", type=int, default=2000, help="hostile programs")
    parser.add_argument("--kills", type=int, default=500, help="kills of zygotes")
    parser.add_argument("--hosts", type=int, default=50, help="kills of hosts")
    parser.add_argument("--csv", type=Path, help="file to save the tables to")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for table, function in (("hostile", hostile), ("kills", kills), ("hosts", hosts)):
        started = time.monotonic()
        for row in function(getattr(arguments, table)):
            rows.append({"table": table, "what": "", "before": "", "after": "", "count": "", "wrong": 0} | row)
            print("  ".join(f"{key}={value}" for key, value in rows[-1].items() if value != ""), flush=True)
        print(f"  {time.monotonic() - started:.0f} s\n", flush=True)
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    sys.exit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
