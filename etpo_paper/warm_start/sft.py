"""Supervised fine-tuning on the warm start's corpus: short, repeatable, safe to interrupt.

Every step sees `batch` answers to first prompts and half as many to reflection prompts. Several answers to the same
prompt share one sequence - prompt, answer, answer, ... - in which an answer sees the prompt and itself but no other
answer, and has the positions it would have alone; the prompt is then computed once instead of once an answer. The loss
is the mean negative log-likelihood of the answers' tokens, the end token included; which positions count is told by
position, never by token value. A checkpoint every few steps holds weights, optimiser and step; a run that was killed
goes on from it and ends in the same weights.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from etpo_core.errors import UserError
from etpo_paper.base.machine import choose
from etpo_paper.base.provenance import write_tensors
from etpo_paper.model.loading import encode_prompt
from etpo_paper.warm_start.corpus import Corpus, Example

ANSWERS_PER_PROMPT = 8
CHECKPOINT_EVERY = 20  # steps
# Tokens x width of the model that are computed side by side: about 500 tokens and 1 GB for the small model.
MICRO_BATCH_SIZE = 300_000
# Width below which a model trains on one thread: threads would wait for each other longer than they work.
SERIAL_BELOW = 256


@dataclass(frozen=True)
class WarmStartSettings:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch: answers to first prompts a step; a multiple of 8.
        learning_rate: of AdamW, at its highest; a short rise, then a linear fall to a tenth.
        lora_rank: rank of the adapter that is trained and merged at the end; 0 trains all weights.
        max_tokens: bodies longer than this, end token included, are left out.
        seed: of the corpus and of the adapter's first weights.
    """

    steps: int
    batch: int
    learning_rate: float
    lora_rank: int
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.batch % ANSWERS_PER_PROMPT:
            raise UserError(
                f"warm_start: steps {self.steps}, batch {self.batch}: give at least 1 step "
                f"and a batch that is a multiple of {ANSWERS_PER_PROMPT}"
            )


@dataclass(frozen=True)
class Packed:
    """One prompt and its answers as one sequence.

    Attributes:
        ids: token ids [length].
        positions: position of each token as its answer alone would have it [length].
        group: 0 for the prompt, k for the k-th answer [length].
        sources: indices of the hidden states that answer tokens are predicted from [answer tokens].
        targets: the answer tokens, end tokens included [answer tokens].
    """

    ids: Tensor
    positions: Tensor
    group: Tensor
    sources: Tensor
    targets: Tensor

    @property
    def mask(self) -> Tensor:
        """Which tokens [length] may see which [length]: the prompt and the own answer, up to themselves."""
        order = torch.arange(len(self.ids))
        same = (self.group[None, :] == 0) | (self.group[None, :] == self.group[:, None])
        return same & (order[None, :] <= order[:, None])


def pack(prompt: Sequence[int], answers: Iterable[Sequence[int]]) -> Packed:
    """Lays a prompt and its answers (token ids, each with its end token) out as one sequence."""
    ids, positions, group = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    sources, targets = [], []
    for k, answer in enumerate(answers, start=1):
        start = len(ids)
        # The first token is predicted from the prompt's last one, every other from its predecessor.
        sources += [len(prompt) - 1, *range(start, start + len(answer) - 1)]
        targets += answer
        ids += answer
        positions += range(len(prompt), len(prompt) + len(answer))
        group += [k] * len(answer)
    return Packed(*(torch.tensor(values) for values in (ids, positions, group, sources, targets)))


def loss_sum(model: nn.Module, batch: Sequence[Packed]) -> Tensor:
    """Summed negative log-likelihood of all answer tokens of packed sequences, which are computed side by side.

    Shorter sequences are filled up on the right with positions that see themselves only and are never read.
    """
    device = next(model.parameters()).device
    longest = max(len(packed.ids) for packed in batch)
    ids, positions = torch.zeros(2, len(batch), longest, dtype=torch.long)
    visible = torch.eye(longest, dtype=torch.bool).repeat(len(batch), 1, 1)
    for row, packed in enumerate(batch):
        length = len(packed.ids)
        ids[row, :length], positions[row, :length] = packed.ids, packed.positions
        visible[row, :length, :length] = packed.mask
    hidden_mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    states = causal.model(
        input_ids=ids.to(device),
        attention_mask=hidden_mask[:, None].to(device),
        position_ids=positions.to(device),
        use_cache=False,
    ).last_hidden_state
    sources = torch.cat([row * longest + packed.sources for row, packed in enumerate(batch)]).to(device)
    targets = torch.cat([packed.targets for packed in batch]).to(device)
    logits = causal.lm_head(states.flatten(0, 1)[sources])
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def micro_batches(sequences: Iterable[Packed], tokens: int) -> list[list[Packed]]:
    """Groups sequences of similar length; only a single long one may take more than `tokens`, filling included."""
    groups: list[list[Packed]] = []
    for packed in sorted(sequences, key=lambda packed: len(packed.ids)):
        if groups and (len(groups[-1]) + 1) * len(packed.ids) <= tokens:
            groups[-1].append(packed)
        else:
            groups.append([packed])
    return groups


