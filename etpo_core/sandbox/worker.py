"""One worker: a zygote process and the host's side of the talk with its children.

`Worker.run` has one fit-and-predict done and says how it ended; it knows nothing of scores. It is used by one
thread at a time, except for `kill`, which any thread may call to cut a run short.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from etpo_core.sandbox import bubblewrap
from etpo_core.sandbox.inside import wire
from etpo_core.sandbox.outcome import Limits, Status
from etpo_core.sandbox.scoring import Split
from etpo_core.sandbox.text import clean_message, clean_name

_INSIDE = Path(__file__).resolve().parent / "inside"
_FIRST_UID = 0x70000000  # where root starts the workers: above all users of a machine
_START_S = 120.0  # a cold disk can make the imports slow
_END_S = 10.0  # for the kernel to take a killed process away


class ZygoteLost(Exception):
    """The zygote died or broke the protocol.

    Attributes:
        snippet_ran: whether the child had begun with the snippet, so that the snippet may be the cause.
    """

    def __init__(self, why: str, snippet_ran: bool = False) -> None:
        """Says why, and whether a snippet was running."""
        super().__init__(why)
        self.snippet_ran = snippet_ran


@dataclass(frozen=True)
class Ending:
    """How one child ended: a table (status OK) or a failure."""

    status: Status
    table: bytes = b""
    error_type: str | None = None
    message: str | None = None
    line: int | None = None
    cpu_s: float = 0.0


class _Garbage(Exception):
    """Bytes from the child that are no frame."""


class _Gone(Exception):
    """The child closed its end."""


def _environment() -> dict[str, str]:
    """All that a zygote knows of the world. One thread a library: more would hang or change results."""
    threads = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "VECLIB_MAXIMUM")
    fixed = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "ignore",
        "JOBLIB_MULTIPROCESSING": "0",
        # a fork copies the tables of all pages: with large ones it takes half the time
        "PYTHONMALLOC": "malloc",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "MALLOC_ARENA_MAX": "2",  # threads would reserve more address space than a program may have
        **{f"{name}_NUM_THREADS": "1" for name in threads},
    }
    if _has_avx2():  # the same kernels on every such processor: scores do not depend on its generation
        fixed["OPENBLAS_CORETYPE"] = "Haswell"
    return fixed


@contextmanager
def _own_pidfd() -> Iterator[int]:
    """A descriptor that tells its holder of this process's end; -1 where there is none."""
    try:
        fd = os.pidfd_open(os.getpid())
    except (AttributeError, OSError):
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _listener() -> Iterator[int]:
    """A port of 127.0.0.1 that was seen to answer this process; 0 where none can be had."""
    with ExitStack() as opened:
        port = 0
        try:
            server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            socket.create_connection(server.getsockname(), 2).close()
            port = server.getsockname()[1]
        except OSError:
            pass
        yield port


def _has_avx2() -> bool:
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


@dataclass(frozen=True)
class Walls:
    """What a zygote is to put up.

    Attributes:
        program: the compiled system-call filter; empty: none.
        landlock: whether to use it.
        bubblewrap: whether to start inside it.
        preload: modules to load besides numpy, scipy and scikit-learn.
    """

    program: bytes = b""
    landlock: bool = False
    bubblewrap: bool = False
    preload: tuple[str, ...] = ()

    @property
    def flags(self) -> int:
        """The layers as a sum of flags of `wire`."""
        chosen = {wire.SECCOMP: self.program, wire.LANDLOCK: self.landlock, wire.BUBBLEWRAP: self.bubblewrap}
        return sum(flag for flag, wanted in chosen.items() if wanted)


