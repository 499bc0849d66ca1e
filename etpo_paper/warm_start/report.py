"""How good the warm-started model is: the share of its code that runs on each task.

For each task the model writes some bodies at temperature 1, exactly as it will at the start of reinforcement learning,
and the executor runs each of them on one split. A body that fails is followed by one reflection prompt with its error.
Only whether the code runs counts, never its score. The shares tell whether there is a reward to learn from, and room to
improve.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from etpo_core.sandbox import Outcome, SandboxPool, Status
from etpo_paper.data.tasks import Task
from etpo_paper.environment.prompts import Prompt, program, reflection_prompt, task_prompt
from etpo_paper.model import llama
from etpo_paper.model.decoder import LlamaDecoder, TransformersDecoder, sample
from etpo_paper.model.drafts import Drafts
from etpo_paper.model.loading import decode_action, encode_prompt, end_tokens
from etpo_paper.warm_start.mining import classifiers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_NEW_TOKENS = 96


def measure(
    model: "PreTrainedModel",
    tokenizer: Any,
    card: dict[str, Any],
    tasks: Sequence[Task],
    executor: SandboxPool,
    samples: int,
    seed: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Samples bodies for each task and runs them.

    Args:
        model: the model, as `load_model` returns it.
        tokenizer: its tokenizer.
        card: its card.
        tasks: the tasks that the prompts describe and that the code is run on.
        executor: runs the programs. The caller opens and closes it.
        samples: number of bodies for each task.
        seed: seed of the sampling.
        dtype: precision of the model's arithmetic during sampling.

    Returns:
        "tasks": for each task the share of bodies that run at the first try, the share that run within one
            reflection, the share of actions that end by themselves, and their mean length in tokens.
        "all": the means of these numbers over the tasks.
        "errors": how often each error occurred at the first try.
        "estimators": how often each classifier occurred in bodies that ran at the first try.
        "samples_per_task": as given.
        "distinct_bodies": the share of distinct bodies among all first tries.
    """
    writer = _Writer(model, tokenizer, card, torch.Generator().manual_seed(seed), dtype)
    per_task: dict[str, dict[str, float]] = {}
    errors: Counter[str] = Counter()
    estimators: Counter[str] = Counter()
    bodies: set[str] = set()
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

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: Any,
        card: dict[str, Any],
        generator: torch.Generator,
        dtype: torch.dtype,
    ):
        self.tokenizer, self.card, self.generator = tokenizer, card, generator
        self.decoder = LlamaDecoder(model, dtype) if llama.fits(model) else TransformersDecoder(model)
        self.drafts = Drafts()

    def write(self, prompts: Sequence[Prompt]) -> tuple[list[str], list[int], list[bool]]:
        """Returns the bodies, their lengths in tokens, and whether each of them ended by itself."""
        ids = [encode_prompt(self.tokenizer, prompt, self.card["format"]) for prompt in prompts]
        end = end_tokens(self.card)
        actions = sample(self.decoder, ids, end, MAX_NEW_TOKENS, self.generator, drafts=self.drafts)
        self.drafts.observe(action.tokens for action in actions)
        bodies = [decode_action(self.tokenizer, action.tokens, end) for action in actions]
        return bodies, [len(action.tokens) for action in actions], [action.finished for action in actions]


def _run(executor: SandboxPool, bodies: Sequence[str], task: Task) -> list[Outcome]:
    return executor.score_many([program(body) for body in bodies], task.x, task.y, split_seeds=[0])


def _estimators(body: str) -> list[str]:
    """The classifiers that a body constructs, each once, and "pipeline" if it constructs one."""
    called = set(re.findall(r"\b([A-Za-z_]+)\(", body))
    return sorted(called & classifiers()) + (["pipeline"] if called & {"Pipeline", "make_pipeline"} else [])


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
