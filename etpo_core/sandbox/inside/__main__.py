"""The zygote: a Python process that loads the libraries once and then forks a child for every job.

To fork a process that has the libraries loaded takes milliseconds; to start one and import them takes more than a
second. The host starts the zygote with a fixed environment. The zygote runs no line of a program and receives neither
programs nor data nor labels: it only hands the host's private socket on to the child. The host runs it as
`python -P -s -B inside/ CONTROL_FD HOST_PIDFD`, with -1 as HOST_PIDFD on systems without process descriptors.
"""

import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import confine
import landlock
import wire
from preload import preload
from tries import walls_that_hold

_PROCESSES = 64  # how many threads a child may have, the zygote included
_PATIENCE_S = 2.0  # seconds between two looks at whether the host still lives, where no descriptor tells


class _Host:
    """The process that owns this zygote: receives its requests, and notices its death."""

    def __init__(self, control_fd: int, pidfd: int) -> None:
        self.control = socket.socket(fileno=control_fd)
        self.parent = os.getppid()
        self.poller = select.poll()
        self.poller.register(self.control, select.POLLIN)
        self._pidfd = pidfd
        if pidfd >= 0:
            self.poller.register(pidfd, select.POLLIN)

    def is_gone(self, ready: set[int]) -> bool:
        """Whether the host has died, given the descriptors that `poller` reported.

        The control channel alone cannot tell: another child process of the host may still hold its other end open.
        """
        return self._pidfd in ready or os.getppid() != self.parent

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Ends this process as soon as the host closes the channel, whatever the process is doing in the context."""
        before = fcntl.fcntl(self.control, fcntl.F_GETFL)
        signal.signal(signal.SIGIO, lambda *_: os._exit(0))
        fcntl.fcntl(self.control, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self.control, fcntl.F_SETFL, before | os.O_ASYNC)
        if self.poller.poll(0):
            os._exit(0)  # it was closed before the signal was set up
        yield
        fcntl.fcntl(self.control, fcntl.F_SETFL, before)
        signal.signal(signal.SIGIO, signal.SIG_DFL)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, or no bytes if the channel was closed."""
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

    def next_request(self) -> tuple[bytes, int | None]:
        """The next request and the descriptor that came with it; no bytes if the host is gone."""
        while True:
            ready = {fd for fd, _ in self.poller.poll(_PATIENCE_S * 1000)}
            if self.is_gone(ready):
                return b"", None
            if self.control.fileno() in ready:
                break
        request, fds, _, _ = socket.recv_fds(self.control, wire.REQUEST.size, 1)
        if request and len(request) < wire.REQUEST.size:
            request += self.read(wire.REQUEST.size - len(request))
        return request, fds[0] if fds else None


def main() -> None:
    """Tries the walls, loads the libraries, puts up what the children inherit, and serves until the host is gone."""
    host = _Host(int(sys.argv[1]), int(sys.argv[2]))
    hello = host.read(wire.HELLO.size)
    if not hello:
        return
    *sizes, port, uid, wanted = wire.HELLO.unpack(hello)
    filter_code, modules, secret = (host.read(size) for size in sizes)
    in_bubblewrap = bool(wanted & wire.BUBBLEWRAP)
    if in_bubblewrap:
        confine.die_with_parent()  # the parent is bubblewrap's own process
    hold = walls_that_hold(filter_code, wanted, secret.decode(), port, uid)
    host.report(wire.TRIED, hold, landlock.abi(), 0.0)
    with host.watched():
        preload([name for name in modules.decode().split("\0") if name])
        import child  # noqa: F401  not earlier, because it imports numpy

    _raise_oom_score()
    in_use = confine.memory_in_use()
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    _silence()
    in_namespace = in_bubblewrap and os.geteuid() != 0  # in which the kernel counts a user's processes separately
    counted = (bool(hold) and confine.drop_root(uid)) or in_namespace
    if in_bubblewrap:
        confine.die_with_parent()  # again, because the kernel forgets it when a process changes its user
    # Outside bubblewrap, a child in a namespace of its own could not notice that the zygote has died.
    fork, zygote = (confine.fork_alone, 0) if in_bubblewrap and _can_fork_alone() else (os.fork, os.getpid())
    confine.hide_from_peers()
    if hold & wire.LANDLOCK:
        landlock.give_up_files()
    gc.collect()
    gc.freeze()
    host.report(wire.READY, hold, threads, 0.0)
    while True:
        request, data = host.next_request()
        if not request:
            return
        kind, cpu_s, memory = wire.REQUEST.unpack(request)
        if kind == wire.RUN and data is not None:
            processes = _PROCESSES if counted else confine.processes_on_machine() + _PROCESSES
            confine_child = partial(confine.confine, zygote, filter_code, cpu_s, memory, in_use, processes)
            _run(host, data, cpu_s, fork, confine_child)


def _can_fork_alone() -> bool:
    with suppress(OSError):
        pid = confine.fork_alone()
        if pid == 0:
            os._exit(os.getpid() - 1)
        return os.waitpid(pid, 0)[1] == 0
    return False


def _run(host: _Host, data: int, cpu_s: float, fork: Callable[[], int], confine_child: Callable[[], None]) -> None:
    """Forks one child, watches it to its end and reports how it ended."""
    pid = fork()
    if pid == 0:
        try:
            from child import DATA_FD, live

            if data != DATA_FD:
                os.dup2(data, DATA_FD)
            os.closerange(DATA_FD + 1, 65536)
            live(confine_child)
        finally:
            os._exit(wire.EXIT_UNCONFINED)
    os.close(data)
    flag = _watch(host, pid, cpu_s)
    _, status, usage = os.wait4(pid, 0)
    host.report(wire.ENDED, flag, status, usage.ru_utime + usage.ru_stime)


def _watch(host: _Host, pid: int, cpu_s: float) -> int:
    """Waits until the child has ended, killing it if the host says so or its CPU time is up; returns what ended it."""
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
                gone = gone or not host.read(wire.REQUEST.size)
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
    try:  # the number is that of the kernel's clock for this process
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        return 0.0


def _raise_oom_score() -> None:
    """Has the kernel kill a program rather than the host when the machine runs out of memory."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


if __name__ == "__main__":
    main()