class Worker:
    """A zygote, started at once; `wait_tried` and `wait_ready` come before the first `run`.

    Attributes:
        pid: process id of the zygote as the host sees it, once it is ready.
        ready: whether its libraries are loaded.
        alive: False once it was ended from here.
    """

    def __init__(self, walls: Walls) -> None:
        """Starts the process without waiting for it."""
        self._walls = walls
        self._lock = threading.Lock()
        self._control, inside = socket.socketpair()
        try:
            with inside, _own_pidfd() as host:
                command = [sys.executable, "-P", "-s", "-B", str(_INSIDE), str(inside.fileno()), str(host)]
                if walls.bubblewrap:
                    command = [*bubblewrap.command(walls.preload, _INSIDE), *command]
                # a session of its own: Ctrl-C in the terminal is for the host to handle
                self._process = subprocess.Popen(
                    command,
                    env=_environment(),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=[fd for fd in (inside.fileno(), host) if fd >= 0],
                    start_new_session=True,
                )
        except OSError:
            self._control.close()
            raise
        self.pid = self._process.pid
        self.ready = False
        self.alive = True

    @property
    def whole(self) -> bool:
        """Whether it may be used: nobody ended it, and what was started still runs."""
        return self.alive and self._process.poll() is None

    def wait_tried(self) -> tuple[int, int]:
        """Has the layers tried; returns those that were seen to refuse what they must, and Landlock's ABI.

        Raises:
            ZygoteLost: it did not start; the message holds what it printed last.
        """
        walls = self._walls
        modules = "\0".join(walls.preload).encode()
        with self._starting(), tempfile.NamedTemporaryFile() as secret, _listener() as port:
            path = secret.name.encode()
            sizes = len(walls.program), len(modules), len(path)
            self._control.settimeout(_START_S)
            hello = wire.HELLO.pack(*sizes, port, _FIRST_UID + self._process.pid, walls.flags)
            self._control.sendall(hello + walls.program + modules + path)
            kind, flags, abi, _ = wire.REPORT.unpack(_receive(self._control, wire.REPORT.size, _START_S))
            if kind != wire.TRIED:
                raise _Gone
            return flags, abi

    def wait_ready(self) -> None:
        """Waits, after `wait_tried`, until the libraries are loaded.

        Raises:
            ZygoteLost: it ended meanwhile, or is not the single-threaded process that may fork.
        """
        with self._starting():
            kind, _, threads, _ = wire.REPORT.unpack(_receive(self._control, wire.REPORT.size, _START_S))
        self._process.stderr.close()
        if kind != wire.READY or threads != 1:
            self.close()
            raise ZygoteLost(f"the executor's worker started {threads} threads, expected 1")
        self.pid = self._find_pid()
        self.ready = True

    def _find_pid(self) -> int:
        """Process id of the zygote as the host sees it: of what was started, or of bubblewrap's child."""
        started = self._process.pid
        if not self._walls.bubblewrap:
            return started
        children = Path(f"/proc/{started}/task/{started}/children").read_text().split()
        return int(children[0]) if children else started

    @contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, _Gone) as error:
            self.kill()
            said = self._process.stderr.read().decode(errors="replace").strip().splitlines() or [repr(error)]
            self.close()
            raise ZygoteLost(f"the executor's worker did not start: {said[-1]}") from None

    def run(self, source: bytes, split: Split, seed: int, limits: Limits) -> Ending:
        """Fits on the training half in a fresh child and returns its table for the validation half.

        Args:
            source: the program, UTF-8.
            split: the labels of its validation half are not used here.
            seed: what unseeded randomness in the snippet starts from.
            limits: of this child.

        Returns:
            An ending whose table, when OK, is float64 [validation rows, classes] in the order the rows were sent.

        Raises:
            ZygoteLost: the zygote died meanwhile or the child could not be confined.
        """
        deadline = time.monotonic() + limits.wall_s
        host, inside = socket.socketpair()
        talk = _Talk(host, deadline)
        with host:
            try:
                with inside:
                    order = wire.ORDER.pack(wire.RUN, limits.cpu_s, int(limits.memory_mb * 2**20))
                    socket.send_fds(self._control, [order], [inside.fileno()])
                ending = talk.hold(source, split, seed)
            except OSError as error:
                raise self._lost(f"control channel: {error}", talk) from None
            flag, status, cpu_s = self._finish(talk, patient=ending is None)
        if not talk.confined:
            raise ZygoteLost(f"the child could not be confined (wait status {status})")
        if ending is None:
            ending = _explain(flag, status, cpu_s, limits, talk.timed_out)
        return Ending(ending.status, ending.table, ending.error_type, ending.message, ending.line, round(cpu_s, 4))

    def _finish(self, talk: "_Talk", patient: bool) -> tuple[int, int, float]:
        """Has the child killed whatever it still does, and returns flag, wait status and CPU seconds."""
        try:
            if patient and not talk.timed_out:
                try:  # it closed its end: most likely it is dying, and how is worth knowing
                    return self._report(1.0)
                except TimeoutError:
                    pass
            self._control.sendall(wire.ORDER.pack(wire.KILL, 0.0, 0))
            return self._report(_END_S)
        except (OSError, _Gone) as error:
            raise self._lost(f"no report: {error!r}", talk) from None

    def _report(self, timeout: float) -> tuple[int, int, float]:
        kind, flag, status, cpu_s = wire.REPORT.unpack(_receive(self._control, wire.REPORT.size, timeout))
        if kind != wire.ENDED:
            raise _Gone
        return flag, status, cpu_s

    def _lost(self, why: str, talk: "_Talk") -> ZygoteLost:
        self.close()
        return ZygoteLost(f"the executor's worker was lost ({why})", talk.confined)

    def kill(self) -> None:
        """Ends the zygote and its child at once; safe from any thread."""
        with self._lock:
            self.alive = False
            try:
                # the zygote sees this and kills its child; it may be out of reach of a signal that kills bubblewrap
                self._control.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed before
            if self._process.poll() is None:
                self._process.kill()

    def close(self) -> None:
        """Ends the zygote and waits until it is gone."""
        self.kill()
        self._process.wait()
        self._control.close()
        if self._process.stderr:
            self._process.stderr.close()


