"""Sampling actions: an incremental decoder for Llama-shaped models, and exact sampling from it.

`LlamaDecoder` keeps its own copy of the weights with the policy's adapter merged in, laid out for reading one token
at a time; the trainer's model stays untouched. `TransformersDecoder` does the same through the model's own
key-value cache, for every other architecture and as the reference in tests. `sample` draws tokens by inverting
the cumulative distribution with one uniform number a row, and returns the log-probability of each token under the
very distribution that it was drawn from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import llama


@dataclass(frozen=True)
class Sampled:
    """One sampled action.

    Attributes:
        tokens: token ids, the end token included when the model produced it.
        log_probs: log-probability of each token under the distribution it was drawn from.
        finished: whether it ended with the end token (False: cut off at the length limit).
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finished: bool


class Decoder(Protocol):
    """Incremental decoding of a batch of sequences of different lengths."""

    def prefill(self, prompts: Sequence[Sequence[int]], extra: int) -> Tensor:
        """Reads the prompts, leaves room for `extra` tokens, returns next-token logits [batch, vocabulary]."""

    def step(self, tokens: Tensor) -> Tensor:
        """Appends one token [batch] to each sequence and returns the next logits [batch, vocabulary]."""

    def keep(self, rows: Tensor) -> None:
        """Drops all sequences but those at `rows` [kept]."""


