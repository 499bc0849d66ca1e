"""The zygote: a Python process, started afresh, that loads the libraries once and forks a child for every job.

It starts with a fixed environment and never receives data, labels or source: the host's private socket to a child
only passes through its hands. It runs no line of a snippet. Run as `python -P -s -B inside/ CONTROL_FD`.
"""

import gc
import os
import select
import signal
import socket
import struct
import sys
import time

import wire
from confine import confine, hide_from_peers, memory_in_use
from preload import preload

_PATIENCE_S = 2.0  # how often to look whether the host still lives


def main() -> None:
    """Tries the wall, loads the libraries, reports both, then serves until the control channel closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    program = _read(control, struct.unpack("<I", _read(control, 4))[0])
    proven = bool(program) and _proven(program)
    control.sendall(wire.REPORT.pack(wire.TRIED, wire.REFUSES if proven else wire.OPEN, 0, 0.0))
    preload()
    import child  # noqa: F401  only now: it imports numpy

    _raise_oom_score()
    in_use = memory_in_use()
    threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
    # the place for Landlock: this process is single-threaded and its children inherit the domain
    hide_from_peers()
    gc.collect()
    gc.freeze()
    _silence()
    control.sendall(wire.REPORT.pack(wire.READY, 0, threads, 0.0))
    host = os.getppid()
    while True:
        order, data = _next_order(control, host)
        if order is None:
            return
        kind, cpu_s, memory = wire.ORDER.unpack(order)
        if kind == wire.RUN and data is not None:
            _run(control, host, data, program, cpu_s, memory, in_use)


def _run(control, host, data, program, cpu_s, memory, in_use) -> None:
    """Forks one child, watches it to its end and reports how it ended."""
    zygote = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            from child import DATA_FD, live

            if data != DATA_FD:
                os.dup2(data, DATA_FD)
            os.closerange(DATA_FD + 1, 65536)
            live(zygote, program, cpu_s, memory, in_use)
        finally:
            os._exit(wire.EXIT_UNCONFINED)
    os.close(data)
    flag = _watch(control, host, pid, cpu_s)
    _, status, usage = os.wait4(pid, 0)
    control.sendall(wire.REPORT.pack(wire.ENDED, flag, status, usage.ru_utime + usage.ru_stime))


def _watch(control, host, pid, cpu_s) -> int:
    """Waits until the child has ended, stopping it when the host says so or its CPU time is used up."""
    pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    poller = select.poll()
    poller.register(control, select.POLLIN)
    if pidfd is not None:
        poller.register(pidfd, select.POLLIN)
    flag = wire.BY_ITSELF
    try:
        while True:
            left = cpu_s - _cpu_seconds(pid)
            if left <= 0 and flag == wire.BY_ITSELF:
                flag = wire.BY_CPU_LIMIT
                os.kill(pid, signal.SIGKILL)
            pause = min(max(left, 0.005), _PATIENCE_S) if pidfd is not None else 0.01
            ready = {fd for fd, _ in poller.poll(pause * 1000)}
            if pidfd is None:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return flag
            elif pidfd in ready:
                return flag
            gone = os.getppid() != host
            if control.fileno() in ready:
                gone = gone or not _read(control, wire.ORDER.size)
                if flag == wire.BY_ITSELF:
                    flag = wire.BY_HOST
                os.kill(pid, signal.SIGKILL)
            if gone:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os._exit(0)
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _cpu_seconds(pid: int) -> float:
    """CPU time of another process so far; 0 where the system has no such clock."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        return 0.0


def _next_order(control, host) -> tuple[bytes | None, int | None]:
    poller = select.poll()
    poller.register(control, select.POLLIN)
    while not poller.poll(_PATIENCE_S * 1000):
        # a process forked off the host may hold our channel open after the host has died
        if os.getppid() != host:
            return None, None
    order, fds, _, _ = socket.recv_fds(control, wire.ORDER.size, 1)
    while order and len(order) < wire.ORDER.size:
        order += _read(control, wire.ORDER.size - len(order))
    return order or None, fds[0] if fds else None


def _read(control, size: int) -> bytes:
    """Exactly `size` bytes, or nothing at the end of the channel."""
    data = b""
    while len(data) < size:
        piece = control.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return data


def _proven(program: bytes) -> bool:
    """Does the thing: an unconfined child opens a file, a confined one must be refused that, sockets and forks."""
    return _tried(b"", _can_open) and _tried(program, _is_refused)


def _tried(program: bytes, test) -> bool:
    zygote = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            confine(zygote, program, 5.0, 64 << 20, memory_in_use())
            status = 0 if test() else 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def _can_open() -> bool:
    os.close(os.open(sys.executable, os.O_RDONLY))
    socket.socket().close()
    return True


def _is_refused() -> bool:
    attempts = (
        lambda: os.open(sys.executable, os.O_RDONLY),
        socket.socket,
        os.fork,
        lambda: os.kill(os.getppid(), 0),
    )
    for attempt in attempts:
        try:
            if attempt() == 0:
                os._exit(1)  # a fork that went through: this is its child
        except PermissionError:
            continue
        return False
    return True


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
