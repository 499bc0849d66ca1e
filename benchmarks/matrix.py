"""What Ray costs on one machine: the same runs by `pipeline.matrix` without Ray and with `--address local`.

Each command makes the runs of two methods, one group each, in a copy of the project without results, in turn. "total_s"
is the time of the command. "updates_s" are the seconds in `clock.csv` of the run that took longest. The difference is
the start of processes and models, of Ray's cluster, and with Ray the handing over of files after each update.

    python -m benchmarks.matrix --scale study --steps 96 --csv benchmarks/tables/matrix.csv
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.executor import save, show
from etpo_core.errors import one_line_errors
from etpo_paper.base import paths

WAYS = {"processes": [], "Ray": ["--address", "local"]}


def project(folder: Path, scale: str, task: str, steps: int) -> None:
    """Makes a copy of the project without results, whose scale has two runs: of etpo and ppo_kl."""
    for entry in paths.ROOT.iterdir():
        if entry.name not in ("results", "params.yaml", ".git"):
            (folder / entry.name).symlink_to(entry)
    params = yaml.safe_load(paths.PARAMS.read_text())
    section = params["scales"][scale]
    section |= {"methods": ["etpo", "ppo_kl"], "tasks": [task], "seeds": [0], "runs": {"keep_finished": True}}
    section["training"]["env_steps"] = steps
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def measure(way: str, scale: str, task: str, steps: int) -> dict[str, Any]:
    """Makes the runs in one way; returns a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        project(Path(folder), scale, task, steps)
        command = [sys.executable, "-m", "pipeline.matrix", "--scale", scale, "--workers", "2", "--group", "1"]
        environment = {**os.environ, "ETPO_ROOT": folder, "PYTHONPATH": os.pathsep.join(sys.path)}
        begin = time.time()
        subprocess.run([*command, *WAYS[way]], env=environment, check=True, stdout=subprocess.DEVNULL)
        total = time.time() - begin
        clocks = [pd.read_csv(path)["seconds"] for path in Path(folder, "results").rglob("clock.csv")]
        return {
            "way": way,
            "updates": sum(map(len, clocks)),
            "total_s": f"{total:.1f}",
            "updates_s": f"{max(clock.sum() for clock in clocks):.1f}",
        }


def main() -> None:
    """Measures, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="study", help="scale whose settings and model are taken")
    parser.add_argument("--task", default="kidney-stone", help="data set")
    parser.add_argument("--steps", type=int, default=96, help="environment steps of each run")
    parser.add_argument("--repeats", type=int, default=1, help="how often each way is measured")
    parser.add_argument("--csv", type=Path, help="file to save the table to")
    arguments = parser.parse_args()
    with one_line_errors():
        rows = [
            measure(way, arguments.scale, arguments.task, arguments.steps)
            for _ in range(arguments.repeats)
            for way in WAYS
        ]
        show(rows)
        if arguments.csv:
            save(rows, arguments.csv)


if __name__ == "__main__":
    main()
