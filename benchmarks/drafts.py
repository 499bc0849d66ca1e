"""What guessing tokens saves: passes of the model for each action, and the time of a rollout with and without guesses.

There are two tables. "replay" needs no model. It reads the programs that committed runs wrote (`samples.jsonl`) and
counts how many passes the decoder would have made with guesses from the programs before. "tokens_a_pass" are the tokens
kept for each pass, and "fed_a_token" the tokens computed for each token kept, by quarters of a run. The files hold 4
programs of each batch of 16, so fewer programs of the same policy are remembered here than in a run. "time" lets the
untrained model of a scale write batches. Each is written twice from the same state of the generator: with one token a
pass, and with guesses from the batches before. "cpu_s" is the CPU time of this process, the figure that other load on
the machine disturbs least. `--csv FILE` saves "time", and "replay" as FILE_replay.

`--policy RUN` measures instead the policy that a finished run ended with; a run of Reflection gives the untrained
model, with which all runs begin. The policy writes 16 programs, each until its own end token, four of them in a state
that shows a failed program of the run. Our decoder, with and without guesses, and transformers' generate take turns at
sampling from the same weights in bfloat16. They write different programs, so "useful_tokens_s" is what can be compared:
the tokens up to each end token, divided by the wall-clock time.

    OMP_NUM_THREADS=1 python -m benchmarks.drafts --csv drafts.csv
    python -m benchmarks.drafts --policy results/study/etpo/kidney-stone/seed2 --csv drafts_policy.csv
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pipeline  # noqa: F401  sets how threads wait, which torch reads when it is loaded

# isort: split
import torch
from peft import PeftModel
from transformers import LogitsProcessorList

from benchmarks.executor import save, show
from benchmarks.rollout import sampled_by_generate
from etpo_core.errors import UserError, one_line_errors
from etpo_paper.base.machine import choose
from etpo_paper.base.settings import load_settings
from etpo_paper.data.tasks import Task
from etpo_paper.environment.prompts import Prompt, reflection_prompt, task_prompt
from etpo_paper.methods import build_method
from etpo_paper.model import models
from etpo_paper.model.agent import Agent
from etpo_paper.model.decoder import LlamaDecoder
from etpo_paper.model.drafts import Drafts
from etpo_paper.model.loading import load_model
from etpo_paper.report import results
from etpo_paper.training.agents import load_agent
from etpo_paper.training.run import Run
from pipeline import data

METHODS = ("ppo_kl", "etpo")  # programs of a model that does not learn are kept without their tokens


class NoGuesses(Drafts):
    """Guesses nothing, so that the decoder writes one token a pass."""

    def observe(self, actions: Iterable[Sequence[int]]) -> None:
        """Remembers nothing."""

    def guess(self, written: Sequence[int], most: int) -> list[int]:
        """No token."""
        return []


def passes(drafts: Drafts, action: Sequence[Any]) -> tuple[int, int]:
    """How many passes write an action, and how many tokens they compute."""
    written, count, fed = 0, 0, 0
    while written < len(action):
        guess = drafts.guess(action[:written], len(action) - written - 1)
        right = next((i for i, token in enumerate(guess) if token != action[written + i]), len(guess))
        written, count, fed = written + right + 1, count + 1, fed + 1 + len(guess)
    return count, fed


def replay(scale: str) -> list[dict[str, Any]]:
    """The table "replay": tokens a pass by method and quarter, over all runs of a scale."""
    samples = results.load_samples(scale)
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        of_method = samples[(samples["method"] == method) & samples["pieces"].notna()]
        quarters = [[0, 0, 0] for _ in range(4)]
        for _, run in of_method.groupby(["task", "seed"]):
            drafts, last = Drafts(), run["update"].max() + 1
            for update, batch in run.groupby("update"):
                actions = [tuple(pieces) for pieces in batch["pieces"]]
                for action in actions:
                    count, fed = passes(drafts, action)
                    counts = quarters[int(4 * update / last)]
                    for i, number in enumerate((len(action), count, fed)):
                        counts[i] += number
                drafts.observe(actions)
        rows += [
            {
                "method": method,
                "quarter": quarter,
                "tokens": tokens,
                "tokens_a_pass": round(tokens / count, 2),
                "fed_a_token": round(fed / tokens, 2),
            }
            for quarter, (tokens, count, fed) in enumerate(quarters, start=1)
            if count
        ]
    return rows


def timed(scale: str, rounds: int) -> Iterator[dict[str, Any]]:
    """The table "time": rollouts of the untrained model, each with and without guesses."""
    settings, device = load_settings(scale), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, task = settings.training, data.table(settings.tasks[0])
    precision = choose(training.precision).precision if device.type == "cpu" else training.precision
    agent = load_agent(Run(scale, "reflection", settings.tasks[0], 0), settings, device, False, precision)
    agent.refresh()
    if agent.decoder_name != LlamaDecoder.__name__:
        raise UserError(
            f"models/{settings.model} needs {agent.decoder_name}, which takes no guesses; choose another --scale"
        )
    prompt = task_prompt(task.spec.description, features=task.x.shape[1], rows=task.x.shape[0] // 2)
    generator = torch.Generator()

    def write(seed: int) -> tuple[float, float, int, int]:
        generator.manual_seed(seed)
        with patch.object(LlamaDecoder, "step", autospec=True, side_effect=LlamaDecoder.step) as step:
            wall, cpu = time.perf_counter(), time.process_time()
            limit = training.max_new_tokens
            actions = agent.act([prompt] * training.environments, max_new_tokens=limit, generator=generator)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - wall, time.process_time() - cpu
        return *seconds, step.call_count, sum(action.token_count for action in actions)

    drafts = agent.drafts
    for seed in range(rounds + 1):
        for guesses in (False, True):
            agent.drafts = drafts if guesses else NoGuesses()
            wall, cpu, count, tokens = write(seed)
            if seed:  # the first batch warms up, and there is nothing yet to guess from
                numbers = {"passes": count, "tokens": tokens, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}
                yield {"batch": seed, "guesses": "yes" if guesses else "no", **numbers}


def states(folder: Path, task: Task, count: int) -> list[Prompt]:
    """The first state of a task, and as a quarter of all states those that show the last failed programs of a run."""
    shape = {"description": task.spec.description, "features": task.x.shape[1], "rows": task.x.shape[0] // 2}
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    failed = [s for s in samples if s["status"] != "ok"][-(count // 4) :]
    first = [task_prompt(**shape)] * (count - len(failed))
    return first + [reflection_prompt(**shape, body=s["code"], error=s["error"]) for s in failed]


def of_run(folder: Path, rounds: int, count: int = 16) -> Iterator[dict[str, Any]]:
    """Rollouts of a run's last policy: by our decoder, with and without guesses, and by transformers' generate."""
    if not (folder / "run_card.json").exists():
        raise UserError(f"{folder}: expected the folder of a finished run, with its run_card.json")
    card = json.loads((folder / "run_card.json").read_text())
    settings = load_settings(card["scale"], card["method"])
    trains = build_method(card["method"], settings.methods[card["method"]].plain()).trains
    weights = folder / "checkpoint" / "policy"
    if trains and not (weights / "adapter_config.json").exists():
        raise UserError(f"{weights} is not there; its run has to be made on this machine first")
    task = data.table(card["task"])
    models.model(settings.model)
    model, tokenizer, model_card = load_model(settings.model, torch.float32, torch.device("cpu"))
    merged = PeftModel.from_pretrained(model, weights).merge_and_unload() if trains else model
    training = settings.training
    limit, end = training.max_new_tokens, model_card["eos_token_id"]
    theirs = copy.deepcopy(merged).to(torch.bfloat16)
    agent = Agent(
        merged,
        tokenizer,
        model_card,
        rank=None,
        alpha=training.lora_alpha,
        layers=training.lora_layers,
        seed=0,
        precision="bfloat16",
        momentum=training.momentum,
        grad_norm=training.grad_norm,
        micro_batch_tokens=training.micro_batch_tokens,
    )
    agent.refresh()
    prompts = states(folder, task, count)
    ids, generator = [agent.encode(p) for p in prompts], torch.Generator()

    def ours(seed: int) -> int:
        generator.manual_seed(seed)
        return sum(a.token_count for a in agent.act(prompts, max_new_tokens=limit, generator=generator))

    def generate(seed: int) -> int:
        torch.manual_seed(seed)
        return sampled_by_generate(theirs, ids, end, limit, LogitsProcessorList())

    drafts = agent.drafts
    for seed in range(rounds + 1):
        for run in ("one token a pass", "with guesses", "transformers generate"):
            agent.drafts = drafts if run == "with guesses" else NoGuesses()
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = (generate if run == "transformers generate" else ours)(seed)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if seed:
                numbers = {"tokens": tokens, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}
                yield {"batch": seed, "run": run, **numbers, "useful_tokens_s": round(tokens / wall, 1)}


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints the tables and saves them; returns the rows of "replay", or those of a policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="study", help="scale whose committed programs, settings and model are taken")
    parser.add_argument("--rounds", type=int, default=8, help="batches to time; 0 for the replay alone")
    parser.add_argument("--csv", type=Path, help="file to save the times to")
    parser.add_argument("--policy", type=Path, help="folder of a finished run whose policy writes")
    chosen = parser.parse_args(arguments)
    with one_line_errors():
        if chosen.policy:
            if chosen.rounds < 1:
                raise UserError(f"--rounds: got {chosen.rounds}, expected at least 1 with --policy")
            rows = list(of_run(chosen.policy, chosen.rounds))
            show(rows)
            rate = {
                run: statistics.median(row["useful_tokens_s"] for row in rows if row["run"] == run)
                for run in dict.fromkeys(row["run"] for row in rows)
            }
            for run, tokens in rate.items():
                print(f"{run}: {tokens:.0f} useful tokens/s, {tokens / rate['transformers generate']:.1f} x generate")
            if chosen.csv:
                save(rows, chosen.csv)
            return rows
        replayed = replay(chosen.scale)
        show(replayed)
        if chosen.csv:
            save(replayed, chosen.csv.with_stem(f"{chosen.csv.stem}_replay"))
        if not chosen.rounds:
            print("rollouts: not measured (--rounds 0)")
            return replayed
        models.model(load_settings(chosen.scale).model)
        rows = list(timed(chosen.scale, chosen.rounds))
        show(rows)
        plain, guessed = ([row["cpu_s"] for row in rows if row["guesses"] == g] for g in ("no", "yes"))
        ratios = [a / b for a, b in zip(plain, guessed, strict=True)]
        print(f"one token a pass takes {statistics.median(ratios):.2f} times the CPU time (median of {len(ratios)})")
        if chosen.csv:
            save(rows, chosen.csv)
    return replayed


if __name__ == "__main__":
    main()
