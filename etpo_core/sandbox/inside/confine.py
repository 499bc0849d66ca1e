"""Puts the calling process behind the wall, for good.

`confine` runs in a freshly forked child before any of the snippet's text is looked at: resource limits, death
with its parent, no new privileges, and the system-call filter that the host compiled. Every step that fails
raises; the caller then ends the process rather than run anything unconfined.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _prctl(option: int, *arguments: object) -> None:
    padded = [*arguments, *[ctypes.c_ulong(0)] * (4 - len(arguments))]
    if _libc.prctl(option, *padded) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def hide_from_peers() -> None:
    """Makes this process and its future children closed to ptrace and /proc/PID/mem of equal users."""
    if _LINUX:
        _prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0))


def die_with_parent() -> None:
    """Has the kernel kill this process as soon as its parent has died."""
    if _LINUX:
        _prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def drop_root(own_uid: int) -> bool:
    """Makes a root process an ordinary user's, for good; does nothing to others.

    Args:
        own_uid: a user id that nobody else on the machine has; where it cannot be had (in some containers), nobody's.

    Returns:
        Whether the process now is the user `own_uid`, so that its processes can be counted.
    """
    if not hasattr(os, "setresuid") or os.geteuid() != 0:
        return False
    for uid in (own_uid, 65534):
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            return uid == own_uid
        except OSError:
            continue
    return False


def processes_on_machine() -> int:
    """Processes and threads of everybody, at least as many as those of this process's user."""
    words = (ctypes.c_ulong * 64)()
    if not _LINUX or _libc.sysinfo(ctypes.byref(words)) != 0:
        return 1 << 16
    return words[10] & 0xFFFF  # after uptime, three loads and six sizes


def memory_in_use() -> tuple[int, int] | None:
    """Bytes of address space and of private data that this process holds; None where /proc is missing."""
    try:
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmSize", "VmData"))


def confine(
    parent: int, program: bytes, cpu_s: float, memory: int, in_use: tuple[int, int] | None, processes: int
) -> None:
    """Limits the calling process and installs the filter; there is no way back.

    Args:
        parent: process id of the zygote; if it has died meanwhile, the process ends here.
        program: the compiled filter, an array of `struct sock_filter`; empty: none (tier D).
        cpu_s: CPU seconds; the kernel counts whole seconds, so this is the backstop of the zygote's own clock.
        memory: bytes on top of `in_use`. An absolute limit would lie below what the libraries already occupy.
        in_use: what `memory_in_use` said in the zygote.
        processes: how many processes and threads the user may have; threads that share a stack take no memory that
            the other limits would count.

    Raises:
        OSError: a limit or the filter was refused.
    """
    die_with_parent()
    if os.getppid() != parent:
        os._exit(0)
    whole = int(cpu_s) + 1
    limits = {
        "CPU": whole,
        "FSIZE": 0,
        "CORE": 0,
        "NOFILE": 64,
        "STACK": 8 << 20,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "NPROC": processes,
    }
    if in_use is not None:
        # both: DATA leaves shared anonymous maps free, AS alone counts too much of what is never touched
        limits["AS"], limits["DATA"] = (held + memory for held in in_use)
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}", None)
        if which is not None:
            hard = resource.getrlimit(which)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (value, value))
    if program:
        _prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
        buffer = ctypes.create_string_buffer(program, len(program))
        filter_ = _Program(len(program) // 8, ctypes.addressof(buffer))
        _prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(filter_))
