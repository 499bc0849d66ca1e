"""Groups of runs as tasks on Ray, for a matrix on several machines.

Each machine has a checkout of the same commit with its environment, and has joined a Ray cluster. A task makes one
group of runs in a folder of its own. On the machine of the command a keeper holds the lock of each run that is being
made, and puts its files in place: after each update the task waits until it has done so, and only then is the update
counted as finished. A task whose machine is lost is started again on another one, from what the keeper has.
"""

import io
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import torch

from etpo_core.errors import UserError
from etpo_paper.base import paths, provenance
from etpo_paper.base.lock import HELD, HeldError, sole_maker
from etpo_paper.training import live
from etpo_paper.training.run import Run
from pipeline import group

Files = Mapping[str, np.ndarray]  # the bytes of each; Ray copies arrays half as often as bytes
RETRIES = 10  # how many lost machines a group survives


class Keeper:
    """Keeps the results on the machine of the command, in a process of its own: a Ray actor.

    Args:
        results: the folder of the raw results.
    """

    def __init__(self, results: Path):
        paths.RESULTS = results
        self._locks: dict[Run, ExitStack] = {}
        self._attempts: Counter[Run] = Counter()

    def begin(self, run: Run) -> tuple[int, Files, list[str]] | None:
        """Gives a run to a task, which gets the number of its attempt, the files and the folders kept aside.

        If another process holds the run, it is not given, and the answer is None.
        """
        if run not in self._locks:
            lock = ExitStack()
            try:
                lock.enter_context(sole_maker(run.folder))
            except HeldError:
                return None
            self._locks[run] = lock
        self._attempts[run] += 1
        return self._attempts[run], contents(run.folder), aside(run)

    def keep(self, run: Run, attempt: int, files: Files, names: Sequence[str]) -> None:
        """Puts the files of a run in place; what the task has kept aside meanwhile is kept aside here as well.

        Raises:
            UserError: the run was given to another task since; a machine that was given up may still be at work.
        """
        if run not in self._locks or attempt != self._attempts[run]:
            raise UserError(f"{run.folder}: attempt {attempt} is over")
        for name in set(names) - set(aside(run)):
            run.folder.rename(run.folder.with_name(name))
        place(run, files)

    def end(self, runs: Sequence[Run] | None = None) -> None:
        """Takes runs back from their task; by default all."""
        for run in list(self._locks if runs is None else runs):
            self._locks.pop(run).close()


def contents(folder: Path) -> Files:
    """The files below a folder by their names; the checkpoint is read before the files whose lengths it counts on."""
    found = sorted(folder.rglob("*"), key=lambda path: path.suffix != ".pt")
    return {str(path.relative_to(folder)): np.fromfile(path, np.uint8) for path in found if path.is_file()}


def place(run: Run, files: Files) -> None:
    """Makes a run's folder hold these files and no others; the run could be gone on with at any moment in between.

    Each file appears whole, the checkpoint after the files that it counts on, and the card of a finished run last.
    """
    last = [str(path.relative_to(run.folder)) for path in (run.begun, run.state, run.card)]
    if last[-1] not in files:
        run.card.unlink(missing_ok=True)
    for name in sorted(files, key=lambda name: last.index(name) if name in last else -1):
        path = run.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_bytes(files[name])
        os.replace(part, path)
    for path in run.folder.rglob("*"):
        if path.is_file() and str(path.relative_to(run.folder)) not in files:
            path.unlink()


def aside(run: Run) -> list[str]:
    """The names of the folders that hold former rows of a run, see `etpo_paper.training.begin`."""
    return [path.name for path in run.folder.parent.glob(f"{run.folder.name}.before-*")]


