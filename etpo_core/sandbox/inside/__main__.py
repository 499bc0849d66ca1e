"""The zygote: a Python process, started afresh, that loads the libraries once and forks a child for every job.

It starts with a fixed environment and never receives data, labels or source: the host's private socket to a child
only passes through its hands. It runs no line of a snippet. Run as `python -P -s -B inside/ CONTROL_FD HOST_PIDFD`
(-1 on systems without pidfds).
"""

import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import landlock
import wire
from confine import die_with_parent, drop_root, hide_from_peers, memory_in_use, processes_on_machine
from preload import preload
from tries import layers_that_hold

_PROCESSES = 64  # threads of a child, with room for the zygote
_PATIENCE_S = 2.0  # how often to look whether the host still lives, where no descriptor tells


class _Host:
    """The process that owns this zygote: its orders, and whether it still lives."""

    def __init__(self, control_fd: int, pidfd: int) -> None:
        self.control = socket.socket(fileno=control_fd)
        self.parent = os.getppid()
        self.poller = select.poll()
        self.poller.register(self.control, select.POLLIN)
        self._pidfd = pidfd
        if pidfd >= 0:
            self.poller.register(pidfd, select.POLLIN)

    def is_gone(self, ready: set[int]) -> bool:
        """Whether it has died, given what `poller` reported.

        The channel alone does not tell: a process forked off the host may hold the other end open.
        """
        return self._pidfd in ready or os.getppid() != self.parent

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Ends this process, while it is busy with something else, when the host closes the channel."""
        before = fcntl.fcntl(self.control, fcntl.F_GETFL)
        signal.signal(signal.SIGIO, lambda *_: os._exit(0))
        fcntl.fcntl(self.control, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self.control, fcntl.F_SETFL, before | os.O_ASYNC)
        if self.poller.poll(0):
            os._exit(0)  # it was closed before
        yield
        fcntl.fcntl(self.control, fcntl.F_SETFL, before)
        signal.signal(signal.SIGIO, signal.SIG_DFL)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, or nothing at the end of the channel."""
        data = b""
        while len(data) < size:
            piece = self.control.recv(size - len(data))
            if not piece:
                return b""
            data += piece
        return data

    def report(self, *fields: object) -> None:
        """Sends one report."""
        self.control.sendall(wire.REPORT.pack(*fields))

    def next_order(self) -> tuple[bytes | None, int | None]:
        """The next order with the descriptor that came with it; (None, None) at the end."""
        while True:
            ready = {fd for fd, _ in self.poller.poll(_PATIENCE_S * 1000)}
            if self.is_gone(ready):
                return None, None
            if self.control.fileno() in ready:
                break
        order, fds, _, _ = socket.recv_fds(self.control, wire.ORDER.size, 1)
        if order and len(order) < wire.ORDER.size:
            order += self.read(wire.ORDER.size - len(order))
        return order or None, fds[0] if fds else None


def main() -> None:
    """Tries the wall, loads the libraries, puts up what the children inherit, then serves until the host is gone."""
    host = _Host(int(sys.argv[1]), int(sys.argv[2]))
    hello = host.read(wire.HELLO.size)
    if not hello:
        return
    *sizes, port, uid, wanted = wire.HELLO.unpack(hello)
    program, modules, secret = (host.read(size) for size in sizes)
    in_bubblewrap = bool(wanted & wire.BUBBLEWRAP)
    if in_bubblewrap:
        die_with_parent()  # bubblewrap's own process: it must not be outlived
    hold = layers_that_hold(program, wanted, secret.decode(), port, uid)
    host.report(wire.TRIED, hold, landlock.abi(), 0.0)
    with host.watched():
        preload([name for name in modules.decode().split("\0") if name])
        import child  # noqa: F401  only now: it imports numpy

    _raise_oom_score()
    in_use = memory_in_use()
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    _silence()
    in_namespace = in_bubblewrap and os.geteuid() != 0  # where the processes of a user are counted anew
    counted = (bool(hold) and drop_root(uid)) or in_namespace
    if in_bubblewrap:
        die_with_parent()  # a process that changes its user forgets it
    hide_from_peers()
    if hold & wire.LANDLOCK:
        landlock.give_up_files()
    gc.collect()
    gc.freeze()
    host.report(wire.READY, hold, threads, 0.0)
    while True:
        order, data = host.next_order()
        if order is None:
            return
        kind, cpu_s, memory = wire.ORDER.unpack(order)
        if kind == wire.RUN and data is not None:
            processes = _PROCESSES if counted else processes_on_machine() + _PROCESSES
            _run(host, data, cpu_s, (os.getpid(), program, cpu_s, memory, in_use, processes))


def _run(host, data, cpu_s, limits) -> None:
    """Forks one child, watches it to its end and reports how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            from child import DATA_FD, live

            if data != DATA_FD:
                os.dup2(data, DATA_FD)
            os.closerange(DATA_FD + 1, 65536)
            live(*limits)
        finally:
            os._exit(wire.EXIT_UNCONFINED)
    os.close(data)
    flag = _watch(host, pid, cpu_s)
    _, status, usage = os.wait4(pid, 0)
    host.report(wire.ENDED, flag, status, usage.ru_utime + usage.ru_stime)


def _watch(host, pid, cpu_s) -> int:
    """Waits until the child has ended, stopping it when the host says so or its CPU time is used up."""
    pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    if pidfd is not None:
        host.poller.register(pidfd, select.POLLIN)
    flag = wire.BY_ITSELF
    try:
        while True:
            left = cpu_s - _cpu_seconds(pid)
            if left <= 0 and flag == wire.BY_ITSELF:
                flag = wire.BY_CPU_LIMIT
                os.kill(pid, signal.SIGKILL)
            pause = min(max(left, 0.005), _PATIENCE_S) if pidfd is not None else 0.01
            ready = {fd for fd, _ in host.poller.poll(pause * 1000)}
            if pidfd is None:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return flag
            elif pidfd in ready:
                return flag
            gone = host.is_gone(ready)
            if host.control.fileno() in ready:
                gone = gone or not host.read(wire.ORDER.size)
                if flag == wire.BY_ITSELF:
                    flag = wire.BY_HOST
                os.kill(pid, signal.SIGKILL)
            if gone:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os._exit(0)
    finally:
        if pidfd is not None:
            host.poller.unregister(pidfd)
            os.close(pidfd)


def _cpu_seconds(pid: int) -> float:
    """CPU time of another process so far; 0 where the system has no such clock."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        return 0.0


def _raise_oom_score() -> None:
    """When memory runs out on the machine, the kernel shall take a snippet and not the trainer."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


if __name__ == "__main__":
    main()