def answer_ids(body: str, tokenizer: Any, card: dict) -> list[int]:
    """The token ids of a body as an action, end token included."""
    return [*tokenizer(body, add_special_tokens=False).input_ids, card["eos_token_id"]]


def encode(example: Example, tokenizer: Any, card: dict) -> Packed:
    """An example as a packed sequence of a model's tokens."""
    prompt = encode_prompt(tokenizer, example.prompt, card["format"])
    return pack(prompt, [answer_ids(body, tokenizer, card) for body in example.answers])


def train(
    model: nn.Module, tokenizer: Any, card: dict, corpus: Corpus, settings: WarmStartSettings, checkpoint: Path
) -> tuple[nn.Module, dict]:
    """Fine-tunes a model.

    Args:
        model: as `load_model` gives it, float32.
        tokenizer: its tokenizer.
        card: its card.
        corpus: what to learn.
        settings: how.
        checkpoint: file that holds an interrupted run; removed by the caller once the result is safe.

    Returns:
        The trained model (a LoRA adapter is merged) and the record: loss of each step in nats per token, tokens seen,
        seconds, precision of the products.
    """
    threads, precision = torch.get_num_threads(), "bfloat16"
    if next(model.parameters()).device.type == "cpu":
        precision = choose(precision).precision  # a processor that has to emulate bfloat16 is a hundred times slower
    if model.config.hidden_size < SERIAL_BELOW:
        torch.set_num_threads(1)
    try:
        model, record = _train(model, tokenizer, card, corpus, settings, checkpoint, getattr(torch, precision))
        return model, record | {"precision": precision}
    finally:
        torch.set_num_threads(threads)


def _train(model, tokenizer, card, corpus, settings, checkpoint, precision) -> tuple[nn.Module, dict]:
    torch.manual_seed(settings.seed)
    full = settings.lora_rank == 0
    if full:
        model.requires_grad_(True)
    else:
        from peft import LoraConfig, get_peft_model

        rank = settings.lora_rank
        model = get_peft_model(
            model, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
        )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=settings.learning_rate, weight_decay=0.0)
    run = _run_hash(settings, card, corpus)
    state = _load_checkpoint(checkpoint, run)
    record = {"loss": [], "tokens": 0, "answer_tokens": 0, "seconds": 0.0}
    if state:
        record = state["record"]
        optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state["weights"][name])
    device_type = next(model.parameters()).device.type
    tokens_at_once = MICRO_BATCH_SIZE // model.config.hidden_size
    begin, before = time.perf_counter(), record["seconds"]
    done = len(record["loss"])
    for step in (bar := tqdm(range(done, settings.steps), initial=done, total=settings.steps, desc="warm start")):
        sequences = [encode(example, tokenizer, card) for example in _examples(corpus, settings, step)]
        count = sum(len(p.targets) for p in sequences)
        total = 0.0
        for batch in micro_batches(sequences, tokens_at_once):
            with torch.autocast(device_type, precision, enabled=precision != torch.float32):
                loss = loss_sum(model, batch) / count
            loss.backward()
            total += loss.item()
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings.steps)
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        record["loss"].append(round(total, 5))
        record["tokens"] += sum(len(p.ids) for p in sequences)
        record["answer_tokens"] += count
        record["seconds"] = round(before + time.perf_counter() - begin, 2)
        bar.set_postfix(loss=f"{total:.3f}", tokens_per_s=f"{record['tokens'] / record['seconds']:.0f}")
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == settings.steps:
            weights = {name: p.detach() for name, p in trained.items()}
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(
                checkpoint, {"run": run, "record": record, "weights": weights, "optimiser": optimiser.state_dict()}
            )
    if not full:
        model = model.merge_and_unload()
    model.requires_grad_(False)
    return model.eval(), record


def _examples(corpus: Corpus, settings: WarmStartSettings, step: int) -> list[Example]:
    count = settings.batch // ANSWERS_PER_PROMPT
    indices = range(step * count, (step + 1) * count)
    return [corpus.first_try(i, ANSWERS_PER_PROMPT) for i in indices] + [corpus.second_try(i) for i in indices]


def _schedule(step: int, steps: int) -> float:
    rise = max(1, steps // 20)
    return min((step + 1) / rise, 1.0 - 0.9 * step / steps)


# ---------------------------------------------------------------------------------------------- checkpoints


def _run_hash(settings: WarmStartSettings, card: dict, corpus: Corpus) -> str:
    """What a checkpoint belongs to: other settings, weights or bodies make it worthless."""
    parts = [asdict(settings), card.get("sha256"), [b.text for b in corpus.bodies], corpus.failures]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load_checkpoint(path: Path, run: str) -> dict | None:
    if not path.is_file():
        return None
    try:
        state = torch.load(path, weights_only=True)
    except Exception:  # cut short by a full disk: the run starts over
        return None
    return state if state.get("run") == run else None
