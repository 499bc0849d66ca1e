"""Perplexity of a language model on a long text, in overlapping windows.

Perplexity is the exponential of the mean negative log-likelihood per token, -1/N Σ_j log p(w^j | w^{<j}), with the
natural logarithm. A model sees at most a window of W tokens at once, so the text is read in windows that begin every S
tokens (the stride). Each window scores only the tokens that the window before it has not reached, so that each token
has at least W - S tokens of context, except near the beginning of the text. Every scored token has the same weight. If
only part of the text is to be scored, the windows are spread evenly over it, so that no single document decides the
number. Two perplexities can only be compared for the same text, tokenizer, window and stride.

The output layer of a language model is wide: the float32 logits of W = 1024 tokens over a vocabulary of 50,000 take 200
MB, and their softmax as much again. `token_log_likelihood` therefore goes through the vocabulary in chunks with a
running logsumexp. It always computes in float32, whatever the precision of the other layers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etpo_core.errors import UserError
from etpo_paper.model.output import causal_model, output_weight

LogLikelihood = Callable[[Tensor, int], Tensor]
"""Maps (tokens int64 [T], first >= 1) to the log-likelihoods of tokens[first:], float32 [T - first]."""


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of a model on a text.

    Attributes:
        tokens: number of scored tokens N.
        nll: mean negative log-likelihood per token, in nats.
    """

    tokens: int
    nll: float

    @property
    def perplexity(self) -> float:
        """exp(nll): 1 for a model that is always certain and right, |V| for a uniform one."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


def windows(length: int, window: int, stride: int, tokens: int | None = None) -> list[tuple[int, int, int]]:
    """Places the windows on a text and says which of their tokens are scored.

    Args:
        length: number of tokens in the text.
        window: number of tokens in a window, W.
        stride: number of tokens from one window to the next, S, with 1 <= S < W.
        tokens: approximate number of tokens to score, in whole windows spread over the text; None scores all.

    Returns:
        (begin, first, end) for each window: the model reads the tokens begin:end, and first:end are scored. With
        `tokens` None the scored parts are disjoint and cover 1:length. The first token of the text has no context
        and is not scored.

    Raises:
        UserError: the window, the stride or the text is too short.
    """
    if window < 2 or not 1 <= stride < window:
        raise UserError(f"perplexity: window {window} and stride {stride} do not fit; expected 1 <= stride < window")
    if length < 2:
        raise UserError(f"perplexity: a text of {length} tokens has nothing to score; give it at least 2")
    places, first = [], 1
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        places.append((begin, first, end))
        first = end
        if end == length:
            break
    if tokens is None:
        return places
    wanted = min(len(places), max(1, round(tokens / stride)))
    return [places[(2 * i + 1) * len(places) // (2 * wanted)] for i in range(wanted)]


def perplexity(
    log_likelihood: LogLikelihood,
    tokens: Tensor,
    window: int,
    stride: int,
    limit: int | None = None,
    progress: Callable[[list], Sequence] = list,
) -> Perplexity:
    """Measures the perplexity of a model on a text.

    Args:
        log_likelihood: the model; `causal_log_likelihood` makes one from a model of transformers.
        tokens: the text, int64 [length].
        window: see `windows`.
        stride: see `windows`.
        limit: approximate number of tokens to score, spread over the text; None scores all.
        progress: wraps the list of windows, e.g. tqdm.

    Raises:
        UserError: see `windows`.
    """
    total, count = 0.0, 0
    for begin, first, end in progress(windows(len(tokens), window, stride, limit)):
        scores = log_likelihood(tokens[begin:end], first - begin)
        total += scores.double().sum().item()
        count += end - first
    return Perplexity(count, -total / count)


@torch.no_grad()
def token_log_likelihood(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 4096) -> Tensor:
    """Computes log softmax(hidden @ weight.T)[targets] without the [N, V] matrix of logits.

    Args:
        hidden: [N, H], last hidden states in any float type; the products are computed in float32.
        weight: [V, H], the output layer.
        targets: int64 [N], in 0..V-1.
        chunk: number of vocabulary entries at a time; the largest temporary tensor is float32 [N, chunk].

    Returns:
        float32 [N].
    """
    hidden = hidden.float()
    running = hidden.new_full((len(hidden),), -math.inf)
    for begin in range(0, len(weight), chunk):
        part = slice(begin, begin + chunk)
        logits = hidden @ weight[part].float().T
        running = torch.logaddexp(running, logits.logsumexp(-1))
    taken = (hidden * weight[targets].float()).sum(-1)
    return taken - running


def causal_log_likelihood(model: Any, start: Sequence[int] = ()) -> LogLikelihood:
    """Makes a `LogLikelihood` from a causal language model of transformers.

    Args:
        model: e.g. a LlamaForCausalLM, or a PeftModel around one.
        start: tokens that stand before every window and are never scored, such as the <s> of some tokenizers.

    Raises:
        UserError: the model has a head that is not one matrix (see `output`); or, raised by the returned function, a
            window is longer than the model's context.
    """
    weight, network = output_weight(model), causal_model(model)
    context = getattr(network.config, "max_position_embeddings", None)
    prefix = torch.tensor(list(start), dtype=torch.long)

    @torch.no_grad()
    def log_likelihood(tokens: Tensor, first: int) -> Tensor:
        if context and len(prefix) + len(tokens) > context:
            raise UserError(
                f"perplexity: a window of {len(prefix) + len(tokens)} tokens is longer than the model's "
                f"context of {context}; lower perplexity.window in params.yaml"
            )
        ids = torch.cat([prefix, tokens]).to(weight.device)
        hidden = network.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        offset = len(prefix) + first
        return token_log_likelihood(hidden[offset - 1 : -1], weight, ids[offset:]).cpu()

    return log_likelihood
