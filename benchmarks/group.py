"""Writing the programs of five runs: in one pass for all of them, one run after another, and by transformers' generate.

Five agents with adapters of their own (an update old) share the frozen weights of a scale's model. Each writes 8
programs from the first state of a task, with guesses from its batches before. "together" is `base.lockstep`, as in
`pipeline.group`; "alone" is the same agents one after another; both write the same programs, which is checked.
"generate" is transformers' generate in bfloat16 with 40 rows and the frozen model, which has no adapters to apply; it
stops when all rows have ended. Ways take turns; the first turn warms up and is left out.

    OMP_NUM_THREADS=1 python -m benchmarks.group --csv benchmarks/tables/group.csv
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pipeline  # noqa: F401  sets how threads wait, which torch reads when it is loaded

# isort: split
import torch
from transformers import LogitsProcessorList

from benchmarks.executor import save, show
from benchmarks.rollout import sampled_by_generate
from etpo_core.errors import one_line_errors
from etpo_paper.base.lockstep import Lockstep
from etpo_paper.base.settings import load_settings
from etpo_paper.environment.prompts import task_prompt
from etpo_paper.model import models
from etpo_paper.model.agent import Agent
from etpo_paper.model.loading import load_model
from etpo_paper.model.trunk import Part, Passed, Trunk
from etpo_paper.training.agents import Common
from etpo_paper.training.run import Run
from pipeline import data
from pipeline.group import passes

WAYS = ("together", "alone", "generate")


def alone(request: tuple[Trunk, Part]) -> Passed:
    """A pass for one run."""
    trunk, part = request
    return trunk.forward([part])[0]


def measure(scale: str, task_name: str, runs: int, rows: int, turns: int) -> list[dict[str, Any]]:
    """The rows of the table, one for each turn of each way."""
    settings, task, device = load_settings(scale, "etpo"), data.table(task_name), torch.device("cpu")
    training = settings.training
    models.model(settings.model)
    asks: list[Callable[..., Any]] = [alone] * runs

    def asking(number: int) -> Callable[..., Any]:
        return lambda request: asks[number](request)

    with Common() as common:
        precision = common.choice(training.precision).precision
        agents = [
            common.agent(Run(scale, "etpo", task_name, seed), settings, device, True, precision, asking(seed))
            for seed in range(runs)
        ]
    for agent in agents:
        with torch.no_grad():
            for parameter in agent.networks.parameters("policy"):
                parameter.add_(2e-3 * torch.randn(parameter.shape).sign())
        agent.refresh()
    prompt = task_prompt(task.spec.description, features=task.x.shape[1], rows=task.x.shape[0] // 2)
    model, _, card = load_model(settings.model, torch.float32, device)
    theirs, ids = copy.deepcopy(model).to(torch.bfloat16), [agents[0].encode(prompt)] * (runs * rows)
    guessed: dict[str, list[Any]] = {way: [agent.drafts.get_state() for agent in agents] for way in WAYS}

    def act(agent: Agent, seed: int) -> list[tuple[int, ...]]:
        generator = torch.Generator().manual_seed(seed)
        actions = agent.act([prompt] * rows, max_new_tokens=training.max_new_tokens, generator=generator)
        agent.networks.forget()
        return [action.tokens for action in actions]

    def together(turn: int) -> list[list[tuple[int, ...]]]:
        written: list[list[tuple[int, ...]]] = [[] for _ in agents]

        def job(number: int) -> Callable[..., None]:
            def run(ask: Callable[..., Any]) -> None:
                asks[number] = ask
                written[number] = act(agents[number], 100 * turn + number)

            return run

        errors = Lockstep(passes).run([job(number) for number in range(runs)])
        asks[:] = [alone] * runs
        assert not any(errors), errors
        return written

    table, last = [], None
    for turn in range(turns + 1):
        for way in WAYS:
            for agent, state in zip(agents, guessed[way], strict=True):
                agent.drafts.set_state(state)
            wall, cpu = time.perf_counter(), time.process_time()
            if way == "generate":
                torch.manual_seed(turn)
                limits = card["eos_token_id"], training.max_new_tokens
                tokens = sampled_by_generate(theirs, ids, *limits, LogitsProcessorList())
            else:
                found = together(turn) if way == "together" else [act(a, 100 * turn + i) for i, a in enumerate(agents)]
                assert way == "together" or found == last, "a run wrote something else in company"
                last, tokens = found, sum(len(action) for of_run in found for action in of_run)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            guessed[way] = [agent.drafts.get_state() for agent in agents]
            if turn:
                row = {"turn": turn, "way": way, "rows": runs * rows, "tokens": tokens}
                table.append(row | {"wall_s": f"{wall:.2f}", "cpu_s": f"{cpu:.2f}", "tokens_s": f"{tokens / wall:.0f}"})
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table and saves it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="study", help="scale whose settings and model are taken")
    parser.add_argument("--task", default="kidney-stone", help="data set whose first state is answered")
    parser.add_argument("--runs", type=int, default=5, help="runs")
    parser.add_argument("--rows", type=int, default=8, help="programs that each writes at a time")
    parser.add_argument("--turns", type=int, default=4, help="batches to time")
    parser.add_argument("--csv", type=Path, help="file to save the table to")
    chosen = parser.parse_args(arguments)
    with one_line_errors():
        table = measure(chosen.scale, chosen.task, chosen.runs, chosen.rows, chosen.turns)
        show(table)
        rate = {w: statistics.median(float(r["tokens_s"]) for r in table if r["way"] == w) for w in WAYS}
        for way in WAYS[1:]:
            print(f"together writes {rate['together'] / rate[way]:.1f} times as many tokens a second as {way}")
        if chosen.csv:
            save(table, chosen.csv)


if __name__ == "__main__":
    main()
