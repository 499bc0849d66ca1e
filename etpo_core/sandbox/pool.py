"""The pool: many programs in, as many outcomes out, in the same order.

Each program runs on every split, one fresh process a split, and ends at its first failing split. A program that was
run before on the same data, splits, seed and limits is not run again, also when it occurs twice in one batch.
"""

import hashlib
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor, as_completed
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from etpo_core.errors import UserError
from etpo_core.sandbox.filter import Unavailable, compile_filter
from etpo_core.sandbox.outcome import Limits, Outcome, Status, Tier
from etpo_core.sandbox.scoring import BadTable, Split, area_under_curve, make_split, table_of
from etpo_core.sandbox.worker import Ending, Worker, ZygoteLost

_LIBRARIES = ("numpy", "scipy", "scikit-learn")


class _Abandoned(Exception):
    """Nobody waits for this job any more."""


class _Job:
    """One program on one data set; shared by all who ask for it."""

    def __init__(self, key: str, source: str, splits: list[Split], seed: int) -> None:
        self.key, self.source, self.splits, self.seed = key, source, splits, seed
        self.future: Future[Outcome] = Future()
        self.waiting = 0
        self.abandoned = False
        self.worker: Worker | None = None


class SandboxPool:
    """Runs programs that define `build_model(x_train, y_train)` and scores the classifiers they return.

    Use it as a context manager, or call `close`. Methods may be called from any thread.

    Attributes:
        tier: what holds the programs in (see `Tier`).
    """

    def __init__(self, workers: int = 2, limits: Limits | None = None, allow_unsafe: bool = False) -> None:
        """Starts the workers and tries their walls.

        Args:
            workers: programs that run at a time; no more than the machine has cores makes sense.
            limits: of each fit; the defaults of `Limits` if None.
            allow_unsafe: run without a wall where the kernel gives none (tier D).

        Raises:
            UserError: there is no wall here and `allow_unsafe` is False, or a worker does not start.
        """
        if workers < 1:
            raise UserError(f"the executor was asked for {workers} workers; give 1 or more")
        self.limits = limits or Limits()
        self._program, reason = b"", ""
        try:
            self._program = compile_filter()
        except Unavailable as error:
            reason = str(error)
            if not allow_unsafe:
                raise _refusal(reason) from None
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._closed = False
        self._workers = []
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._executor = ThreadPoolExecutor(workers, "sandbox")
        try:
            for _ in range(workers):
                self._workers.append(Worker(self._program))
            proven = [worker.wait_tried() for worker in self._workers]
            if self._program and not all(proven):
                reason = (
                    "this kernel does not enforce a system-call filter here; use a newer kernel or container"
                )
                if not allow_unsafe:
                    raise _refusal(reason)
            for worker in self._workers:
                worker.wait_ready()
        except ZygoteLost as error:
            self.close()
            raise UserError(f"{error}; check that scikit-learn imports in {sys.executable}") from None
        except BaseException:
            self.close()
            raise
        self.tier = Tier.C if all(proven) else Tier.D
        if self.tier is Tier.D:
            warnings.warn(f"programs run WITHOUT a sandbox (tier D): {reason}", RuntimeWarning, stacklevel=2)
        for index in range(workers):
            self._idle.put(index)

    def __enter__(self) -> "SandboxPool":
        """Returns the pool itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the pool."""
        self.close()

    def close(self) -> None:
        """Stops what runs and ends all workers; may be called twice."""
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
            _settle(job, error=UserError("the executor was closed while programs were waiting"))

    def score(
        self, source: str, x: np.ndarray, y: np.ndarray, split_seeds: Sequence[int], seed: int = 0
    ) -> Outcome:
        """`score_many` of one program."""
        return self.score_many([source], x, y, split_seeds, seed)[0]

    def score_many(
        self,
        sources: Sequence[str],
        x: np.ndarray,
        y: np.ndarray,
        split_seeds: Sequence[int],
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Outcome]:
        """Scores programs by their mean ROC AUC on random half/half splits of one table (the paper's reward).

        Args:
            sources: whole programs, each defining `build_model(x_train, y_train)` -> fitted classifier.
            x: [rows, features] numbers.
            y: [rows] integer labels.
            split_seeds: one split a seed; see `scoring.make_split`.
            seed: what unseeded randomness of the programs starts from.
            progress: called in this thread with (programs done, programs) after each.

        Returns:
            One outcome a program, in their order. Whatever a program does is an outcome, never an exception.

        Raises:
            UserError: the table or the splits are unusable.
        """
        jobs = self._submit(sources, x, y, split_seeds, seed)
        try:
            done = 0
            for future in as_completed({job.future for job in jobs}):
                done += sum(job.future is future for job in jobs)
                if progress is not None:
                    progress(done, len(jobs))
            return [job.future.result() for job in jobs]
        finally:
            self._leave(jobs)

    def score_iter(
        self,
        sources: Sequence[str],
        x: np.ndarray,
        y: np.ndarray,
        split_seeds: Sequence[int],
        seed: int = 0,
    ) -> Iterator[Outcome]:
        """`score_many` that yields each outcome as soon as it and those before it are there."""
        jobs = self._submit(sources, x, y, split_seeds, seed)
        try:
            for job in jobs:
                yield job.future.result()
        finally:
            self._leave(jobs)

    def _submit(self, sources, x, y, split_seeds, seed) -> list[_Job]:
        if isinstance(sources, str):
            raise UserError("sources is one string; give a list of programs, or call score for one")
        x, y = table_of(x, y)
        seeds = [int(s) for s in split_seeds]
        if not seeds:
            raise UserError("split_seeds is empty; give one seed a split, e.g. range(5)")
        splits = [make_split(x, y, s) for s in seeds]
        common = hashlib.sha256(x.tobytes() + y.tobytes())
        libraries = [f"{name} {version(name)}" for name in _LIBRARIES]
        common.update(repr((x.shape, seeds, int(seed), self.limits, sys.version, libraries)).encode())
        jobs = []
        with self._lock:
            if self._closed:
                raise UserError("the executor is closed; open a new SandboxPool")
            for source in sources:
                digest = common.copy()
                digest.update(source.encode("utf-8", "surrogatepass"))
                key = digest.hexdigest()
                job = self._jobs.get(key)
                if job is None:
                    job = self._jobs[key] = _Job(key, source, splits, int(seed))
                    self._executor.submit(self._do, job)
                job.waiting += 1
                jobs.append(job)
        return jobs

    def _leave(self, jobs: list[_Job]) -> None:
        """Stops waiting for jobs; those that nobody waits for any more are cut short and forgotten."""
        with self._lock:
            for job in jobs:
                job.waiting -= 1
                if job.waiting == 0 and not job.future.done():
                    job.abandoned = True
                    self._forget(job)
                    if job.worker is not None:
                        job.worker.kill()

    def _forget(self, job: _Job) -> None:
        """Takes a job out of the cache; the caller holds the lock."""
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]

    def _do(self, job: _Job) -> None:
        """One job in one of the pool's threads; settles it whatever happens."""
        try:
            outcome = self._score(job)
        except _Abandoned:
            _settle(job, error=UserError("the executor was closed while programs ran"))
            return
        except BaseException as error:
            with self._lock:
                self._forget(job)
            _settle(job, error=error)
            return
        if outcome.status is Status.INFRASTRUCTURE_FAULT:
            with self._lock:
                self._forget(job)
        job.splits = []  # the outcome is kept for as long as the pool lives, the data need not be
        _settle(job, outcome)

    def _score(self, job: _Job) -> Outcome:
        source = job.source.encode("utf-8", "surrogatepass")
        if len(source) > self.limits.source_bytes:
            message = f"the program is longer than {self.limits.source_bytes} bytes"
            return Outcome(Status.SNIPPET_ERROR, None, (), "ValueError", message, tier=self.tier)
        started = time.monotonic()
        cpu_s, scores = 0.0, []
        for split in job.splits:
            ending = self._run(job, source, split)
            cpu_s += ending.cpu_s
            if ending.status is Status.OK:
                try:
                    scores.append(_score_of(ending.table, split))
                except BadTable as error:
                    ending = replace(
                        ending, status=Status.BAD_OUTPUT, error_type="ValueError", message=str(error)
                    )
            if ending.status is not Status.OK:
                break
        ok = ending.status is Status.OK
        return Outcome(
            status=ending.status,
            score=round(sum(scores) / len(scores), 6) if ok else None,
            scores=tuple(scores) if ok else (),
            error_type=ending.error_type,
            message=ending.message,
            line=ending.line,
            cpu_s=round(cpu_s, 4),
            wall_s=round(time.monotonic() - started, 4),
            tier=self.tier,
        )

    def _run(self, job: _Job, source: bytes, split: Split) -> Ending:
        """One split, again on a fresh worker if one was lost.

        A snippet under which two workers are lost is held to be the cause; a fault before it began is never charged
        to it, and two of those are reported as such.
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
                lost, faults = lost + error.snippet_ran, faults + (not error.snippet_ran)
                if lost == 2:
                    return Ending(Status.CRASH, b"", "Crash", "the process took its worker down")
                if faults == 2:
                    return Ending(Status.INFRASTRUCTURE_FAULT, b"", "InfrastructureFault", str(error))
            finally:
                with self._lock:
                    job.worker = None
                self._idle.put(index)

    def _take(self, index: int, job: _Job) -> Worker:
        """The worker in a place of the pool, replaced if it died, for this job."""
        with self._lock:
            if job.abandoned or self._closed:
                raise _Abandoned
            worker = self._workers[index]
            if worker.alive:
                job.worker = worker
                return worker
        worker.close()
        worker = Worker(self._program)
        with self._lock:
            self._workers[index] = job.worker = worker
            if job.abandoned or self._closed:
                worker.kill()
        if worker.wait_tried() is not (self.tier is Tier.C):
            worker.close()
            raise ZygoteLost("the wall of a new worker does not hold")
        worker.wait_ready()
        return worker


def _settle(job: _Job, outcome: Outcome | None = None, error: BaseException | None = None) -> None:
    """Wakes those who wait for a job; the first settlement counts."""
    try:
        if error is None:
            job.future.set_result(outcome)
        else:
            job.future.set_exception(error)
    except InvalidStateError:
        pass


def _score_of(raw: bytes, split: Split) -> float:
    table = np.empty((len(split.y_test), len(split.classes)))
    table[split.order] = np.frombuffer(raw, "<f8").reshape(table.shape)
    return area_under_curve(table, split.y_test, split.classes)


def _refusal(reason: str) -> UserError:
    return UserError(
        f"programs cannot be confined: {reason}; or pass allow_unsafe=True for code that you wrote yourself"
    )