class _Talk:
    """The conversation with one child."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket = sock
        self._deadline = deadline
        self.confined = False
        self.timed_out = False

    def hold(self, source: bytes, split: Split, seed: int) -> Ending | None:
        """Runs it to the child's answer; None if it ended or was silent without one."""
        try:
            rows, features = split.x_train.shape
            header = wire.JOB.pack(seed, len(source), rows, features, len(split.x_test), len(split.classes))
            arrays = (split.x_train, split.y_train, split.classes)
            self._send(b"".join([header, source, *(array.tobytes() for array in arrays)]))
            kind, payload = self._frame(0)
            self.confined = kind == wire.CONFINED
            if not self.confined:
                return None
            size = 8 * len(split.x_test) * len(split.classes)
            kind, payload = self._frame(size)
            if kind == wire.FITTED:
                self._send(split.x_test[split.order].tobytes())
                kind, payload = self._frame(size)
            return _answer(kind, payload, size)
        except TimeoutError:
            self.timed_out = True
        except _Garbage:
            return Ending(Status.BAD_OUTPUT, b"", "ProtocolError", "the process wrote bytes that are no answer")
        except (_Gone, ConnectionError):
            pass
        return None

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(_left(self._deadline))
        self._socket.sendall(data)

    def _frame(self, result_size: int) -> tuple[int, bytes]:
        head = _receive(self._socket, wire.FRAME.size, _left(self._deadline))
        magic, kind, length = wire.FRAME.unpack(head)
        allowed = {
            wire.CONFINED: 0,
            wire.FITTED: 0,
            wire.NO_MEMORY: 0,
            wire.RESULT: result_size,
            wire.ERROR: wire.MAX_ERROR_BYTES,
            wire.BAD_OUTPUT: wire.MAX_ERROR_BYTES,
        }
        if magic != wire.MAGIC or length > allowed.get(kind, -1):
            raise _Garbage
        return kind, _receive(self._socket, length, _left(self._deadline))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _receive(sock: socket.socket, size: int, timeout: float) -> bytes:
    """Exactly `size` bytes within `timeout` seconds, or TimeoutError, or _Gone."""
    deadline = time.monotonic() + timeout
    data = bytearray()
    while len(data) < size:
        sock.settimeout(_left(deadline))
        piece = sock.recv(size - len(data))
        if not piece:
            raise _Gone
        data += piece
    return bytes(data)


def _answer(kind: int, payload: bytes, size: int) -> Ending:
    if kind == wire.RESULT and len(payload) == size:
        return Ending(Status.OK, payload)
    if kind == wire.NO_MEMORY:
        return _OUT_OF_MEMORY
    if kind in (wire.ERROR, wire.BAD_OUTPUT):
        status = Status.SNIPPET_ERROR if kind == wire.ERROR else Status.BAD_OUTPUT
        name, line, message = (payload.split(b"\0", 2) + [b"", b""])[:3]
        number = int(line) if line.isdigit() and len(line) < 8 else None
        return Ending(status, b"", clean_name(name), clean_message(message), number)
    raise _Garbage


_OUT_OF_MEMORY = Ending(Status.OUT_OF_MEMORY, b"", "MemoryError", "the code needs more memory than it may have")


def _explain(flag: int, status: int, cpu_s: float, limits: Limits, timed_out: bool) -> Ending:
    """The failure that the end of a child without an answer stands for."""
    killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if flag == wire.BY_CPU_LIMIT or (killed_by in (signal.SIGKILL, signal.SIGXCPU) and cpu_s >= limits.cpu_s):
        return Ending(Status.TIMEOUT, b"", "TimeoutError", f"the code used more than {limits.cpu_s:g} s of CPU time")
    if timed_out:
        return Ending(Status.TIMEOUT, b"", "TimeoutError", f"the code took longer than {limits.wall_s:g} s")
    if flag == wire.BY_HOST or not killed_by:
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == wire.EXIT_NO_MEMORY:
            return _OUT_OF_MEMORY
        return Ending(Status.NO_RESULT, b"", "NoResult", "the process ended without an answer")
    if killed_by == signal.SIGKILL:
        return _OUT_OF_MEMORY  # nobody else may send it: the kernel ran out of memory
    name = signal.Signals(killed_by).name
    if killed_by == signal.SIGSYS:
        return Ending(Status.POLICY_VIOLATION, b"", "PolicyViolation", f"forbidden system call ({name})")
    return Ending(Status.CRASH, b"", "Crash", f"the process died of {name}")
