"""Runs what is missing of a scale's matrix of methods, tasks and seeds, several groups of runs at a time.

    python -m pipeline.matrix --scale study --workers 2

`dvc repro` does one run after another and gives each the whole machine. Runs that share a process share much of its
work (`pipeline.group`), and two such groups side by side, on half of the cores each, finish earlier than one after the
other. Finished runs are kept; a scale must therefore say `keep_finished`, or `dvc repro` would make them again. Runs
that were stopped in the middle go on the next time. All runs of a seed are made before those of the next seed, so that
an incomplete matrix already compares all methods.

With `--address` the groups are tasks on Ray, on as many machines as have joined its cluster (`pipeline.cluster`).
Several machines that share the results folder can also each run this command: a run that another process holds is
passed over and, where it is still not finished at the end, named in the last line, with exit status 75.
"""

import csv
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

from tqdm import tqdm

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.lock import HELD, HeldError, holder
from etpo_paper.base.settings import load_settings
from etpo_paper.report.names import counted
from etpo_paper.training.run import Run
from pipeline import cluster, entry
from pipeline.resolve import resolve
from pipeline.train import KEPT, finished

LOOK = 1.0  # seconds between two looks at which runs are finished, for the progress bar


def complete(scale: str, workers: int, minutes: float, group: int = 5, address: str | None = None) -> list[Run]:
    """Makes the runs that are missing, as many as can begin within some time.

    Args:
        scale: whose matrix it is.
        workers: how many groups are made at a time on a machine like this one; each gets its share of the cores.
        minutes: after this time no further group is begun.
        group: how many runs share a process; fewer where workers would have nothing to do.
        address: of the Ray cluster, see `cluster.tasks`; None makes the runs in processes of this machine.

    Returns:
        The runs that were made.

    Raises:
        UserError: a mistake in the settings, or a run that failed; the other runs are finished before it is raised.
        HeldError: other processes hold runs that are still not finished; the other runs are finished before.
    """
    for option, value in (("--workers", workers), ("--group", group)):
        if value < 1:
            raise UserError(f"{option}: got {value}, expected at least 1")
    settings = resolve(scale)
    if not settings.runs.keep_finished:
        raise UserError(
            f"scales.{scale}.runs.keep_finished is false, so `dvc repro` would make each of these runs again; "
            f"set it to true in {settings.file}"
        )
    own = {m: load_settings(scale, m) for m in settings.method_names}

    def is_done(run: Run) -> bool:
        return run.card.exists() and finished(run, own[run.method])

    matrix = itertools.product(settings.seeds, settings.tasks, settings.method_names)
    missing = [run for s, t, m in matrix if not is_done(run := Run(scale, m, t, s))]
    if not missing:
        return []
    until = time.time() + 60 * minutes
    threads = max(1, (os.cpu_count() or 1) // workers)
    machines = cluster.tasks(address, threads) if address else processes(workers, threads)
    made: list[Run] = []
    held: dict[Run, str] = {}
    failures: list[BaseException] = []
    with machines as (slots, submit), tqdm(total=len(missing), unit="run", desc=scale) as bar:
        size = min(group, -(-len(missing) // slots))
        parts = [missing[i : i + size] for i in range(0, len(missing), size)]
        futures = {submit(scale, part, until): part for part in parts}
        shown: set[Run] = set()
        while futures:
            ended, _ = wait(futures, timeout=LOOK, return_when=FIRST_COMPLETED)
            for run in missing:
                if run not in shown and is_done(run):
                    shown.add(run)
                    bar.update()
                    bar.set_postfix_str(f"{run.method} {run.task} {run.seed}: {_last(run)}")
            for future in ended:
                part = futures.pop(future)
                if error := future.exception():
                    failures.append(error)
                elif done := future.result():
                    lines = [text for text in done.stdout.splitlines() if text.startswith(str(paths.RESULTS))]
                    kept = {line.removesuffix(f": {KEPT}") for line in lines}
                    tqdm.write("".join(f"{line}\n" for line in lines if not line.endswith(KEPT)), end="")
                    made += [run for run in part if is_done(run) and str(run.folder) not in kept]
                    if done.returncode == HELD:
                        held |= {run: holder(run.folder) for run in part if not is_done(run)}
                    elif done.returncode:
                        failures.append(_failure(part, done))
        if failures:
            raise failures[0]
    held = {run: who for run, who in held.items() if not is_done(run)}
    if held:
        raise HeldError(f"{counted(len(made), 'run')} done; {_by_holder(held)}")
    return made


@contextmanager
def processes(workers: int, threads: int) -> Iterator[tuple[int, Callable[[str, Sequence[Run], float], Future]]]:
    """Makes groups in processes of this machine; yields what `cluster.tasks` yields."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def make(scale: str, runs: Sequence[Run], until: float) -> subprocess.CompletedProcess[str] | None:
        if time.time() > until:
            return None
        command = [sys.executable, "-m", "pipeline.group", "--scale", scale]
        command += [f"{run.method}/{run.task}/{run.seed}" for run in runs]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    with ThreadPoolExecutor(workers) as pool:
        try:
            yield workers, lambda *group: pool.submit(make, *group)
        except KeyboardInterrupt:  # it stops the runs in progress as well; no further group is begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _failure(part: Sequence[Run], done: subprocess.CompletedProcess[str]) -> UserError:
    """What a group ended with: its own line about a mistake, or the last line of something else."""
    last = (done.stderr.strip() or f"no message, status {done.returncode}").splitlines()[-1]
    return UserError(
        last.removeprefix("error: ") if last.startswith("error: ") else f"{part[0].folder}: failed: {last}"
    )


def _by_holder(held: Mapping[Run, str]) -> str:
    """Which process holds which runs."""
    parts = []
    for who in sorted(set(held.values())):
        folders = [str(run.folder) for run in held if held[run] == who]
        is_held = f"{counted(len(folders), 'run')} {'is' if len(folders) == 1 else 'are'} held by another process"
        parts.append(f"{is_held} ({who}): {', '.join(folders)}")
    return "; ".join(parts)


def _last(run: Run) -> str:
    """How a run ended, for the progress bar."""
    with (run.folder / "steps.csv").open() as file:
        rewards = [float(row["reward"]) for row in csv.DictReader(file)]
    last = rewards[-max(1, len(rewards) // 5) :]
    return f"reward {sum(last) / len(last):.3f} over the last fifth" if rewards else "not run"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the script from its command line."""
    parser = entry.parser(__doc__, scale="study")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="groups at a time on a machine")
    parser.add_argument("--group", type=int, default=5, help="runs that share a process (default: 5)")
    parser.add_argument("--address", help="makes them on the Ray cluster: auto, HOST:PORT, or local for a new one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no group after this time")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        try:
            done = complete(**vars(arguments))
        except HeldError as error:
            print(f"{arguments.scale}: {error}")
            sys.exit(HELD)
        print(f"{arguments.scale}: {counted(len(done), 'run')} done")


if __name__ == "__main__":
    main()
