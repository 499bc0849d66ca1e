"""The pool of workers: takes many programs and returns as many outcomes, in the same order.

Each program runs on every split, in a fresh process for each, and stops at the first split on which it fails. Then it
runs once more, with the labels of the training halves dealt to other rows, and of its error is shown only what is the
same again; so no error can say which row has which label. The pool remembers outcomes: a program that has run on the
same data, splits and seed is not run again, and a program that occurs twice in one batch runs once.
"""

import hashlib
import math
import os
import queue
import re
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from etpo_core.errors import UserError
from etpo_core.sandbox.outcome import Limits, Outcome, Status, Tier
from etpo_core.sandbox.scoring import DECIMALS, BadTable, Split, area_under_curve, deal_labels, make_split, table_of
from etpo_core.sandbox.walls import names_of, probe, tier_of
from etpo_core.sandbox.worker import Ending, Worker, ZygoteLost

_NUMBER = re.compile(r"[-+]?\d+(?:[.,_]\d+)*(?:e[-+]?\d+)?")
_LOST_TWICE = Ending(Status.CRASH, b"", "Crash", "the process took its worker down")
_WITHHELD = Ending(
    Status.LABEL_DEPENDENT, b"", "Withheld", "the error depends on which row has which label, so it is not shown"
)
_REMEMBERED = 50_000  # how many outcomes are kept, those used last; each takes about a kilobyte


class _Abandoned(UserError):
    """The job was cut short, because nobody waits for it any more or because the pool was closed."""

    def __init__(self) -> None:
        super().__init__("the executor is closed; open a new SandboxPool")


class _Data(NamedTuple):
    """What the programs of one batch have in common; `digest` tells different data, splits and seeds apart."""

    splits: list[Split]
    seed: int
    digest: bytes


class _Job:
    """One program on one data set, shared by all calls that wait for it.

    Attributes:
        key: tells different jobs apart.
        future: receives the outcome.
        waiting: how many calls wait for it.
        abandoned: whether it is to be cut short, because nobody waits for it or the pool is closed.
        worker: where it runs at the moment, if it does.
    """

    def __init__(self, key: bytes, source: str, splits: list[Split], seed: int) -> None:
        self.key, self.source, self.splits, self.seed = key, source, splits, seed
        self.future: Future[Outcome] = Future()
        self.waiting = 0
        self.abandoned = False
        self.worker: Worker | None = None