def next_token_distribution(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """The sampling distribution: softmax of logits / temperature over the `top_k` likeliest tokens (0: all).

    Args:
        logits: [batch, vocabulary], any float dtype; computed in float32.
        temperature: > 0.
        top_k: number of tokens kept, 0 keeps all.

    Returns:
        log-probabilities [batch, vocabulary] in float32; -inf where a token cannot be drawn.
    """
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    return logits.log_softmax(-1)


def draw(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Inverts the cumulative distribution.

    Args:
        log_probs: [batch, vocabulary], normalised; -inf marks tokens that cannot be drawn.
        uniform: [batch] in [0, 1), float64.

    Returns:
        Token ids [batch].
    """
    cumulative = log_probs.exp().cumsum(-1)
    token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1].double()).float().unsqueeze(-1), right=True)
    last_possible = log_probs.shape[-1] - 1 - torch.isfinite(log_probs).flip(-1).int().argmax(-1, keepdim=True)
    return torch.minimum(token, last_possible).squeeze(-1)


@torch.inference_mode()
def sample(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    end_token: int,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int = 0,
) -> list[Sampled]:
    """Samples one action for each prompt.

    Uniform numbers are drawn for every row at every step, finished or not, so that an action depends on the
    generator's state and on its row only, not on when the other rows end.

    Args:
        decoder: reads the prompts and yields logits.
        prompts: token ids of each prompt, of any lengths.
        end_token: id that ends an action.
        max_new_tokens: length at which an action is cut off.
        generator: CPU generator of the uniform numbers.
        temperature: of sampling, > 0.
        top_k: sample among the k likeliest tokens, 0 = all.
    """
    count = len(prompts)
    tokens: list[list[int]] = [[] for _ in range(count)]
    log_probs: list[list[float]] = [[] for _ in range(count)]
    finished = [False] * count
    active = list(range(count))
    logits = decoder.prefill(prompts, max_new_tokens)
    for length in range(1, max_new_tokens + 1):
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)[active].to(logits.device)
        distribution = next_token_distribution(logits, temperature, top_k)
        token = draw(distribution, uniform)
        chosen = distribution.gather(-1, token.unsqueeze(-1)).squeeze(-1)
        for row, new, log_prob in zip(active, token.tolist(), chosen.tolist(), strict=True):
            tokens[row].append(new)
            log_probs[row].append(log_prob)
            finished[row] = new == end_token
        kept = [i for i, row in enumerate(active) if not finished[row]]
        if not kept or length == max_new_tokens:
            break
        if len(kept) < len(active):
            rows = torch.tensor(kept, device=logits.device)
            decoder.keep(rows)
            token = token[rows]
            active = [active[i] for i in kept]
        logits = decoder.step(token)
    return [Sampled(tuple(t), tuple(p), f) for t, p, f in zip(tokens, log_probs, finished, strict=True)]


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids padded on the left and the number of padded positions, [batch, longest] and [batch].

    Padding is told by position, never by token value: any id may stand there (0 does).
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    return ids, torch.tensor([longest - len(p) for p in prompts], device=device)


class TransformersDecoder:
    """Decoding through a transformers model's own cache; any causal architecture."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.device = next(model.parameters()).device

    def prefill(self, prompts: Sequence[Sequence[int]], extra: int) -> Tensor:
        """See `Decoder.prefill`."""
        ids, padding = pad_left(prompts, self.device)
        positions = torch.arange(ids.shape[1], device=self.device) - padding[:, None]
        self.mask = (positions >= 0).long()
        out = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions.clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache, self.position = out.past_key_values, positions[:, -1:]
        return out.logits[:, -1]

    def step(self, tokens: Tensor) -> Tensor:
        """See `Decoder.step`."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        self.position = self.position + 1
        out = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1]

    def keep(self, rows: Tensor) -> None:
        """See `Decoder.keep`."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]


class LlamaDecoder:
    """A bare decoder for models of the Llama architecture (`llama.fits`), with its own merged copy of the weights.

    Args:
        model: a `LlamaForCausalLM`, plain or wrapped by peft.
        dtype: of the copied weights and of the products.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        causal = llama.causal_model(model)
        self.model, self.body, self.dtype, self.shape = model, causal.model, dtype, llama.shape(model)
        self.device = causal.lm_head.weight.device
        self.head = causal.lm_head.weight.to(dtype)
        self.load(None)

    def load(self, adapter: str | None) -> None:
        """Copies the weights again, with LoRA adapter `adapter` merged in (None: the frozen base)."""
        self.layers = llama.layers(self.model, self.dtype, adapter)

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Runs the body over `ids` [batch, new], writes the cache, returns logits of the last position.

        positions: [batch, new]; mask: additive, [batch, 1, new, cached + new] or None where all is visible.
        """
        batch, new = ids.shape
        start, end = self.length, self.length + new
        x = self.body.embed_tokens(ids.flatten()).float()
        cos, sin = (t.to(self.dtype).flatten(0, 1).unsqueeze(1) for t in self.body.rotary_emb(x, positions))
        for i, layer in enumerate(self.layers):

            def attention(query: Tensor, key: Tensor, value: Tensor, i: int = i) -> Tensor:
                query, key, value = (t.view(batch, new, *t.shape[1:]) for t in (query, key, value))
                self.keys[i][:, :, start:end] = key.transpose(1, 2)
                self.values[i][:, :, start:end] = value.transpose(1, 2)
                return llama.attend(query, self.keys[i][:, :, :end], self.values[i][:, :, :end], mask).flatten(0, 1)

            x = llama.run_layer(x, layer, {}, cos, sin, self.shape, attention)
        self.length = end
        last = x.view(batch, new, -1)[:, -1]
        return F.linear(llama.normed(last, self.body.norm.weight.float(), self.shape.epsilon).to(self.dtype), self.head)

    def _mask(self, visible: Tensor) -> Tensor:
        """[batch, new, seen] of bools as what is added to scores, [batch, 1, new, seen]."""
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill(~visible, float("-inf")).unsqueeze(1)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], extra: int) -> Tensor:
        """See `Decoder.prefill`; a prompt that all rows share is read once."""
        rows = len(prompts)
        shared = all(list(p) == list(prompts[0]) for p in prompts)
        ids, padding = pad_left(prompts[:1] if shared else prompts, self.device)
        batch, longest = ids.shape
        shape = (batch, self.shape.kv_heads, longest + extra, self.shape.width)
        self.keys = [torch.empty(shape, dtype=self.dtype, device=self.device) for _ in self.layers]
        self.values = [torch.empty(shape, dtype=self.dtype, device=self.device) for _ in self.layers]
        self.length = 0
        columns = torch.arange(longest, device=self.device)
        visible = (columns[None, :] <= columns[:, None]) & (columns >= padding[:, None])[:, None, :]
        visible |= torch.eye(longest, dtype=torch.bool, device=self.device)  # padded rows see themselves: no NaN
        logits = self._forward(ids, (columns - padding[:, None]).clamp(min=0), self._mask(visible))
        if shared and rows > 1:
            self.keys = [k.expand(rows, -1, -1, -1).contiguous() for k in self.keys]
            self.values = [v.expand(rows, -1, -1, -1).contiguous() for v in self.values]
            padding, logits = padding.expand(rows), logits.expand(rows, -1)
        self.padding = padding
        return logits

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        """See `Decoder.step`."""
        positions = (self.length - self.padding)[:, None]
        mask = None
        if self.padding.any():
            visible = torch.arange(self.length + 1, device=self.device) >= self.padding[:, None]
            mask = self._mask(visible[:, None])
        return self._forward(tokens[:, None], positions, mask)

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        """See `Decoder.keep`."""
        self.keys = [k.index_select(0, rows) for k in self.keys]
        self.values = [v.index_select(0, rows) for v in self.values]
        self.padding = self.padding[rows]
