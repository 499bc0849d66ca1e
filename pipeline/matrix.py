"""Runs what is missing of a scale's matrix of methods, tasks and seeds, several runs at a time.

    python -m pipeline.matrix --scale study --workers 2

`dvc repro` does one run after another and gives each the whole machine. Most of a run does not use two cores well, so
two runs side by side, on one core each, finish earlier than one after the other. Every run is the command of the stage
`train` in a process of its own. Finished runs are kept; a scale must therefore say `keep_finished`, or `dvc repro`
would make them again. Runs that were stopped in the middle go on the next time. Several machines that share the results
folder can each run this command: a run that another process holds is passed over and, where it is still not finished at
the end, named in the last line, with exit status 75. All runs of a seed are made before
those of the next seed, so that an incomplete matrix already compares all methods.
"""

import csv
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm import tqdm

from etpo_core.errors import UserError
from etpo_paper.base.lock import HELD, HeldError, holder
from etpo_paper.base.settings import load_settings
from etpo_paper.report.names import counted
from etpo_paper.training.run import Run
from pipeline import entry
from pipeline.resolve import resolve
from pipeline.train import KEPT, finished


def complete(scale: str, workers: int, minutes: float) -> list[Run]:
    """Makes the runs that are missing, as many as can begin within some time.

    Args:
        scale: whose matrix it is.
        workers: how many runs are made at a time.
        minutes: after this time no further run is begun.

    Returns:
        The runs that were made.

    Raises:
        UserError: a mistake in the settings, or a run that failed; the other runs are finished before it is raised.
        HeldError: other processes hold runs that are still not finished; the other runs are finished before.
    """
    if workers < 1:
        raise UserError(f"--workers: got {workers}, expected at least 1")
    settings = resolve(scale)
    if not settings.runs.keep_finished:
        raise UserError(
            f"scales.{scale}.runs.keep_finished is false, so `dvc repro` would make each of these runs again; "
            f"set it to true in {settings.file}"
        )
    matrix = itertools.product(settings.seeds, settings.tasks, settings.method_names)
    own = {m: load_settings(scale, m) for m in settings.method_names}
    missing = [run for s, t, m in matrix if not finished(run := Run(scale, m, t, s), own[m])]
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    until = time.monotonic() + 60 * minutes

    held: dict[Run, str] = {}

    def make(run: Run) -> Run | None:
        if time.monotonic() > until or finished(run, own[run.method]):  # as another machine may have done
            return None
        arguments = {"scale": run.scale, "method": run.method, "task": run.task, "seed": run.seed}
        command = [sys.executable, "-m", "pipeline.train"]
        command += [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == HELD:
            held[run] = holder(run.folder)
            return None
        if done.returncode:
            raise UserError(f"{run.folder}: {(done.stderr.strip() or 'failed without a message').splitlines()[-1]}")
        said = [line for line in done.stdout.splitlines() if line.startswith(f"{run.folder}: ")]
        if any(line.endswith(KEPT) for line in said):
            return None
        for line in said:
            tqdm.write(line)
        return run

    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(missing), unit="run", desc=scale) as bar:
        try:
            futures = [pool.submit(make, run) for run in missing]
            for future in as_completed(futures):
                if not future.exception() and (run := future.result()):
                    bar.update()
                    bar.set_postfix_str(f"{run.method} {run.task} {run.seed}: {_last(run)}")
        except KeyboardInterrupt:  # it stops the runs in progress as well; no further run is begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        failures = [e for future in futures if (e := future.exception())]
    if failures:
        raise failures[0]
    made = [run for future in futures if (run := future.result())]
    held = {run: who for run, who in held.items() if not finished(run, own[run.method])}
    if held:
        raise HeldError(f"{counted(len(made), 'run')} done; {_by_holder(held)}")
    return made


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
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after this time")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        try:
            done = complete(arguments.scale, arguments.workers, arguments.minutes)
        except HeldError as error:
            print(f"{arguments.scale}: {error}")
            sys.exit(HELD)
        print(f"{arguments.scale}: {counted(len(done), 'run')} done")


if __name__ == "__main__":
    main()