class SandboxPool:
    """Runs programs that define `build_model(x_train, y_train)` and scores the classifiers that they return.

    Use it as a context manager, or call `close`. Methods may be called from any thread.

    Attributes:
        limits: the limits of each fit.
        tier: how well the programs are confined (see `Tier`).
        layers: names of the walls that were seen to hold.
    """

    def __init__(
        self,
        workers: int = 2,
        limits: Limits | None = None,
        allow_unsafe: bool = False,
        tier: Tier | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        """Starts the workers and tries their walls.

        Args:
            workers: how many programs run at the same time; more than the machine has cores gains nothing.
            limits: the limits of each fit; the defaults of `Limits` if None.
            allow_unsafe: whether to run programs without any wall where the kernel offers none (tier D).
            tier: the tier at which to confine the programs; the best that this machine can give if None.
            preload: modules that programs may import besides numpy, scipy, scikit-learn and the standard library.

        Raises:
            UserError: the machine cannot give the tier, or offers no wall and `allow_unsafe` is False, or a worker
                does not start.
        """
        if workers < 1:
            raise UserError(f"the executor was asked for {workers} workers; give 1 or more")
        if isinstance(preload, str):
            raise UserError(f"preload is the text {preload!r}; give a list of module names")
        self.limits = limits or Limits()
        report = probe()
        self._walls = report.walls(tier, allow_unsafe, tuple(preload))
        self.tier, self.layers = tier_of(self._walls.flags), names_of(self._walls.flags)
        self._lock = threading.Lock()
        self._jobs: OrderedDict[bytes, _Job] = OrderedDict()
        self._closed = False
        self._process = os.getpid()
        self._workers: list[Worker] = []
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._executor = ThreadPoolExecutor(workers, "sandbox")
        try:
            for _ in range(workers):
                self._workers.append(Worker(self._walls))
            for worker in self._workers:
                self._check(worker)
            for worker in self._workers:
                worker.wait_ready()
        except BaseException as error:
            self.close()
            if isinstance(error, ZygoteLost):
                raise UserError(str(error)) from None
            if isinstance(error, OSError):
                raise UserError(f"the executor cannot start a worker: {error}") from None
            raise
        if self.tier is Tier.D:
            why = "asked for" if tier is Tier.D else report.layers[0].detail
            warnings.warn(f"programs run WITHOUT a sandbox (tier D): {why}", RuntimeWarning, stacklevel=2)
        for index in range(workers):
            self._idle.put(index)

    def _check(self, worker: Worker) -> None:
        """Has the walls of a new worker tried; raises ZygoteLost if one does not hold."""
        if worker.wait_tried()[0] != self._walls.flags:
            worker.close()
            doctor = "run `python -m etpo_core.sandbox doctor`"
            raise ZygoteLost(f"the walls of a new worker do not hold, although they held before; {doctor}")

    def __enter__(self) -> "SandboxPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the programs that run and ends all workers; may be called twice. Does nothing in a fork."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._closed = True
            for job in self._jobs.values():
                job.abandoned = True
        for worker in self._workers:
            worker.kill()
        self._executor.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        for job in list(self._jobs.values()):
            _settle(job, _Abandoned())

    def score(self, source: str, x: np.ndarray, y: np.ndarray, split_seeds: Sequence[int], seed: int = 0) -> Outcome:
        """Scores one program; see `score_many`."""
        return self.score_many([source], x, y, split_seeds, seed)[0]

    def score_many(
        self, sources: Sequence[str], x: np.ndarray, y: np.ndarray, split_seeds: Sequence[int], seed: int = 0
    ) -> list[Outcome]:
        """Scores programs by their mean ROC AUC on random half/half splits of one data set (the paper's reward).

        Args:
            sources: whole programs, each of which defines `build_model(x_train, y_train)` -> fitted classifier.
            x: [rows, features] numbers.
            y: [rows] integer labels.
            split_seeds: one seed for each split; see `scoring.make_split`.
            seed: where randomness starts that the programs leave unseeded.

        Returns:
            One outcome for each program, in their order. What a program does never raises an exception here.

        Raises:
            UserError: the data or the splits cannot be used, or the pool is closed.
        """
        return list(self.score_iter(sources, x, y, split_seeds, seed))

    def score_iter(
        self, sources: Sequence[str], x: np.ndarray, y: np.ndarray, split_seeds: Sequence[int], seed: int = 0
    ) -> Iterator[Outcome]:
        """Does what `score_many` does, and yields each outcome as soon as it and all before it are known."""
        with self._waiting(sources, self._data(x, y, split_seeds, seed)) as jobs:
            for job in jobs:
                yield job.future.result()

    @contextmanager
    def ahead(
        self, x: np.ndarray, y: np.ndarray, split_seeds: Sequence[int], seed: int = 0
    ) -> Iterator[Callable[[str], None]]:
        """Yields a function that takes a program, starts it and returns at once.

        `score_many`, called inside the context with the same data, finds the program running or done. Programs that
        nobody waits for when the context ends are stopped.

        Raises:
            UserError: the data or the splits cannot be used, or the pool is closed.
        """
        data = self._data(x, y, split_seeds, seed)
        with self._waiting([], data) as jobs:
            yield lambda source: jobs.extend(self._start([source], data))

    def _data(self, x: np.ndarray, y: np.ndarray, split_seeds: Sequence[int], seed: int) -> _Data:
        """Checks the data of a batch and makes its splits."""
        x, y = table_of(x, y)
        seeds = [int(s) for s in split_seeds]
        if not seeds:
            raise UserError("split_seeds is empty; give one seed for each split, e.g. range(5)")
        # Limits, modules and versions need not be part of the digest: they are the same for all jobs of this pool.
        digest = hashlib.sha256(x.tobytes() + y.tobytes() + repr((x.shape, seeds, int(seed))).encode())
        return _Data([make_split(x, y, s) for s in seeds], int(seed), digest.digest())

    @contextmanager
    def _waiting(self, sources: Sequence[str], data: _Data) -> Iterator[list[_Job]]:
        """Starts programs, yields their jobs, and stops waiting for those jobs when the context ends."""
        if isinstance(sources, str):
            raise UserError("sources is one string; give a list of programs, or call score for one")
        jobs = self._start(sources, data)
        try:
            yield jobs
        finally:
            self._leave(jobs)

    def _start(self, sources: Sequence[str], data: _Data) -> list[_Job]:
        if self._process != os.getpid():  # its threads are in the process that was forked, and it may hold the lock
            raise UserError("the executor was opened by another process; open a new SandboxPool in this one")
        jobs = []
        with self._lock:
            if self._closed:
                raise _Abandoned
            for source in sources:
                key = hashlib.sha256(data.digest + _encoded(source)).digest()
                job = self._jobs.get(key)
                if job is None:
                    job = self._jobs[key] = _Job(key, source, data.splits, data.seed)
                    self._executor.submit(self._do, job)
                self._jobs.move_to_end(key)
                job.waiting += 1
                jobs.append(job)
        return jobs

    def _leave(self, jobs: list[_Job]) -> None:
        """Stops waiting for jobs. Those that nobody waits for any more are cut short and forgotten."""
        with self._lock:
            for job in jobs:
                job.waiting -= 1
                if job.waiting == 0 and not job.future.done():
                    job.abandoned = True
                    self._forget(job)
                    if job.worker is not None:
                        job.worker.kill()

    def _forget(self, job: _Job) -> None:
        """Removes a job from what is remembered; the caller holds the lock."""
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]

    def _do(self, job: _Job) -> None:
        """Runs one job in one of the pool's threads; whatever happens, those who wait for it are told."""
        result: Outcome | BaseException
        try:
            result = self._score(job)
        except BaseException as error:
            result = error
        job.source, job.splits = "", []  # only the outcome is needed from now on
        with self._lock:
            if not isinstance(result, Outcome) or result.status is Status.INFRASTRUCTURE_FAULT:
                self._forget(job)
            _settle(job, result)
            while len(self._jobs) > _REMEMBERED and next(iter(self._jobs.values())).future.done():
                self._jobs.popitem(last=False)

    def _score(self, job: _Job) -> Outcome:
        source = _encoded(job.source)
        if len(source) > self.limits.source_bytes:
            message = f"the program is longer than {self.limits.source_bytes} bytes"
            return Outcome(Status.SNIPPET_ERROR, None, (), "ValueError", message, tier=self.tier)
        started = time.monotonic()
        ending, scores, cpu_s = self._run_splits(job, source, job.splits)
        final = Status.OK, Status.TIMEOUT, Status.INFRASTRUCTURE_FAULT
        if ending.status not in final and ending is not _LOST_TWICE:  # a second timeout would cost as much as the first
            again = (deal_labels(split, source) for split in job.splits[: len(scores) + 1])
            other, _, more = self._run_splits(job, source, again)
            cpu_s += more
            ending = other if other.status is Status.INFRASTRUCTURE_FAULT else _common(ending, other)
        ok = ending.status is Status.OK
        mean = round(sum(scores) / len(scores), DECIMALS) if ok else None
        failure = ending.error_type, ending.message, ending.line
        took = round(cpu_s, 4), round(time.monotonic() - started, 4)
        return Outcome(ending.status, mean, tuple(scores) if ok else (), *failure, *took, self.tier)

    def _run_splits(self, job: _Job, source: bytes, splits: Iterable[Split]) -> tuple[Ending, list[float], float]:
        """Runs splits up to the first failure; returns the last ending, the scores, and the CPU seconds of all."""
        cpu_s, scores = 0.0, []
        for split in splits:
            ending, score = self._run_and_score(job, source, split)
            cpu_s += ending.cpu_s
            if ending.status is not Status.OK:
                break
            scores.append(score)
        return ending, scores, cpu_s

    def _run_and_score(self, job: _Job, source: bytes, split: Split) -> tuple[Ending, float]:
        """Runs one split; returns how it ended and its score, which is NaN if it failed."""
        ending = self._run(job, source, split)
        if ending.status is not Status.OK:
            return ending, math.nan
        try:
            return ending, area_under_curve(_probabilities(ending.table, split), split.y_test, split.classes)
        except Exception as error:  # whatever the metric raises, the table is not usable
            message = f"the probabilities cannot be scored ({type(error).__name__})"
            message = str(error) if isinstance(error, BadTable) else message
            return Ending(Status.BAD_OUTPUT, b"", "ValueError", message, cpu_s=ending.cpu_s), math.nan

    def _run(self, job: _Job, source: bytes, split: Split) -> Ending:
        """Runs one split, and runs it again on a fresh worker if the worker was lost.

        If two workers are lost while the program runs, the program is held to be the cause. The loss of a worker before
        the program has started is never charged to the program; two of these are an infrastructure fault.
        """
        lost, faults = 0, 0
        while True:
            index = self._idle.get()
            try:
                worker = self._take(index, job)
                return worker.run(source, split, job.seed, self.limits)
            except ZygoteLost as error:
                if job.abandoned:
                    raise _Abandoned from None
                lost, faults = lost + error.program_ran, faults + (not error.program_ran)
                if lost == 2:
                    return _LOST_TWICE
                if faults == 2:
                    return Ending(Status.INFRASTRUCTURE_FAULT, b"", "InfrastructureFault", str(error))
            finally:
                with self._lock:
                    job.worker = None
                self._idle.put(index)

    def _take(self, index: int, job: _Job) -> Worker:
        """Reserves one of the workers for a job, and replaces it first if it has died."""
        with self._lock:
            if job.abandoned or self._closed:
                raise _Abandoned
            worker = self._workers[index]
            if worker.whole:
                job.worker = worker
                return worker
        worker.close()
        worker = Worker(self._walls)
        with self._lock:
            self._workers[index] = job.worker = worker
            if job.abandoned or self._closed:
                worker.kill()
        self._check(worker)
        worker.wait_ready()
        return worker


def _common(ending: Ending, dealt: Ending) -> Ending:
    """What of a failure is the same where the labels are dealt to other rows: all, all but its numbers, or nothing."""
    for shown, other in ((ending, dealt), (_without_numbers(ending), _without_numbers(dealt))):
        if replace(other, cpu_s=shown.cpu_s) == shown:
            return shown
    return _WITHHELD


def _without_numbers(ending: Ending) -> Ending:
    return replace(ending, message=_NUMBER.sub("...", ending.message or ""))


def _settle(job: _Job, result: Outcome | BaseException) -> None:
    """Hands a job's outcome or error to those who wait for it; nothing happens if they already have one."""
    with suppress(InvalidStateError):
        if isinstance(result, Outcome):
            job.future.set_result(result)
        else:
            job.future.set_exception(result)


def _encoded(source: str) -> bytes:
    return source.encode("utf-8", "surrogatepass")


def _probabilities(raw: bytes, split: Split) -> np.ndarray:
    """The answer of a child as float64 [validation rows, classes], with the rows in the order of the split."""
    table = np.empty((len(split.y_test), len(split.classes)))
    table[split.order] = np.frombuffer(raw, "<f8").reshape(table.shape)
    return table
