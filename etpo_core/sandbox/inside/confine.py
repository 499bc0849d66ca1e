"""The steps by which a process gives up its rights, for good.

The zygote takes some of them once (it becomes an ordinary user, it hides from its peers). `confine` runs in every
freshly forked child before the child looks at the program's text: resource limits, death together with the parent, no
new privileges, and the system-call filter that the host compiled. A step that fails raises an error, and the caller
then ends the process: nothing ever runs unconfined.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_GET_TID_ADDRESS = 1, 4, 22, 38, 40
_CLONE3 = 435  # the number is the same on every architecture
_ALONE = 0x31200000  # CLONE_ with NEWPID, NEWUSER, and CHILD_SETTID and CHILD_CLEARTID as in the C library's fork
_CAPABILITIES = 0x20080522  # the version of the kernel's structures
_SECCOMP_MODE_FILTER = 2
_LINUX = sys.platform == "linux"
_libc = ctypes.CDLL(None, use_errno=True)
_keeping_lock = ctypes.PyDLL(None, use_errno=True)  # calls keep the interpreter's lock, as a fork must


class _Filter(ctypes.Structure):
    """The kernel's `struct sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def _prctl(option: int, *arguments: object) -> None:
    padded = [*arguments, *[ctypes.c_ulong(0)] * (4 - len(arguments))]
    if _LINUX and _libc.prctl(option, *padded) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def hide_from_peers() -> None:
    """Closes this process and its future children to ptrace and /proc/PID/mem of processes of the same user."""
    _prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0))


def die_with_parent() -> None:
    """Has the kernel kill this process as soon as its parent has died."""
    _prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


def drop_root(own_uid: int) -> bool:
    """Turns a process of root into one of an ordinary user, for good; does nothing for other users.

    Args:
        own_uid: a user id that nobody else on the machine has. Some containers do not allow it; the process then
            becomes user 65534 ("nobody").

    Returns:
        Whether the process now is the user `own_uid`, so that the kernel can count its processes.
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


def fork_alone() -> int:
    """Does what `os.fork` does; the new process is number 1 of a process namespace of its own.

    The kernel counts up the numbers of processes and threads, so a program could use some up to tell the next one a
    number; in a new namespace they begin anew. Without privileges, that takes a new user namespace as well, in which
    the new process has all rights. It gives them up here.

    Raises:
        OSError: the kernel does not allow it.
    """
    number = ctypes.c_ulong()  # where the C library keeps the number of this thread
    _prctl(_PR_GET_TID_ADDRESS, ctypes.byref(number))
    arguments = (ctypes.c_uint64 * 8)(_ALONE, 0, number.value, 0, signal.SIGCHLD)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = _keeping_lock.syscall(ctypes.c_long(_CLONE3), arguments, ctypes.c_size_t(ctypes.sizeof(arguments)))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        if _libc.capset((ctypes.c_uint32 * 2)(_CAPABILITIES), (ctypes.c_uint32 * 6)()) != 0:
            os._exit(1)
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone3")
    return pid


def processes_on_machine() -> int:
    """How many processes and threads all users have: an upper bound for those of this process's user."""
    words = (ctypes.c_ulong * 64)()
    if not _LINUX or _libc.sysinfo(ctypes.byref(words)) != 0:
        return 1 << 16
    return words[10] & 0xFFFF  # `procs` in `struct sysinfo`, after the uptime, three loads and six sizes


def memory_in_use() -> tuple[int, int] | None:
    """Bytes of address space and of private data that this process holds; None where /proc is missing."""
    try:
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    space, private = (int(fields[name].split()[0]) * 1024 for name in ("VmSize", "VmData"))
    return space, private


def confine(
    parent: int, filter_code: bytes, cpu_s: float, memory: int, in_use: tuple[int, int] | None, processes: int
) -> None:
    """Limits the calling process and installs the filter; neither can be undone.

    Args:
        parent: what `os.getppid` returns as long as the zygote lives: its process id, or 0 from another namespace. If
            the zygote has died meanwhile, the process ends here.
        filter_code: the compiled filter, an array of `struct sock_filter`; empty for none (tier D).
        cpu_s: CPU seconds. The kernel counts whole seconds, so this only backs up the zygote's own clock.
        memory: bytes on top of `in_use`. An absolute limit could lie below what the libraries already occupy.
        in_use: what `memory_in_use` returned in the zygote.
        processes: how many processes and threads the user may have. Threads need a limit of their own, because those
            that share a stack take no memory that another limit would count.

    Raises:
        OSError: the kernel refused a limit or the filter.
    """
    die_with_parent()
    if os.getppid() != parent:
        os._exit(0)
    limits = {"CPU": int(cpu_s) + 1, "NOFILE": 64, "NPROC": processes, "STACK": 8 << 20}
    limits |= dict.fromkeys(("FSIZE", "CORE", "MEMLOCK", "MSGQUEUE"), 0)
    if in_use is not None:
        # Both are needed: DATA does not count shared anonymous mappings, and AS counts much that is never touched.
        limits["AS"], limits["DATA"] = (held + memory for held in in_use)
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}", None)
        if which is not None:
            hard = resource.getrlimit(which)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (value, value))
    if filter_code:
        _prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
        buffer = ctypes.create_string_buffer(filter_code, len(filter_code))
        loaded = _Filter(len(filter_code) // 8, ctypes.addressof(buffer))
        _prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(loaded))
