"""One worker: a zygote process, and the host's side of the conversation with the children that it forks.

A zygote is a process that has the libraries loaded and forks a child for each job (`inside/__main__.py`). `Worker.run`
has one child fit and predict, and says how that ended; it knows nothing of scores. One thread at a time may use a
worker, except for `kill`, which any thread may call to cut a run short.
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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from etpo_core.sandbox import bubblewrap
from etpo_core.sandbox.inside import wire
from etpo_core.sandbox.outcome import Limits, Status
from etpo_core.sandbox.scoring import Split
from etpo_core.sandbox.text import clean_message, clean_name

_INSIDE = Path(__file__).resolve().parent / "inside"
_FIRST_UID = 0x70000000  # the workers of root become users from here on, above all users that a machine has
_START_S = 120.0  # seconds that a worker may take to start: imports from a cold disk are slow
_END_S = 10.0  # seconds that the kernel may take to remove a killed process


class ZygoteLost(Exception):
    """The zygote died or broke the protocol.

    Attributes:
        program_ran: whether the child had started to run the program, so that the program may be the cause.
    """

    def __init__(self, why: str, program_ran: bool = False) -> None:
        super().__init__(why)
        self.program_ran = program_ran


class _Garbage(Exception):
    """The child sent bytes that are not a frame."""


class _Gone(Exception):
    """The process at the other end closed the channel."""


@dataclass(frozen=True)
class Walls:
    """The walls that a zygote puts up, and what it loads before.

    Attributes:
        flags: the walls, as a sum of flags of `wire`.
        filter_code: the compiled system-call filter; empty if that is not among the walls.
        preload: modules to load besides numpy, scipy and scikit-learn.
    """

    flags: int
    filter_code: bytes = b""
    preload: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ending:
    """How one child ended: with a table of probabilities (status OK), or with a failure.

    Attributes:
        table: the bytes of float64 [validation rows, classes], the rows in the order in which they were sent.
    """

    status: Status
    table: bytes = b""
    error_type: str | None = None
    message: str | None = None
    line: int | None = None
    cpu_s: float = 0.0


_CLOSED = b"; programs may use no files, sockets, processes or signals"  # the agent reads this in its next prompt
_OUT_OF_MEMORY = Ending(Status.OUT_OF_MEMORY, b"", "MemoryError", "the code needs more memory than it may have")


def _environment() -> dict[str, str]:
    """The environment of a zygote. Libraries use one thread each: with more they would hang or give other results."""
    fixed = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONWARNINGS": "ignore",
        "JOBLIB_MULTIPROCESSING": "0",
        # A fork copies the page tables of a process; with large pages it takes half the time.
        "PYTHONMALLOC": "malloc",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "MALLOC_ARENA_MAX": "2",  # more threads would reserve more address space than a program may have
        **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "VECLIB_MAXIMUM")},
    }
    with suppress(OSError):
        if " avx2 " in Path("/proc/cpuinfo").read_text():  # with the same code on all such processors, scores agree
            fixed["OPENBLAS_CORETYPE"] = "Haswell"
    # numpy sorts with AVX-512 where the processor has it, and equal values then come in another order than elsewhere.
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    fixed["NPY_DISABLE_CPU_FEATURES"] = " ".join(f for f in found if f == "X86_V4" or f.startswith("AVX512"))
    return fixed


@contextmanager
def _own_pidfd() -> Iterator[int]:
    """A descriptor that tells its holder when this process ends; -1 on systems that have none."""
    with ExitStack() as opened:
        fd = -1
        with suppress(AttributeError, OSError):
            fd = os.pidfd_open(os.getpid())
            opened.callback(os.close, fd)
        yield fd


@contextmanager
def _listener() -> Iterator[int]:
    """A TCP port of 127.0.0.1 that was seen to answer this process; 0 if there is none."""
    with ExitStack() as opened:
        port = 0
        with suppress(OSError):
            server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            socket.create_connection(server.getsockname(), 2).close()
            port = server.getsockname()[1]
        yield port


class Worker:
    """A zygote process. Call `wait_tried` and then `wait_ready` before the first `run`.

    Attributes:
        pid: process id of the zygote as the host sees it, once it is ready.
        alive: False once the host has ended it.
    """

    def __init__(self, walls: Walls) -> None:
        """Starts the process without waiting for it."""
        self._walls = walls
        self._lock = threading.Lock()
        self._control, inside = socket.socketpair()
        try:
            with inside, _own_pidfd() as host:
                command = [sys.executable, "-P", "-s", "-B", str(_INSIDE), str(inside.fileno()), str(host)]
                if walls.flags & wire.BUBBLEWRAP:
                    command = [*bubblewrap.command(walls.preload, _INSIDE), *command]
                self._process = subprocess.Popen(
                    command,
                    env=_environment(),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=[fd for fd in (inside.fileno(), host) if fd >= 0],
                    start_new_session=True,  # Ctrl-C in the terminal reaches the host alone
                )
        except OSError:
            self._control.close()
            raise
        assert self._process.stderr is not None
        self._stderr = self._process.stderr
        self.pid = self._process.pid
        self.alive = True

    @property
    def whole(self) -> bool:
        """Whether the worker can be used: the host has not ended it, and the process that it started still runs."""
        return self.alive and self._process.poll() is None

    def wait_tried(self) -> tuple[int, int]:
        """Has the walls tried.

        Returns:
            The walls that were seen to refuse what they must, as a sum of flags of `wire`, and Landlock's ABI.

        Raises:
            ZygoteLost: the process did not start; the message holds the last line that it printed.
        """
        walls = self._walls
        modules = "\0".join(walls.preload).encode()
        with self._starting(), tempfile.NamedTemporaryFile() as secret, _listener() as port:
            path = secret.name.encode()
            sizes = len(walls.filter_code), len(modules), len(path)
            self._control.settimeout(_START_S)
            hello = wire.HELLO.pack(*sizes, port, _FIRST_UID + self._process.pid, walls.flags)
            self._control.sendall(hello + walls.filter_code + modules + path)
            flags, abi, _ = self._report(wire.TRIED, _START_S)
            return flags, abi

    def wait_ready(self) -> None:
        """Waits, after `wait_tried`, until the libraries are loaded.

        Raises:
            ZygoteLost: the process ended meanwhile, or has several threads and so may not fork.
        """
        with self._starting():
            _, threads, _ = self._report(wire.READY, _START_S)
        self._stderr.close()
        if threads != 1:
            self.close()
            raise ZygoteLost(f"the executor's worker has {threads} threads, but may have only 1")
        if self._walls.flags & wire.BUBBLEWRAP:  # the process that was started is bubblewrap, the zygote its only child
            with suppress(OSError, IndexError):  # some kernels list no children, and bubblewrap may just have died
                self.pid = int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])

    @contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, _Gone) as error:
            self.kill()
            printed = self._stderr.read().decode(errors="replace").strip().splitlines() or [repr(error)]
            self.close()
            missing = printed[-1].startswith("ModuleNotFoundError")
            cure = f"; workers do not read PYTHONPATH, install the package for {sys.executable}" if missing else ""
            raise ZygoteLost(f"the executor's worker did not start: {printed[-1]}{cure}") from None

    def run(self, source: bytes, split: Split, seed: int, limits: Limits) -> Ending:
        """Has a fresh child fit on the training half and predict the validation half.

        Args:
            source: the program, in UTF-8.
            split: the labels of its validation half are not used here.
            seed: where randomness starts that the program leaves unseeded.
            limits: the limits of this child.

        Raises:
            ZygoteLost: the zygote died meanwhile, or the child could not be confined.
        """
        host, inside = socket.socketpair()
        talk = _Conversation(host, time.monotonic() + limits.wall_s)
        with host:
            try:
                with inside:
                    request = wire.REQUEST.pack(wire.RUN, limits.cpu_s, int(limits.memory_mb * 2**20))
                    socket.send_fds(self._control, [request], [inside.fileno()])
                ending = talk.answer(source, split, seed)
            except OSError as error:
                raise self._lost(f"control channel: {error}", talk) from None
            flag, status, cpu_s = self._finish(talk, patient=ending is None and not talk.timed_out)
        if not talk.confined:
            raise ZygoteLost(f"the child could not be confined (wait status {status})")
        if ending is None:
            ending = _explain(flag, status, cpu_s, limits, talk.timed_out)
        return replace(ending, cpu_s=round(cpu_s, 4))

    def _finish(self, talk: "_Conversation", patient: bool) -> tuple[int, int, float]:
        """Has the child killed, whatever it still does; returns the flag, wait status and CPU seconds of its end."""
        try:
            if patient:  # the child closed its end of the channel: it is probably dying, and the cause is of interest
                with suppress(TimeoutError):
                    return self._report(wire.ENDED, 1.0)
            self._control.sendall(wire.REQUEST.pack(wire.KILL, 0.0, 0))
            return self._report(wire.ENDED, _END_S)
        except (OSError, _Gone) as error:
            raise self._lost(f"no report: {error!r}", talk) from None

    def _report(self, expected: int, timeout: float) -> tuple[int, int, float]:
        """Receives a report of the expected kind from the zygote, and returns its flags, number and CPU seconds."""
        kind, flags, number, cpu_s = wire.REPORT.unpack(_receive(self._control, wire.REPORT.size, timeout))
        if kind != expected:
            raise _Gone
        return flags, number, cpu_s

    def _lost(self, why: str, talk: "_Conversation") -> ZygoteLost:
        self.close()
        return ZygoteLost(f"the executor's worker was lost ({why})", talk.confined)

    def kill(self) -> None:
        """Ends the zygote and its child at once; any thread may call it."""
        with self._lock:
            self.alive = False
            with suppress(OSError):  # it may be closed already
                # The zygote notices this and kills its child. A signal could miss it: that may reach bubblewrap only.
                self._control.shutdown(socket.SHUT_RDWR)
            if self._process.poll() is None:
                self._process.kill()

    def close(self) -> None:
        """Ends the zygote and waits until it is gone."""
        self.kill()
        self._process.wait()
        self._control.close()
        self._stderr.close()


class _Conversation:
    """The conversation with one child over its data channel.

    Attributes:
        confined: whether the child has reported that it is behind the walls.
        timed_out: whether it was still silent at the deadline.
    """

    def __init__(self, channel: socket.socket, deadline: float) -> None:
        self._channel = channel
        self._deadline = deadline
        self.confined = False
        self.timed_out = False

    def answer(self, source: bytes, split: Split, seed: int) -> Ending | None:
        """Sends the job and returns the child's answer; None if there was none."""
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
                with suppress(ConnectionError):  # it may have answered, and ended, without reading them
                    self._send(split.x_test[split.order].tobytes())
                kind, payload = self._frame(size)
            return _ending(kind, payload, size)
        except TimeoutError:
            self.timed_out = True
        except _Garbage:
            return Ending(Status.BAD_OUTPUT, b"", "ProtocolError", "the process wrote bytes that are no answer")
        except (_Gone, ConnectionError):
            pass
        return None

    def _send(self, data: bytes) -> None:
        self._channel.settimeout(_left(self._deadline))
        self._channel.sendall(data)

    def _frame(self, result_size: int) -> tuple[int, bytes]:
        """Receives a frame, and refuses to read on if its kind or length is not allowed."""
        magic, kind, length = wire.FRAME.unpack(_receive(self._channel, wire.FRAME.size, _left(self._deadline)))
        allowed = dict.fromkeys((wire.CONFINED, wire.FITTED, wire.NO_MEMORY), 0)
        allowed |= {wire.RESULT: result_size, wire.ERROR: wire.MAX_ERROR_BYTES, wire.BAD_OUTPUT: wire.MAX_ERROR_BYTES}
        if magic != wire.MAGIC or length > allowed.get(kind, -1):
            raise _Garbage
        return kind, _receive(self._channel, length, _left(self._deadline))


