"""The cost of a whole run: the seconds of an environment step, and what they are spent on.

By default the runs are those of etpo and ppo_kl on the task diabetes with the settings and the model of the scale
laptop, whose programs are scored on five splits. Each run makes a number of environment steps and writes into a
temporary folder. Its time is measured by part:

* "rollout" is `Agent.act`;
* "execution" is `SandboxPool.score_many`, the time spent waiting for scores (programs already run while others are
  being written);
* "update" is the method's update, and handing its weights to the decoder;
* "rest" is everything else: prompts, files and checkpoints.

"start_s" is the time before the first step, which loads the model and starts the executor. "steps_500_s" is the start
and 500 times the seconds of a step; it holds as long as programs are as long, and as often run, as in the steps that
were measured. "wall_s" and "cpu_s" are totals over all steps; the CPU time is that of this process and the executor's.

    python -m benchmarks.end_to_end --steps 64 --csv end_to_end.csv
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline  # noqa: F401  sets how threads wait, which torch reads when it is loaded

# isort: split
import torch

from benchmarks.executor import processes_cpu_s, save, show
from etpo_core.errors import one_line_errors
from etpo_core.sandbox import SandboxPool
from etpo_paper.base.machine import choose
from etpo_paper.base.settings import load_settings
from etpo_paper.environment.executor import open_executor
from etpo_paper.environment.scikit_learn import episodes
from etpo_paper.methods import build_method
from etpo_paper.model import models
from etpo_paper.training.agents import load_agent
from etpo_paper.training.loop import train
from etpo_paper.training.run import Run
from pipeline import data

METHODS, PARTS = ("etpo", "ppo_kl"), ("rollout", "execution", "update", "rest")


@dataclass(frozen=True)
class RunElsewhere(Run):
    """A run that does not write into `results/`.

    Attributes:
        elsewhere: the folder that it writes into.
    """

    elsewhere: Path

    @property
    def folder(self) -> Path:
        """See `Run.folder`."""
        return self.elsewhere


class Clock:
    """Wall and CPU seconds by part of a run.

    Args:
        executor: the pool whose CPU time counts as well.
    """

    def __init__(self, executor: SandboxPool):
        self.executor = executor
        self.seconds: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def now(self) -> tuple[float, float]:
        """Wall and CPU seconds so far."""
        return time.perf_counter(), processes_cpu_s(self.executor)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, except that the time of each call is added to a part."""

        def call(*arguments: Any, **options: Any) -> Any:
            begin = self.now()
            try:
                return function(*arguments, **options)
            finally:
                for i, (a, b) in enumerate(zip(begin, self.now(), strict=True)):
                    self.seconds[part][i] += b - a

        return call


def measure(method_name: str, scale: str, task_name: str, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Makes a run of one method in a folder; returns the method's rows of the table."""
    started = time.perf_counter()
    settings = load_settings(scale, method_name).replace(training={"env_steps": steps})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = RunElsewhere(scale, method_name, task_name, 0, folder)
    method, task = build_method(method_name, settings.methods[method_name].plain()), data.table(task_name)
    precision = settings.training.precision
    if device.type == "cpu":
        precision = choose(precision).precision
    agent = load_agent(run, settings, device, method.trains, precision)
    with open_executor(settings.sandbox) as executor:
        clock = Clock(executor)
        agent.act = clock.timed("rollout", agent.act)
        executor.score_many = clock.timed("execution", executor.score_many)
        method.update, agent.refresh = (clock.timed("update", f) for f in (method.update, agent.refresh))
        start, begin = time.perf_counter() - started, clock.now()
        networks = agent.networks if method.trains else None
        acted_in = episodes(task, executor, settings.environment, settings.training.environments, method.reflect)
        rows = list(train(run, agent, networks, method, acted_in, settings, "benchmark"))
        total = [b - a for a, b in zip(begin, clock.now(), strict=True)]
        tier = str(executor.tier)
    known = [sum(s[i] for s in clock.seconds.values()) for i in (0, 1)]
    clock.seconds["rest"] = [a - b for a, b in zip(total, known, strict=True)]
    done, tokens = rows[-1]["steps"], sum(row["tokens"] for row in rows)
    runs = sum(row["share_runs"] for row in rows) / len(rows)
    return [
        {
            "method": method_name,
            "part": part,
            "wall_s": f"{wall:.2f}",
            "cpu_s": f"{cpu:.2f}",
            "share": f"{wall / total[0]:.3f}",
            "wall_s_step": f"{wall / done:.3f}",
            "cpu_s_step": f"{cpu / done:.3f}",
            "steps_500_s": f"{(start if part == 'total' else 0) + 500 * wall / done:.1f}",
            "tokens_s": f"{tokens / wall:.0f}" if part in ("rollout", "update", "total") else "",
            "start_s": f"{start:.1f}" if part == "total" else "",
            "tokens_step": f"{tokens / done:.1f}" if part == "total" else "",
            "share_runs": f"{runs:.3f}" if part == "total" else "",
            "tier": tier if part in ("execution", "total") else "",
            "decoder": agent.decoder_name if part in ("rollout", "total") else "",
        }
        for part, (wall, cpu) in [*((p, clock.seconds[p]) for p in PARTS), ("total", total)]
    ]


def main() -> None:
    """Measures, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=64, help="environment steps of each run")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods of the scale")
    parser.add_argument("--task", default="diabetes", help="data set")
    parser.add_argument("--scale", default="laptop", help="scale whose settings and model are taken")
    parser.add_argument("--csv", type=Path, help="file to save the table to")
    arguments = parser.parse_args()
    with one_line_errors():
        models.model(load_settings(arguments.scale).model)
        rows = []
        for method in arguments.methods:
            with tempfile.TemporaryDirectory() as folder:
                rows += measure(method, arguments.scale, arguments.task, arguments.steps, Path(folder))
        print(f"{torch.get_num_threads()} threads; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}\n")
        show(rows)
        if arguments.csv:
            save(rows, arguments.csv)


if __name__ == "__main__":
    main()
