"""What guessing tokens saves: passes of the model an action, and the time of a rollout with guesses and without.

Two tables. "replay" reads the programs that committed runs wrote (`samples.jsonl`, 4 of each batch of 16, so the memory
holds fewer of the same policy than it does in a run) and counts, by quarters of a run, how many passes the decoder
would have made with guesses from the programs before: "tokens_a_pass", and "fed_a_token", the tokens that are computed
for each token kept. "time" lets the untrained model of a scale write batches, each twice from the same state of the
generator: one token a pass, and with guesses from the batches before. "cpu_s" is the CPU time of this process, which
other load disturbs least. Prints the tables; `--csv FILE` saves the second, and the first as FILE_replay.

`--policy RUN` measures the policy of a finished run instead, as its rollouts end (of a run of Reflection the untrained
model, as all runs begin): 16 sequences, four of them behind programs of the run that failed, each until its own end
token. Beside our decoder, with guesses and without, transformers' generate samples from the same weights in bfloat16,
in turns. Each writes its own programs, so what compares is "useful_tokens_s", the tokens up to each end over the wall
clock.

    OMP_NUM_THREADS=1 python -m benchmarks.drafts --csv drafts.csv
    python -m benchmarks.drafts --policy results/study/etpo/kidney-stone/seed2 --csv drafts_policy.csv
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pipeline  # noqa: F401  says how threads wait, which is read when torch is loaded

# isort: split
import torch
from peft import PeftModel
from transformers import LogitsProcessorList

from benchmarks.executor import save, show
from benchmarks.rollout import sampled_by_generate
from etpo_core.errors import UserError, one_line_errors
from etpo_paper.base import paths
from etpo_paper.base.machine import choose
from etpo_paper.base.settings import load_settings
from etpo_paper.data.tasks import load_task
from etpo_paper.environment.prompts import Prompt, reflection_prompt, task_prompt
from etpo_paper.methods import build_method
from etpo_paper.model.agent import Agent
from etpo_paper.model.drafts import Drafts
from etpo_paper.model.loading import load_model
from etpo_paper.report import results
from etpo_paper.training.run import Run
from pipeline.train import load_agent

METHODS = ("ppo_kl", "etpo")  # programs of a model that does not learn are kept without their tokens


def passes(drafts: Drafts, action: Sequence) -> tuple[int, int]:
    """Passes that write an action, and tokens that they compute."""
    written, count, fed = 0, 0, 0
    while written < len(action):
        guess = drafts.guess(action[:written], len(action) - written - 1)
        right = next((i for i, token in enumerate(guess) if token != action[written + i]), len(guess))
        written, count, fed = written + right + 1, count + 1, fed + 1 + len(guess)
    return count, fed


def replay(scale: str) -> list[dict]:
    """Tokens a pass by method and quarter, over all runs of a scale."""
    samples, rows = results.load_samples(scale), []
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


def timed(scale: str, rounds: int) -> Iterator[dict]:
    """Rollouts of the untrained model, each with guesses and without."""
    settings, device = load_settings(scale), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training, task = settings.training, load_task(settings.tasks[0])
    precision = choose(training.precision).precision if device.type == "cpu" else training.precision
    agent = load_agent(Run(scale, "reflection", settings.tasks[0], 0), settings, device, False, precision)
    agent.refresh()
    prompt = task_prompt(task.spec.description, features=task.x.shape[1], rows=task.x.shape[0] // 2)
    generator = torch.Generator()
    steps, step = [], agent._decoder.step
    agent._decoder.step = lambda tokens: steps.append(tokens) or step(tokens)

    def write(seed: int) -> tuple[float, float, int, int]:
        steps.clear()
        generator.manual_seed(seed)
        wall, cpu = time.perf_counter(), time.process_time()
        limit = training.max_new_tokens
        actions = agent.act([prompt] * training.environments, max_new_tokens=limit, generator=generator)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        return *seconds, len(steps), sum(action.token_count for action in actions)

    for seed in range(rounds + 1):
        before = agent.drafts.get_state()
        for guesses in (False, True):
            agent._decoder.takes_back = guesses
            agent.drafts.set_state(before)
            wall, cpu, count, tokens = write(seed)
            if seed:  # the first batch warms up, and there is nothing yet to guess from
                numbers = {"passes": count, "tokens": tokens, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}
                yield {"batch": seed, "guesses": "yes" if guesses else "no", **numbers}


def states(folder: Path, task, count: int) -> list[Prompt]:
    """The task's first state, but for every fourth: those follow the last programs that failed in the run."""
    shape = {"description": task.spec.description, "features": task.x.shape[1], "rows": task.x.shape[0] // 2}
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    failed = [s for s in samples if s["status"] != "ok"][-(count // 4) :]
    first = [task_prompt(**shape)] * (count - len(failed))
    return first + [reflection_prompt(**shape, body=s["code"], error=s["error"]) for s in failed]


def of_run(folder: Path, rounds: int, count: int = 16) -> Iterator[dict]:
    """Rollouts of a run's last policy by our decoder, with guesses and without, and by transformers' generate."""
    if not (folder / "run_card.json").exists():
        raise UserError(f"{folder}: expected the folder of a finished run, with its run_card.json")
    card = json.loads((folder / "run_card.json").read_text())
    settings = load_settings(card["scale"], card["method"])
    trains = build_method(card["method"], settings.methods[card["method"]]).trains
    weights = folder / "checkpoint" / "policy"
    if trains and not (weights / "adapter_config.json").exists():
        raise UserError(f"{weights} is not there; its run has to be made on this machine first")
    task = load_task(card["task"])
    model, tokenizer, model_card = load_model(settings.model, torch.float32, torch.device("cpu"))
    merged = PeftModel.from_pretrained(model, weights).merge_and_unload() if trains else model
    limit, end = settings.training.max_new_tokens, model_card["eos_token_id"]
    theirs = copy.deepcopy(merged).to(torch.bfloat16)
    agent = Agent(merged, tokenizer, model_card, rank=None, alpha=1, seed=0, precision="bfloat16")
    agent.refresh()
    prompts = states(folder, task, count)
    ids, generator = [agent.encode(p) for p in prompts], torch.Generator()

    def ours(seed: int) -> int:
        generator.manual_seed(seed)
        return sum(a.token_count for a in agent.act(prompts, max_new_tokens=limit, generator=generator))

    def generate(seed: int) -> int:
        torch.manual_seed(seed)
        return sampled_by_generate(theirs, ids, end, limit, LogitsProcessorList())

    for seed in range(rounds + 1):
        before = agent.drafts.get_state()
        for run in ("one token a pass", "with guesses", "transformers generate"):
            agent._decoder.takes_back = run == "with guesses"
            agent.drafts.set_state(before)
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = (generate if run == "transformers generate" else ours)(seed)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if run == "with guesses":
                remembered = agent.drafts.get_state()
            if seed:
                numbers = {"tokens": tokens, "wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}
                yield {"batch": seed, "run": run, **numbers, "useful_tokens_s": round(tokens / wall, 1)}
        agent.drafts.set_state(remembered)


def main(arguments: Sequence[str] | None = None) -> list[dict]:
    """Measures, prints and saves; returns the rows of the replay, or those of a policy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", default="study", help="whose committed programs, settings and model")
    parser.add_argument("--rounds", type=int, default=8, help="batches that are timed; 0 for the replay alone")
    parser.add_argument("--csv", type=Path, help="file to save the times to")
    parser.add_argument("--policy", type=Path, help="folder of a finished run whose policy is to write")
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
        name = load_settings(chosen.scale).model
        if not chosen.rounds or not (paths.MODELS / name / "model.safetensors").exists():
            print(f"rollouts: not measured ({'--rounds 0' if not chosen.rounds else f'models/{name} is not there'})")
            return replayed
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