def _left(deadline: float) -> float:
    """The seconds that are left until a deadline; raises TimeoutError if none are."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _receive(sock: socket.socket, size: int, timeout: float) -> bytes:
    """Receives exactly `size` bytes within `timeout` seconds; raises TimeoutError or _Gone otherwise."""
    deadline = time.monotonic() + timeout
    data = bytearray()
    while len(data) < size:
        sock.settimeout(_left(deadline))
        piece = sock.recv(size - len(data))
        if not piece:
            raise _Gone
        data += piece
    return bytes(data)


def _ending(kind: int, payload: bytes, size: int) -> Ending:
    """The ending that a child's last frame stands for."""
    if kind == wire.RESULT and len(payload) == size:
        return Ending(Status.OK, payload)
    if kind == wire.NO_MEMORY:
        return _OUT_OF_MEMORY
    if kind in (wire.ERROR, wire.BAD_OUTPUT):
        status = Status.SNIPPET_ERROR if kind == wire.ERROR else Status.BAD_OUTPUT
        name, line, message = (payload.split(b"\0", 2) + [b"", b""])[:3]
        number = int(line) if line.isdigit() and len(line) < 8 else None
        closed = _CLOSED if name == b"PermissionError" else b""
        return Ending(status, b"", clean_name(name), clean_message(message + closed), number)
    raise _Garbage


def _explain(flag: int, status: int, cpu_s: float, limits: Limits, timed_out: bool) -> Ending:
    """The failure of a child that ended without an answer, from the way in which it ended."""
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
        return _OUT_OF_MEMORY  # only the kernel can have sent it, because the machine ran out of memory
    # The real-time signals between the first and the last have no name.
    name = signal.Signals(killed_by).name if killed_by in set(signal.Signals) else f"signal {killed_by}"
    if killed_by == signal.SIGSYS:
        return Ending(Status.POLICY_VIOLATION, b"", "PolicyViolation", f"forbidden system call ({name})")
    return Ending(Status.CRASH, b"", "Crash", f"the process died of {name}")
