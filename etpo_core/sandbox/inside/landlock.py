"""Landlock: the kernel takes file access, TCP and signals to strangers away from this process and all its children.

The three system calls are reached through `ctypes`; what a kernel knows of is told by its version of the interface
(the ABI), and everything that it knows of is taken away: the domain built here has no exception. The process must be
single-threaded, since the calls bind one thread and what it forks.
"""

import ctypes
import errno
import os
import sys

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # the same numbers on every architecture
_VERSION = 1  # flag of the first call: only ask for the ABI
# what each ABI can take away, as numbers of lowest bits: of file accesses, of TCP accesses, of scopes
_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # newer: 16, with ioctl on devices
_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    """The kernel's `struct landlock_ruleset_attr`."""

    _fields_ = [("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


def _call(number: int, *arguments: object) -> int:
    answer = _libc.syscall(ctypes.c_long(number), *arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer


def abi() -> int:
    """The kernel's version of Landlock, or minus the error number of a kernel without it."""
    if sys.platform != "linux":
        return -errno.ENOSYS
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    except OSError as error:
        return -error.errno


def give_up_files() -> None:
    """Takes from the calling process, for good, every access to files, TCP and outside processes that it can.

    Descriptors that are open stay usable.

    Raises:
        OSError: there is no Landlock here, or it was refused.
    """
    version = abi()
    if version < 0:
        raise OSError(-version, os.strerror(-version))
    files = (1 << _FILE_BITS.get(version, 16)) - 1
    ruleset = _Ruleset(files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8  # an older kernel must not be shown newer fields
    fd = _call(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        if _libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS, which the next call asks for
            raise OSError(ctypes.get_errno(), "prctl")
        _call(_RESTRICT_SELF, ctypes.c_int(fd), ctypes.c_uint32(0))
    finally:
        os.close(fd)
