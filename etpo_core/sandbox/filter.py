"""The system-call filter: what a snippet's process may ask of the kernel.

Fitting a scikit-learn model needs memory, clocks, threads and the two ends of one open socket - and no file, since
every library is loaded before. So the filter is a short list of what is allowed; opening files, sockets, processes,
signals, namespaces and everything unnamed is refused. It is compiled once, here in the host, by libseccomp (which
knows the call numbers and the traps of each architecture) and sent to the workers as bytes.
"""

import errno
import sys
import tempfile

_ALLOWED = """
read write readv writev pread64 pwrite64 close fstat newfstatat stat lstat statx lseek access faccessat faccessat2
getcwd getdents64 dup dup2 dup3 umask fadvise64 poll ppoll select pselect6
mmap munmap mremap mprotect brk mbind membarrier
futex set_robust_list rseq sched_yield sched_getaffinity sched_getparam sched_getscheduler
nanosleep gettimeofday time times getrandom
rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
getpid gettid getppid getpgrp getuid geteuid getgid getegid getresuid getresgid getgroups getpgid getsid
getrusage sysinfo uname arch_prctl exit exit_group
""".split()
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020000  # all namespaces: a thread may have its own of some, without being a process
_FCNTL = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
_IOCTL = (0x5401, 0x5450, 0x5451, 0x541B, 0x5413)  # TCGETS, FIONCLEX, FIOCLEX, FIONREAD, TIOCGWINSZ
_PRCTL = (15, 16)  # PR_SET_NAME, PR_GET_NAME
_MADVISE = (*range(5), *range(8, 12), *range(14, 24))  # not: merge equal pages, poison pages
_CLOCKS = 16  # those below are the caller's and the machine's, those above other processes'


class Unavailable(Exception):
    """No filter can be compiled here; the message says why and what mends it."""


def compile_filter() -> bytes:
    """The filter as an array of the kernel's `struct sock_filter`.

    Raises:
        Unavailable: not Linux, or libseccomp or its Python binding is missing.
    """
    if sys.platform != "linux":
        system = {"darwin": "macOS", "win32": "Windows"}.get(sys.platform, sys.platform)
        raise Unavailable(
            f"no kernel sandbox on {system}: snippets would run with your user's rights; use a Linux machine, "
            "virtual machine or container"
        )
    try:
        import pyseccomp as seccomp
    except ModuleNotFoundError:
        raise Unavailable("the Python package pyseccomp is missing; run `pip install pyseccomp`") from None
    except (RuntimeError, OSError, AttributeError):
        raise Unavailable(
            "the system library libseccomp is missing; install it, e.g. `apt install libseccomp2`"
        ) from None
    refused = seccomp.SyscallFilter(defaction=seccomp.ERRNO(errno.EPERM))
    # a call through another table ends the process, not only the thread that made it
    refused.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)

    def rule(action: int, name: str, *arguments: object) -> None:
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        if number >= 0:  # negative: this architecture has no such call
            refused.add_rule(action, number, *arguments)

    for name in _ALLOWED:
        rule(seccomp.ALLOW, name)
    thread = seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD | _CLONE_NEW, _CLONE_THREAD)
    rule(seccomp.ALLOW, "clone", thread)
    by_value = (("fcntl", 1, _FCNTL), ("ioctl", 1, _IOCTL), ("prctl", 0, _PRCTL), ("madvise", 2, _MADVISE))
    for name, which, values in by_value:
        for value in values:
            rule(seccomp.ALLOW, name, seccomp.Arg(which, seccomp.EQ, value))
    for name in ("clock_gettime", "clock_getres", "clock_nanosleep"):
        rule(seccomp.ALLOW, name, seccomp.Arg(0, seccomp.LT, _CLOCKS))
    rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(0, seccomp.EQ, 0), seccomp.Arg(2, seccomp.EQ, 0))
    # EACCES reads as an ordinary PermissionError; ENOSYS makes the C library fall back to what is filtered above
    for name in ("open", "openat"):
        rule(seccomp.ERRNO(errno.EACCES), name)
    for name in ("clone3", "openat2"):
        rule(seccomp.ERRNO(errno.ENOSYS), name)
    with tempfile.TemporaryFile() as file:
        refused.export_bpf(file)
        file.seek(0)
        return file.read()
