"""Supervised fine-tuning on the corpus of the warm start.

Each step trains on `batch` answers to first prompts and half as many answers to reflection prompts. Answers to the same
prompt share one sequence (prompt, answer, answer, ...), so that the prompt is computed only once. In it, an answer
attends to the prompt and to itself but to no other answer, and its tokens have the positions they would have directly
after the prompt. The loss is the mean negative log-likelihood of the answer tokens, including the end tokens. Which
tokens count is decided by their position, never by their value.

The training can be repeated and interrupted: every few steps a checkpoint stores the weights, the optimiser and the
losses so far, and a run that was killed continues from it and ends with the same weights.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from etpo_core.errors import UserError
from etpo_paper.base.machine import choose
from etpo_paper.base.provenance import write_tensors
from etpo_paper.model.loading import encode_prompt
from etpo_paper.model.output import causal_model
from etpo_paper.warm_start.corpus import Corpus, Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ANSWERS_PER_PROMPT = 8
CHECKPOINT_EVERY = 20  # steps
# The size of a micro-batch as tokens times the width of the model: about 500 tokens and 1 GB for the small model.
MICRO_BATCH_SIZE = 300_000
# A model of a smaller width trains on one thread, because several threads would wait for each other longer than work.
SERIAL_BELOW = 256


@dataclass(frozen=True)
class WarmStartSettings:
    """The settings of the training.

    Attributes:
        steps: number of optimiser steps.
        batch: answers to first prompts in each step, a multiple of 8.
        learning_rate: the highest learning rate of AdamW. The rate rises briefly and then falls linearly to a tenth.
        lora_rank: rank of the adapter that is trained; 0 trains all weights.
        max_tokens: bodies with more tokens than this, including the end token, are left out.
        seed: seed of the corpus and of the initial weights of the adapter.
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
        ids: int64 [length], token ids.
        positions: int64 [length], the position of each token if its answer stood alone behind the prompt.
        group: int64 [length], 0 for the prompt and k for the k-th answer.
        sources: int64 [answer tokens], the index of the hidden state that predicts each answer token.
        targets: int64 [answer tokens], the answer tokens, including the end tokens.
    """

    ids: Tensor
    positions: Tensor
    group: Tensor
    sources: Tensor
    targets: Tensor

    @property
    def mask(self) -> Tensor:
        """The attention mask, bool [length, length].

        A token attends to the prompt and to its own answer, up to and including itself.
        """
        order = torch.arange(len(self.ids))
        same = (self.group[None, :] == 0) | (self.group[None, :] == self.group[:, None])
        return same & (order[None, :] <= order[:, None])


def pack(prompt: Sequence[int], answers: Iterable[Sequence[int]]) -> Packed:
    """Puts a prompt and its answers (token ids, each with its end token) into one sequence."""
    ids, positions, group = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    sources: list[int] = []
    targets: list[int] = []
    for k, answer in enumerate(answers, start=1):
        start = len(ids)
        # The last token of the prompt predicts the first token of the answer, whose tokens predict each next one.
        sources += [len(prompt) - 1, *range(start, start + len(answer) - 1)]
        targets += answer
        ids += answer
        positions += range(len(prompt), len(prompt) + len(answer))
        group += [k] * len(answer)
    return Packed(*(torch.tensor(values) for values in (ids, positions, group, sources, targets)))


def loss_sum(model: nn.Module, batch: Sequence[Packed]) -> Tensor:
    """The negative log-likelihood of all answer tokens of a micro-batch, summed.

    Args:
        model: a causal language model of transformers, with or without an adapter, whose logits are what its head
            makes of its last hidden states (`output_weight` refuses others).
        batch: sequences that are computed in one forward pass. Shorter ones are padded on the right. A padding
            position attends only to itself, and its hidden state is never used.

    Returns:
        float32 scalar, in nats.
    """
    device = next(model.parameters()).device
    longest = max(len(packed.ids) for packed in batch)
    ids, positions = torch.zeros(2, len(batch), longest, dtype=torch.long)
    visible = torch.eye(longest, dtype=torch.bool).repeat(len(batch), 1, 1)
    for row, packed in enumerate(batch):
        length = len(packed.ids)
        ids[row, :length], positions[row, :length] = packed.ids, packed.positions
        visible[row, :length, :length] = packed.mask
    additive_mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    causal = causal_model(model)
    states = causal.base_model(
        input_ids=ids.to(device),
        attention_mask=additive_mask[:, None].to(device),
        position_ids=positions.to(device),
        use_cache=False,
    ).last_hidden_state
    sources = torch.cat([row * longest + packed.sources for row, packed in enumerate(batch)]).to(device)
    targets = torch.cat([packed.targets for packed in batch]).to(device)
    logits = causal.get_output_embeddings()(states.flatten(0, 1).index_select(0, sources))
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def micro_batches(sequences: Iterable[Packed], tokens: int) -> list[list[Packed]]:
    """Groups sequences of similar length into micro-batches.

    Args:
        sequences: the sequences to group.
        tokens: limit of the tokens in a micro-batch, including padding. A longer sequence makes a micro-batch alone.
    """
    groups: list[list[Packed]] = []
    for packed in sorted(sequences, key=lambda packed: len(packed.ids)):
        if groups and (len(groups[-1]) + 1) * len(packed.ids) <= tokens:
            groups[-1].append(packed)
        else:
            groups.append([packed])
    return groups


def answer_ids(body: str, tokenizer: Any, card: dict[str, Any]) -> list[int]:
    """The token ids of a body as an action, including the end token."""
    return [*tokenizer(body, add_special_tokens=False).input_ids, card["eos_token_id"]]


def encode(example: Example, tokenizer: Any, card: dict[str, Any]) -> Packed:
    """Encodes an example as a packed sequence."""
    prompt = encode_prompt(tokenizer, example.prompt, card["format"])
    return pack(prompt, [answer_ids(body, tokenizer, card) for body in example.answers])


def train(
    model: "PreTrainedModel",
    tokenizer: Any,
    card: dict[str, Any],
    corpus: Corpus,
    settings: WarmStartSettings,
    checkpoint: Path,
) -> tuple[Any, dict[str, Any]]:
    """Fine-tunes a model.

    Args:
        model: a float32 model, as `load_model` returns it.
        tokenizer: its tokenizer.
        card: its card.
        corpus: the examples.
        settings: the settings of the training.
        checkpoint: the file that holds an interrupted run. The caller removes it once the result is saved.

    Returns:
        The trained model, with the adapter around it if there is one, and the record: loss of each step in nats per
        token, tokens read, answer tokens, precision of the matrix products.
    """
    threads, precision = torch.get_num_threads(), "bfloat16"
    if next(model.parameters()).device.type == "cpu":
        precision = choose(precision).precision  # a processor that has to emulate bfloat16 is a hundred times slower
    if model.config.hidden_size < SERIAL_BELOW:
        torch.set_num_threads(1)
    try:
        trained, record = _train(model, tokenizer, card, corpus, settings, checkpoint, getattr(torch, precision))
        return trained, record | {"precision": precision}
    finally:
        torch.set_num_threads(threads)


def _train(
    model: Any,
    tokenizer: Any,
    card: dict[str, Any],
    corpus: Corpus,
    settings: WarmStartSettings,
    checkpoint: Path,
    precision: torch.dtype,
) -> tuple[Any, dict[str, Any]]:
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
    run = _fingerprint(settings, card, corpus)
    state = _load_checkpoint(checkpoint, run)
    record: dict[str, Any] = {"loss": [], "tokens": 0, "answer_tokens": 0}
    if state:
        record = state["record"]
        optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state["weights"][name])
    device_type = next(model.parameters()).device.type
    micro_batch_tokens = MICRO_BATCH_SIZE // model.config.hidden_size
    first, begin, done = len(record["loss"]), time.perf_counter(), 0
    for step in (bar := tqdm(range(first, settings.steps), initial=first, total=settings.steps, desc="warm start")):
        sequences = [encode(example, tokenizer, card) for example in _examples(corpus, settings, step)]
        count = sum(len(p.targets) for p in sequences)
        total = 0.0
        for batch in micro_batches(sequences, micro_batch_tokens):
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
        done += sum(len(p.ids) for p in sequences)
        bar.set_postfix(loss=f"{total:.3f}", tokens_per_s=f"{done / (time.perf_counter() - begin):.0f}")
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == settings.steps:
            weights = {name: p.detach() for name, p in trained.items()}
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(
                checkpoint, {"run": run, "record": record, "weights": weights, "optimiser": optimiser.state_dict()}
            )
    model.requires_grad_(False)
    return model.eval(), record


def _examples(corpus: Corpus, settings: WarmStartSettings, step: int) -> list[Example]:
    count = settings.batch // ANSWERS_PER_PROMPT
    indices = range(step * count, (step + 1) * count)
    return [corpus.first_try(i, ANSWERS_PER_PROMPT) for i in indices] + [corpus.second_try(i) for i in indices]


def _schedule(step: int, steps: int) -> float:
    """The learning rate of a step as a share of the highest rate."""
    rise = max(1, steps // 20)
    return min((step + 1) / rise, 1.0 - 0.9 * step / steps)


# ---------------------------------------------------------------------------------------------- checkpoints


def _fingerprint(settings: WarmStartSettings, card: dict[str, Any], corpus: Corpus) -> str:
    """Identifies a training run. A checkpoint is useless for other settings, weights or bodies."""
    parts = [asdict(settings), card.get("sha256"), [b.text for b in corpus.bodies], corpus.failures]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load_checkpoint(path: Path, run: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        state = torch.load(path, weights_only=True)
    except Exception:  # the file is damaged, e.g. cut short: the run starts over
        return None
    return state if state.get("run") == run else None
