"""Does a wall hold? Each is tried by doing what it must refuse, next to a control that must succeed.

A wall that is installed and enforces nothing looks like one that works; only a refusal tells them apart. A refusal in
turn tells nothing if the act would have failed anyway, so every try has a control: the same act in a child process
without the wall, or in the host. The tries run in children that end at once, before any library is loaded.
"""

import os
import socket
import sys
from collections.abc import Callable
from functools import partial

import landlock
import wire
from confine import confine, drop_root, memory_in_use, processes_on_machine


def walls_that_hold(filter_code: bytes, wanted: int, secret: str, port: int, uid: int) -> int:
    """The walls out of `wanted` that refuse what they must, as a sum of flags of `wire`.

    Args:
        filter_code: the compiled system-call filter.
        wanted: the walls to try, as a sum of flags.
        secret: path of a file that the host has just read.
        port: a TCP port of 127.0.0.1 that has just answered the host; 0 if there is none.
        uid: user id that a process of root changes to.
    """
    tries = {
        wire.SECCOMP: lambda: _in_child(_opens, b"") and _in_child(_filter_refuses, filter_code),
        wire.LANDLOCK: lambda: _in_child(_opens, b"") and _in_child(_landlock_refuses, b""),
        wire.BUBBLEWRAP: lambda: _in_child(lambda: _is_alone(secret, port, uid), b""),
    }
    return sum(flag for flag, holds in tries.items() if wanted & flag and holds())


def _in_child(test: Callable[[], bool], filter_code: bytes) -> bool:
    """Whether a test is true in a child process with the resource limits and a filter (empty for none)."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            confine(parent, filter_code, 5.0, 64 << 20, memory_in_use(), processes_on_machine() + 64)
            status = 0 if test() else 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def _refused(attempt: Callable[[], object], error: type[OSError] = PermissionError) -> bool:
    try:
        if attempt() == 0:
            os._exit(1)  # the attempt was a fork and succeeded: this is the new process
    except error:
        return True
    return False


def _open() -> None:
    os.close(os.open(sys.executable, os.O_RDONLY))


def _opens() -> bool:
    _open()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
    return True


def _filter_refuses() -> bool:
    attempts = (_open, socket.socket, os.fork, lambda: os.kill(os.getppid(), 0))
    return all(_refused(attempt) for attempt in attempts)


def _landlock_refuses() -> bool:
    with socket.socket() as server:
        landlock.give_up_files()
        files = _refused(_open) and _refused(lambda: os.listdir("/"))
        return files and (landlock.abi() < 4 or _refused(lambda: server.bind(("127.0.0.1", 0))))


def _is_alone(secret: str, port: int, uid: int) -> bool:
    """Whether no file, port or process of the host can be reached, nothing can be written and no privilege is left."""
    processes = {name for name in os.listdir("/proc") if name.isdigit()} - {str(os.getpid())}
    folders = [folder for folder in ("/", "/dev", "/dev/shm", "/tmp", "/proc", "/usr") if os.path.isdir(folder)]
    out_of_reach = (
        os.getppid() == 1
        and processes == {"1"}
        and _refused(lambda: os.stat(secret), FileNotFoundError)
        and all(_refused(partial(os.mkdir, f"{folder}/etpo-try"), OSError) for folder in folders)
        and (port == 0 or _refused(lambda: socket.create_connection(("127.0.0.1", port), 2).close(), OSError))
    )
    drop_root(uid)
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return out_of_reach and not any(int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapAmb"))
