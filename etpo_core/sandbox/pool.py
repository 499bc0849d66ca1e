"""The pool: many programs in, as many outcomes out, in the same order.

Each program runs on every split, one fresh process a split, and ends at its first failing split. A program that was
run before on the same data, splits, seed and limits is not run again, also when it occurs twice in one batch.
"""

import hashlib
import queue
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from etpo_core.errors import UserError
from etpo_core.sandbox.outcome import Limits, Outcome, Status, Tier
from etpo_core.sandbox.scoring import BadTable, Split, area_under_curve, make_split, table_of
from etpo_core.sandbox.walls import names_of, probe, tier_of
from etpo_core.sandbox.worker import Ending, Worker, ZygoteLost

_REMEMBERED = 50_000  # outcomes, the latest used; about a kilobyte each


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
            workers: programs that run at a time; no more than the machine has cores makes sense.
            limits: of each fit; the defaults of `Limits` if None.
            allow_unsafe: run without a wall where the kernel gives none (tier D).
            tier: hold the programs in exactly so; None: by every wall that holds here.
            preload: modules that programs may import besides numpy, scipy, scikit-learn and the standard library.

        Raises:
            UserError: there is no such wall here, or none and `allow_unsafe` is False, or a worker does not start.
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
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._closed = False
        self._workers = []
        self._idle: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._executor = ThreadPoolExecutor(workers, "sandbox")
        try:
            for _ in range(workers):
                self._workers.append(Worker(self._walls))
            for worker in self._workers:
                self._check(worker)
            for worker in self._workers:
                worker.wait_ready()
        except ZygoteLost as error:
            self.close()
            raise UserError(str(error)) from None
        except BaseException:
            self.close()
            raise
        if self.tier is Tier.D:
            why = "asked for" if tier is Tier.D else report.layers[0].detail
            warnings.warn(f"programs run WITHOUT a sandbox (tier D): {why}", RuntimeWarning, stacklevel=2)
        for index in range(workers):
            self._idle.put(index)

    def _check(self, worker: Worker) -> None:
        """Has a new worker's walls tried.

        Raises:
            ZygoteLost: one does not hold.
        """
        if worker.wait_tried()[0] != self._walls.flags:
            worker.close()
            raise ZygoteLost(
                "the walls of a new worker do not hold as they did before; run `python -m etpo_core.sandbox doctor`"
            )

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

    def score(self, source: str, x: np.ndarray, y: np.ndarray, split_seeds: Sequence[int], seed: int = 0) -> Outcome:
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

    @contextmanager
    def ahead(
        self, x: np.ndarray, y: np.ndarray, split_seeds: Sequence[int], seed: int = 0
    ) -> Iterator[Callable[[str], None]]:
        """Starts programs ahead of `score_many`: yields a function that takes one, starts it and returns at once.

        `score_many`, called inside with the same data, finds them under way or done. Those that nobody waits for when
        the context is left are stopped.

        Raises:
            UserError: the table or the splits are unusable.
        """
        prepared, jobs = self._prepared(x, y, split_seeds, seed), []
        try:
            yield lambda source: jobs.extend(self._start([source], *prepared))
        finally:
            self._leave(jobs)

    def predicts_row_by_row(
        self, source: str, x: np.ndarray, y: np.ndarray, split_seeds: Sequence[int], seed: int = 0
    ) -> bool:
        """Whether what a program's model says of a row is the same whichever rows come with it.

        A model that learns from the rows it is to predict - it gets them all at once, without labels - is no fraud,
        but no classifier either. Each split is run twice, the second time with half of its validation rows; the
        probabilities of those must agree to 1e-6.

        Raises:
            UserError: the table or the splits are unusable, or the program does not score.
        """
        x, y = table_of(x, y)
        job = _Job("", source, [], int(seed))
        for split in (make_split(x, y, int(s)) for s in split_seeds):
            some = np.sort(split.order[: len(split.order) // 2])
            half = replace(split, x_test=split.x_test[some], y_test=split.y_test[some], order=np.arange(len(some)))
            tables = []
            for part in (split, half):
                try:
                    ending = self._run(job, _encoded(source), part)
                except _Abandoned:
                    raise UserError("the executor is closed; open a new SandboxPool") from None
                if ending.status is not Status.OK:
                    raise UserError(f"the program does not score ({ending.error_type}: {ending.message})")
                tables.append(_table_of(ending.table, part))
            if not np.allclose(tables[0][some], tables[1], rtol=0, atol=1e-6, equal_nan=True):
                return False
        return True

    def _submit(self, sources, x, y, split_seeds, seed) -> list[_Job]:
        if isinstance(sources, str):
            raise UserError("sources is one string; give a list of programs, or call score for one")
        return self._start(sources, *self._prepared(x, y, split_seeds, seed))

    def _prepared(self, x, y, split_seeds, seed) -> tuple:
        """What programs on the same data have in common: the splits, the seed, the beginning of the job's key."""
        x, y = table_of(x, y)
        seeds = [int(s) for s in split_seeds]
        if not seeds:
            raise UserError("split_seeds is empty; give one seed a split, e.g. range(5)")
        splits = [make_split(x, y, s) for s in seeds]
        # limits, modules and versions are the pool's own and the same for all that it remembers
        common = hashlib.sha256(x.tobytes() + y.tobytes())
        common.update(repr((x.shape, seeds, int(seed))).encode())
        return splits, int(seed), common

    def _start(self, sources: Sequence[str], splits: list[Split], seed: int, common) -> list[_Job]:
        jobs = []
        with self._lock:
            if self._closed:
                raise UserError("the executor is closed; open a new SandboxPool")
            for source in sources:
                digest = common.copy()
                digest.update(_encoded(source))
                key = digest.hexdigest()
                job = self._jobs.get(key)
                if job is None:
                    job = self._jobs[key] = _Job(key, source, splits, seed)
                    self._executor.submit(self._do, job)
                self._jobs.move_to_end(key)
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
        job.source, job.splits = "", []  # the outcome is kept, what it took need not be
        _settle(job, outcome)
        with self._lock:
            while len(self._jobs) > _REMEMBERED and next(iter(self._jobs.values())).future.done():
                self._jobs.popitem(last=False)

    def _score(self, job: _Job) -> Outcome:
        source = _encoded(job.source)
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
                    scores.append(area_under_curve(_table_of(ending.table, split), split.y_test, split.classes))
                except BadTable as error:
                    ending = replace(ending, status=Status.BAD_OUTPUT, error_type="ValueError", message=str(error))
                except Exception as error:  # of the metric: what it cannot digest is no usable table either
                    message = f"the probabilities cannot be scored ({type(error).__name__})"
                    ending = replace(ending, status=Status.BAD_OUTPUT, error_type="ValueError", message=message)
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


def _settle(job: _Job, outcome: Outcome | None = None, error: BaseException | None = None) -> None:
    """Wakes those who wait for a job; the first settlement counts."""
    try:
        if error is None:
            job.future.set_result(outcome)
        else:
            job.future.set_exception(error)
    except InvalidStateError:
        pass


def _encoded(source: str) -> bytes:
    return source.encode("utf-8", "surrogatepass")


def _table_of(raw: bytes, split: Split) -> np.ndarray:
    """A child's answer as float64 [validation rows, classes], the rows in the order of the split."""
    table = np.empty((len(split.y_test), len(split.classes)))
    table[split.order] = np.frombuffer(raw, "<f8").reshape(table.shape)
    return table