def make(
    scale: str, runs: Sequence[Run], until: float, threads: int, keeper: Any, results: Path, commit: str | None
) -> CompletedProcess[str] | None:
    """The task: makes a group of runs in a process that does nothing else, on whichever machine has room.

    Args:
        scale: of the runs.
        runs: the group.
        until: the time after which it is not begun, in seconds since 1970.
        threads: of the process.
        keeper: the handle of the `Keeper`.
        results: the keeper's folder, for messages.
        commit: of the checkout that the command was given in.

    Returns:
        What `python -m pipeline.group` ends with; None if it was too late to begin.
    """
    import ray

    if time.time() > until:
        return None
    if (here := provenance.commit()) != commit:
        said = f"{socket.gethostname()} is at commit {here}, the machine of this command at {commit}"
        return CompletedProcess([], 2, "", f"error: {said}; check out the same one")
    torch.set_num_threads(threads)
    attempts: dict[Run, int] = {}
    cards: dict[Run, bytes] = {}  # as the keeper has them

    def card(run: Run) -> bytes:
        return run.card.read_bytes() if run.card.exists() else b""

    def hand_over(*updated: Run) -> None:
        finished = [run for run in attempts if card(run) not in (b"", cards[run])]
        for run in dict.fromkeys([*updated, *finished]):
            ray.get(keeper.keep.remote(run, attempts[run], contents(run.folder), aside(run)))
            cards[run] = card(run)

    out, errors, status = io.StringIO(), io.StringIO(), 0
    with tempfile.TemporaryDirectory(prefix="etpo-group-") as folder:
        paths.RESULTS = Path(folder)
        for run in runs:
            if begun := ray.get(keeper.begin.remote(run)):
                attempts[run], files, names = begun
                place(run, files)
                cards[run] = card(run)
                for name in names:
                    run.folder.with_name(name).mkdir(parents=True)
        live.listeners.append(hand_over)
        if len(attempts) < len(runs):
            status = HELD
        if attempts:
            try:
                with redirect_stdout(out), redirect_stderr(errors):
                    group.main(["--scale", scale, *(f"{run.method}/{run.task}/{run.seed}" for run in attempts)])
            except SystemExit as ended:  # which Ray would take for a lost machine
                status = ended.code if isinstance(ended.code, int) else 1
        hand_over()
        ray.get(keeper.end.remote(list(attempts)))
    return CompletedProcess([], status, *(text.getvalue().replace(folder, str(results)) for text in (out, errors)))


@contextmanager
def tasks(address: str, threads: int) -> Iterator[tuple[int, Callable[[str, Sequence[Run], float], Future]]]:
    """Joins or starts a cluster.

    Args:
        address: "local" for one on this machine alone, "auto" for the one that this machine has joined, or its
            HOST:PORT.
        threads: of each group, which asks Ray for as many processors.

    Yields:
        How many groups can be made at a time, and a function that hands out a group: of scale, runs and the latest time
        to begin it makes the future of what `make` returns.

    Raises:
        UserError: there is no such cluster, or it ceased to work.
    """
    ray = _connected(address)
    try:
        machines = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        slots = sum(int(processors // threads) for processors in machines)
        if not slots:
            raise UserError(f"no machine of the cluster has the {threads} processors of a group; raise --workers")
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        here = affinity(ray.get_runtime_context().get_node_id(), soft=False)
        keeper = ray.remote(num_cpus=0, scheduling_strategy=here)(Keeper).remote(paths.RESULTS)
        # Each group has a new process, because `make` changes where its process has the results.
        task = ray.remote(num_cpus=threads, max_calls=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(make)
        more = (threads, keeper, paths.RESULTS, provenance.commit())
        try:
            yield slots, lambda *group: task.remote(*group, *more).future()
        finally:
            with suppress(ray.exceptions.RayError):
                ray.get(keeper.end.remote(), timeout=10)
    except ray.exceptions.RayTaskError:
        raise  # a mistake of ours
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray: {_first_line(error)}; the same command goes on from what was finished") from None
    finally:
        ray.shutdown()


def _connected(address: str) -> Any:
    """The module `ray`, connected."""
    host, _, port = address.rpartition(":")
    if address not in ("auto", "local") and not (host and port.isdigit()):
        raise UserError(f"--address: got {address}, expected auto, local or HOST:PORT")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 leaves the processor to whatever else runs
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise UserError("--address needs Ray, which is not installed; run: pip install '.[cluster]'") from None
    try:
        if host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        alone = {"num_cpus": os.cpu_count(), "include_dashboard": False} if address == "local" else {}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **alone)
    except Exception as error:  # Ray has no type for this
        raise UserError(f"--address {address}: there is no Ray cluster to be used ({_first_line(error)})") from None
    return ray


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
