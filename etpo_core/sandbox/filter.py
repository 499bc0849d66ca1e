"""The first wall, the system-call filter: what the process of a program may ask of the kernel.

To fit a scikit-learn model, a process needs memory, clocks, threads and the socket over which it answers. It needs no
file, because all libraries are loaded already. So the filter is a short list of system calls that are allowed; files,
sockets, processes, signals, namespaces and everything else are refused. It is compiled here in the host, once, by
libseccomp, which knows the numbers and the pitfalls of each architecture, and is sent to the workers as bytes.
"""

import errno
import sys
import tempfile

_ALLOWED = """
read write readv writev pread64 pwrite64 close lseek getcwd dup dup2 dup3 umask fadvise64 poll ppoll select pselect6
mmap munmap mremap mprotect brk mbind membarrier
futex set_robust_list rseq sched_yield sched_getaffinity sched_getparam sched_getscheduler
nanosleep gettimeofday time times getrandom
rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
getpgrp getuid geteuid getgid getegid getresuid getresgid getgroups getpgid getsid
getrusage sysinfo uname arch_prctl exit exit_group
""".split()
_ANSWERED = {  # calls that are answered with another error than EPERM, or with the number 0
    errno.EACCES: "open openat",  # an ordinary PermissionError
    # Numbers that the kernel counts up for all processes (of processes, threads and the files of /proc) would carry
    # labels from one program to the next. No file is there, and every process and thread has the number 0.
    errno.ENOENT: "stat fstat lstat newfstatat statx access faccessat faccessat2",
    0: "getpid gettid getppid",
    errno.ENOSYS: "clone3 openat2",  # the C library falls back to the calls that are allowed
}
_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020000  # the flags of all namespaces, because a new thread could ask for some of its own as well
_FCNTL = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
_IOCTL = (0x5401, 0x5450, 0x5451, 0x541B, 0x5413)  # TCGETS, FIONCLEX, FIOCLEX, FIONREAD, TIOCGWINSZ
_PRCTL = (15, 16)  # PR_SET_NAME, PR_GET_NAME
_MADVISE = (*range(5), *range(8, 12), *range(14, 24))  # no merging of equal pages (12, 13), no poisoning (100, 101)
_CLOCKS = 16  # numbers below are clocks of the caller and the machine; others belong to other processes


class Unavailable(Exception):
    """No filter can be compiled here; the message says why and, after "; ", what would help."""


def compile_filter() -> bytes:
    """Compiles the filter to an array of the kernel's `struct sock_filter`.

    Raises:
        Unavailable: this is not Linux, or libseccomp or its Python binding is missing.
    """
    if sys.platform != "linux":
        system = {"darwin": "macOS", "win32": "Windows"}.get(sys.platform, sys.platform)
        raise Unavailable(
            f"there is no kernel sandbox on {system}, and programs would run with all rights of your user; "
            "use a Linux machine, virtual machine or container"
        )
    try:
        import pyseccomp as seccomp
    except ModuleNotFoundError:
        raise Unavailable("the Python package pyseccomp is missing; run `pip install pyseccomp`") from None
    except (RuntimeError, OSError, AttributeError):
        missing = "the system library libseccomp is missing; install it, e.g. `apt install libseccomp2`"
        raise Unavailable(missing) from None
    refused = seccomp.SyscallFilter(defaction=seccomp.ERRNO(errno.EPERM))
    # A call through the table of another architecture ends the whole process, not only the thread that made it.
    refused.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)

    def rule(action: int, name: str, *arguments: object) -> None:
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
        if number >= 0:  # it is negative for a call that this architecture does not have
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
    for number, names in _ANSWERED.items():
        for name in names.split():
            rule(seccomp.ERRNO(number), name)
    with tempfile.TemporaryFile() as file:
        refused.export_bpf(file)
        file.seek(0)
        return file.read()
