"""Perplexity of a language model on a long text, in overlapping windows.

Perplexity is exp of the mean negative log-likelihood a token, -1/N Σ_j log p(w^j | w^{<j}) (natural
logarithm). A model sees at most a window of W tokens at once, so the text is read in windows that begin
every S tokens (the stride): each one scores only the tokens that the window before it has not reached, with
at least W - S tokens of context before them. Every scored token has the same weight, whichever window it
fell into. Where fewer tokens are asked for than the text has, the windows are spread evenly over the text,
so that one document cannot decide the number. Two perplexities compare only for the same text, tokeniser,
window and stride.

The head of a language model is wide: a float32 matrix of W x |V| logits for |V| = 50,000 and W = 1024 takes
200 MB, and its softmax as much again. `token_log_likelihood` goes through the vocabulary in chunks with a
running logsumexp, and always in float32, whatever type the body computes in.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from etpo_core.errors import UserError

LogLikelihood = Callable[[Tensor, int], Tensor]
"""(tokens int64 [T], first) -> log p of tokens[first:], float32 [T - first]; first is at least 1."""


@dataclass(frozen=True)
class Perplexity:
    """What was measured.

    Attributes:
        tokens: number of scored tokens N.
        nll: mean negative log-likelihood a token, in nats.
    """

    tokens: int
    nll: float

    @property
    def perplexity(self) -> float:
        """exp(nll): 1 for a model that is always certain and right, |V| for a uniform one."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


def windows(length: int, window: int, stride: int, tokens: int | None = None) -> list[tuple[int, int, int]]:
    """Where the windows lie in a text, and which of their tokens are scored.

    Args:
        length: tokens in the text.
        window: tokens a window holds, W.
        stride: tokens from one window to the next, S, with 1 <= S < W.
        tokens: score about so many tokens (whole windows), spread over the text; None scores the whole text.

    Returns:
        (begin, first, end) a window: the model reads begin:end and first:end are scored. Over the whole text
        the scored parts are disjoint and cover 1:length; the first token has no context and is not scored.

    Raises:
        UserError: when the window, the stride or the text is too short.
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
    """The perplexity of a text.

    Args:
        log_likelihood: the model, see `LogLikelihood`; `causal_log_likelihood` makes one of a HF model.
        tokens: the text, int64 [length].
        window: tokens a model sees at once.
        stride: tokens from one window to the next.
        limit: score about so many tokens, spread over the text; None scores all.
        progress: wraps the list of windows, e.g. tqdm.

    Raises:
        UserError: as `windows`.
    """
    total, count = 0.0, 0
    for begin, first, end in progress(windows(len(tokens), window, stride, limit)):
        scores = log_likelihood(tokens[begin:end], first - begin)
        total += scores.double().sum().item()
        count += end - first
    return Perplexity(count, -total / count)


@torch.no_grad()
def token_log_likelihood(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, chunk: int = 4096
) -> Tensor:
    """log softmax(hidden @ weight.T + bias)[targets] without the [N, V] matrix.

    Args:
        hidden: last hidden states, [N, H], any float type; they are multiplied in float32.
        weight: the head, [V, H].
        targets: int64 [N], in 0..V-1.
        bias: [V] or None.
        chunk: vocabulary entries at a time; the largest temporary is [N, chunk] float32.

    Returns:
        float32 [N].
    """
    hidden = hidden.float()
    running = hidden.new_full((len(hidden),), -math.inf)
    for begin in range(0, len(weight), chunk):
        part = slice(begin, begin + chunk)
        logits = hidden @ weight[part].float().T
        if bias is not None:
            logits += bias[part].float()
        running = torch.logaddexp(running, logits.logsumexp(-1))
    taken = (hidden * weight[targets].float()).sum(-1)
    if bias is not None:
        taken = taken + bias[targets].float()
    return taken - running


def causal_log_likelihood(model, start: Sequence[int] = ()) -> LogLikelihood:
    """A causal language model of transformers (with or without a peft adapter) as a `LogLikelihood`.

    Args:
        model: e.g. LlamaForCausalLM, or a PeftModel around one, whose logits are head(hidden states).
        start: tokens put before every window and never scored: the <s> of tokenisers that have one.

    Raises:
        UserError: from the returned function, when a window is longer than the model's context.
    """
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, head = network.get_decoder(), network.get_output_embeddings()
    context = getattr(network.config, "max_position_embeddings", None)
    device = head.weight.device
    prefix = torch.tensor(list(start), dtype=torch.long)

    @torch.no_grad()
    def log_likelihood(tokens: Tensor, first: int) -> Tensor:
        if context and len(prefix) + len(tokens) > context:
            raise UserError(
                f"perplexity: a window of {len(prefix) + len(tokens)} tokens is longer than the model's "
                f"context of {context}; lower perplexity.window in params.yaml"
            )
        ids = torch.cat([prefix, tokens]).to(device)
        hidden = decoder(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        offset = len(prefix) + first
        scores = token_log_likelihood(hidden[offset - 1 : -1], head.weight, ids[offset:], getattr(head, "bias", None))
        return scores.cpu()

    return log_likelihood


def paired_runs(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Each trained policy beside the model it came from.

    Args:
        rows: evaluations/{scale}/perplexity.csv, as `results.load_perplexity` reads it.

    Returns:
        A row a run and corpus: method, task, seed, corpus, tokens, nll, and beside them base and reference (their
        nll) and change (of perplexity, after / before - 1); and how many rows were left out because they were
        measured on another text or with other windows than the reference is now.
    """
    rows = rows.copy()
    # The end of a key names text, window and precision; without keys there is nothing to tell rows apart by.
    rows["text"] = rows["key"].astype(str).str.rsplit("-", n=1).str[-1] if "key" in rows else ""
    place = ["corpus", "text"]
    base = rows.loc[rows["model"] == "base", [*place, "nll"]].rename(columns={"nll": "base"})
    own = rows.loc[rows["model"] == "reference", place].merge(base, "left", place)
    runs = rows[~rows["model"].isin(["base", "reference"])]
    paired = runs.rename(columns={"model": "method", "before_nll": "reference"}).merge(own, on=place)
    paired["change"] = np.expm1((paired["nll"] - paired["reference"]).astype(float))
    names = "method task seed corpus tokens nll base reference change"
    return paired[names.split()], len(runs) - len(paired)


def before_and_after(paired: pd.DataFrame) -> pd.DataFrame:
    """What training changed, by method and text.

    Args:
        paired: of `paired_runs`.

    Returns:
        A row a method and corpus, over its runs: method, corpus, runs, tokens (scored in each), base (perplexity
        before the warm start), before (of the reference), after (exp of the mean nll), change (after / before - 1),
        change_low and change_high (the least and the most that a run changed).
    """
    table = []
    for (method, corpus), group in paired.groupby(["method", "corpus"]):
        before, after = group["reference"].mean(), group["nll"].mean()
        table.append(
            {
                "method": method,
                "corpus": corpus,
                "runs": len(group),
                "tokens": int(group["tokens"].iloc[0]),
                "base": math.exp(group["base"].mean()),
                "before": math.exp(before),
                "after": math.exp(after),
                "change": math.expm1(after - before),
                "change_low": group["change"].min(),
                "change_high": group["change"].max(),
            }
        )
    names = "method corpus runs tokens base before after change change_low change_high"
    return pd.DataFrame(table, columns=names.split())
