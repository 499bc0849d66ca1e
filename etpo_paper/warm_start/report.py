"""How good the warm-started model is: the share of its code that runs, task by task.

For each task the model writes some bodies at temperature 1, exactly as it will at the start of reinforcement learning;
the executor runs each on one split. Those that fail get one reflection prompt with their error. What counts is only
whether the code runs, never its score: the numbers say whether there is a reward to learn from and room to improve.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from etpo_core.sandbox import Outcome, SandboxPool, Status
from etpo_paper.data.tasks import Task
from etpo_paper.environment.prompts import Prompt, program, reflection_prompt, task_prompt
from etpo_paper.model import llama
from etpo_paper.model.decoder import LlamaDecoder, TransformersDecoder, sample
from etpo_paper.model.drafts import Drafts
from etpo_paper.model.loading import decode_action, encode_prompt
from etpo_paper.warm_start.mining import classifiers

MAX_NEW_TOKENS = 96


def measure(
    model: nn.Module,
    tokenizer: Any,
    card: dict,
    tasks: Sequence[Task],
    executor: SandboxPool,
    samples: int,
    seed: int,
    dtype: torch.dtype,
) -> dict:
    """Samples and runs bodies for each task.

    Args:
        model: as `load_model` gives it.
        tokenizer: its tokenizer.
        card: its card.
        tasks: what the prompts are about and what the code is run on.
        executor: runs the programs; the caller's.
        samples: bodies written for each task.
        seed: of the sampling.
        dtype: of the arithmetic of sampling.

    Returns:
        "tasks": for each task the share of code that runs at the first try and within one reflection, of actions
        that end by themselves, and their mean length in tokens; "all": the same over all tasks; "errors" and
        "estimators": how often each error and, in code that runs, each classifier occurred at the first try.
    """
    writer = _Writer(model, tokenizer, card, torch.Generator().manual_seed(seed), dtype)
    per_task, errors, estimators, bodies = {}, Counter(), Counter(), set()
    for task in tqdm(tasks, desc="report", unit="task"):
        rows, features = task.x.shape
        shape = {"description": task.spec.description, "features": features, "rows": rows // 2}
        first, lengths, finished = writer.write([task_prompt(**shape)] * samples)
        outcomes = _run(executor, first, task)
        failed = [(body, o.error_text) for body, o in zip(first, outcomes, strict=True) if o.status != Status.OK]
        repaired: list[Outcome] = []
        if failed:
            second, *_ = writer.write([reflection_prompt(**shape, body=body, error=e) for body, e in failed])
            repaired = _run(executor, second, task)
        fixed = sum(outcome.status == Status.OK for outcome in repaired)
        ran = samples - len(failed)
        per_task[task.spec.name] = {
            "runs_first_try": round(ran / samples, 4),
            "runs_after_one_reflection": round((ran + fixed) / samples, 4),
            "ends_by_itself": round(sum(finished) / samples, 4),
            "mean_tokens": round(sum(lengths) / samples, 2),
        }
        errors.update(o.error_type or str(o.status) for o in outcomes if o.status != Status.OK)
        bodies.update(first)
        for body, outcome in zip(first, outcomes, strict=True):
            if outcome.status == Status.OK:
                estimators.update(_estimators(body))
    return {
        "samples_per_task": samples,
        "tasks": per_task,
        "all": {key: _mean([row[key] for row in per_task.values()]) for key in next(iter(per_task.values()))},
        "errors": dict(errors.most_common()),
        "estimators": dict(estimators.most_common()),
        "distinct_bodies": round(len(bodies) / (samples * len(tasks)), 4),
    }


class _Writer:
    """Samples bodies at temperature 1 from the whole distribution."""

    def __init__(self, model, tokenizer, card: dict, generator: torch.Generator, dtype: torch.dtype):
        self.tokenizer, self.card, self.generator = tokenizer, card, generator
        self.decoder = LlamaDecoder(model, dtype) if llama.fits(model) else TransformersDecoder(model)
        self.drafts = Drafts()

    def write(self, prompts: Sequence[Prompt]) -> tuple[list[str], list[int], list[bool]]:
        """Bodies, their lengths in tokens and whether each ended by itself."""
        ids = [encode_prompt(self.tokenizer, prompt, self.card["format"]) for prompt in prompts]
        end = self.card["eos_token_id"]
        actions = sample(self.decoder, ids, end, MAX_NEW_TOKENS, self.generator, drafts=self.drafts)
        self.drafts.observe(action.tokens for action in actions)
        bodies = [decode_action(self.tokenizer, action.tokens, end) for action in actions]
        return bodies, [len(action.tokens) for action in actions], [action.finished for action in actions]


def _run(executor: SandboxPool, bodies: Sequence[str], task: Task) -> list[Outcome]:
    return executor.score_many([program(body) for body in bodies], task.x, task.y, split_seeds=[0])


def _estimators(body: str) -> list[str]:
    """Classifiers that a body constructs, each once, and "pipeline" when it builds one."""
    called = set(re.findall(r"\b([A-Za-z_]+)\(", body))
    return sorted(called & classifiers()) + (["pipeline"] if called & {"Pipeline", "make_pipeline"} else [])


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
