"""Landlock: a part of the Linux kernel through which a process gives up rights for good, for itself and its children.

`give_up_files` takes away every right that the kernel can take away, up to ABI 10 of the interface: all access to
files; TCP ports from ABI 4; from ABI 6, signals and abstract sockets of processes outside; from ABI 9, sockets with a
path; from ABI 10, UDP ports. Rights that kernels learn to take away later are not asked for. The system calls have no
wrapper in the C library and are made through `ctypes`. They bind one thread and what it forks, so the process must be
single-threaded.
"""

import ctypes
import errno
import os
import sys

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # the numbers are the same on every architecture
_VERSION = 1  # a flag of the first call: only ask for the ABI
_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    """The kernel's `struct landlock_ruleset_attr`: bit masks of what is taken away."""

    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


def _call(number: int, *arguments: object) -> int:
    answer = _libc.syscall(ctypes.c_long(number), *arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def abi() -> int:
    """The ABI of this kernel's Landlock, or minus the error number where it has none."""
    if sys.platform != "linux":
        return -errno.ENOSYS
    answer = _libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    return answer if answer >= 0 else -ctypes.get_errno()


def rights(version: int) -> tuple[int, int, int]:
    """The masks of all file, network and scope rights that an ABI can take away (the kernel's `linux/landlock.h`).

    ABIs 7 and 8 added ways to log and to bind all threads, and no right. A kernel refuses a mask with unknown bits.
    """
    files = 13 + sum(version >= since for since in (2, 3, 5, 9))
    network = 2 * (version >= 4) + 2 * (version >= 10)
    return (1 << files) - 1, (1 << network) - 1, 3 if version >= 6 else 0


def give_up_files() -> None:
    """Takes the rights away from the calling process, for good; descriptors that are open stay usable.

    Raises:
        OSError: this kernel has no Landlock, or refused.
    """
    version = abi()
    if version < 0:
        raise OSError(-version, os.strerror(-version))
    ruleset = _Ruleset(*rights(version))
    size = 24 if version >= 6 else 16 if version >= 4 else 8  # an older kernel refuses a structure with newer fields
    fd = _call(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        if _libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS, which the next call requires
            raise OSError(ctypes.get_errno(), "prctl")
        _call(_RESTRICT_SELF, ctypes.c_int(fd), ctypes.c_uint32(0))
    finally:
        os.close(fd)
