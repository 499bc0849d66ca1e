"""Does a wall hold? Each layer is tried by doing what it must refuse, beside a control that must go through.

A layer that is installed and enforces nothing looks like one that works; only the refusal tells. And a refusal tells
nothing when the thing would have failed anyway, so each try has its control: the same act in a child without the
layer, or in the host. The tries run in children that end at once, before any library is loaded.
"""

import os
import socket
import sys
from collections.abc import Callable

import landlock
import wire
from confine import confine, drop_root, memory_in_use, processes_on_machine


def layers_that_hold(program: bytes, wanted: int, secret: str, port: int, uid: int) -> int:
    """The layers out of `wanted` that refuse what they must, as a sum of flags of `wire`.

    Args:
        program: the compiled filter.
        wanted: the layers to try.
        secret: path of a file that the host has just read.
        port: of 127.0.0.1 where the host has just been answered; 0: none.
        uid: user id that a root process drops to.
    """
    tries = {
        wire.SECCOMP: lambda: _in_child(_opens, b"") and _in_child(_filter_refuses, program),
        wire.LANDLOCK: lambda: _in_child(_opens, b"") and _in_child(_landlock_refuses, b""),
        wire.BUBBLEWRAP: lambda: _in_child(lambda: _is_alone(secret, port, uid), b""),
    }
    return sum(flag for flag, holds in tries.items() if wanted & flag and holds())


def _in_child(test: Callable[[], bool], program: bytes) -> bool:
    """Whether a test is true in a child behind the limits and a filter (empty: none)."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            confine(parent, program, 5.0, 64 << 20, memory_in_use(), processes_on_machine() + 64)
            status = 0 if test() else 1
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def _refused(attempt: Callable[[], object], error: type[OSError] = PermissionError) -> bool:
    try:
        if attempt() == 0:
            os._exit(1)  # a fork that went through: this is its child
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
    return all(map(_refused, (_open, socket.socket, os.fork, lambda: os.kill(os.getppid(), 0))))


def _landlock_refuses() -> bool:
    with socket.socket() as server:
        landlock.give_up_files()
        files = _refused(_open) and _refused(lambda: os.listdir("/"))
        return files and (landlock.abi() < 4 or _refused(lambda: server.bind(("127.0.0.1", 0))))


def _is_alone(secret: str, port: int, uid: int) -> bool:
    """No file, port or process of the host is in reach, nothing can be written, no privilege is left."""
    processes = {name for name in os.listdir("/proc") if name.isdigit()} - {str(os.getpid())}
    folders = [folder for folder in ("/", "/dev", "/dev/shm", "/tmp", "/proc", "/usr") if os.path.isdir(folder)]
    out_of_reach = (
        os.getppid() == 1
        and processes == {"1"}
        and _refused(lambda: os.stat(secret), FileNotFoundError)
        and all(_refused(lambda f=folder: os.mkdir(f"{f}/etpo-try"), OSError) for folder in folders)
        and (port == 0 or _refused(lambda: socket.create_connection(("127.0.0.1", port), 2).close(), OSError))
    )
    drop_root(uid)
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return out_of_reach and not any(int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapAmb"))
