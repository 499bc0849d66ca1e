"""Sampling actions: an incremental decoder for Llama-shaped models, and exact sampling from it.

To write the next token of every sequence, a decoder reads all weights of the model once, and what attention has
seen so far. `LlamaDecoder` keeps its own copy of the weights for this, with the policy's adapter merged in, in the
layout that the machine multiplies fastest; the trainer's model stays untouched. Keys and values are held in two
parts: those of the prompts, once for all sequences that share a prompt, and those of the tokens written since,
which have a column a token in every sequence - so prompts of different lengths cost no padding there.
`TransformersDecoder` does the same through the model's own key-value cache, for every other architecture and as the
reference in tests.

`sample` writes a batch of actions with either. It draws tokens by inverting the cumulative distribution with one
uniform number a token, returns the log-probability of each token under the very distribution that it was drawn from,
and drops sequences that have ended from the batch. `LlamaDecoder` takes several tokens of a sequence at once, so that
guesses (`drafts`) can be checked: where the token drawn is the one guessed, the next is drawn from the same pass.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etpo_paper.base import distributed
from etpo_paper.model import llama
from etpo_paper.model.drafts import Drafts

# Rows that a packed weight is laid out for. The layout for 16 is within 5 % of the best one from 1 to 512 rows.
_PACKED_FOR = 16
# Columns by which the cache of the tokens written grows.
_COLUMNS = 16
# Elements of keys up to which the attention of one step is left to a single thread: about what it reads while
# another one is woken.
_SERIAL = 2**21
# Elements of a layer's prompt keys up to which a CPU attends in float32: small products start faster in it, large ones
# take longer.
_EXACT = 2**17
# Tokens that `draw` adds up before it looks closer.
_BLOCK = 256


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
    """Incremental decoding of a batch of sequences of different lengths.

    Attributes:
        takes_back: whether a sequence can be given several tokens at once, and the last ones be taken back.
    """

    takes_back: bool

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Reads the prompts and returns next-token logits [batch, vocabulary]."""

    def step(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Appends tokens to each sequence, to some perhaps none, and returns the logits behind each of them.

        Returns:
            [tokens of all sequences, vocabulary], those of the first sequence first.
        """

    def take_back(self, counts: Sequence[int]) -> None:
        """Takes the last tokens of each sequence back, as if they had not been appended."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all sequences but those at `rows`."""


def _shaped(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """The logits [batch, vocabulary] in float32 whose softmax is sampled; -inf where a token cannot be drawn."""
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    return logits


def next_token_distribution(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """The sampling distribution: softmax of logits / temperature over the `top_k` likeliest tokens (0: all).

    Args:
        logits: [batch, vocabulary], any float dtype; computed in float32.
        temperature: > 0.
        top_k: number of tokens kept, 0 keeps all; tokens as likely as the last one kept are kept as well.

    Returns:
        log-probabilities [batch, vocabulary] in float32; -inf where a token cannot be drawn.
    """
    return _shaped(logits, temperature, top_k).log_softmax(-1)


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Where the cumulative sum of weights passes the share `uniform` of the whole, and how far into that entry.

    Args:
        weights: [batch, n] in float64, not negative and not all 0.
        uniform: [batch] in [0, 1), float64.

    Returns:
        Indices [batch, 1] of entries that are not 0, and the share of the entry that lies below [batch], in [0, 1).
    """
    cumulative = weights.cumsum(-1)
    # A number below 1 times the total is below the total, however it is rounded: such an entry exists.
    point = (uniform * cumulative[:, -1]).unsqueeze(-1)
    index = torch.searchsorted(cumulative, point, right=True)
    weight = weights.gather(-1, index)
    share = (point - cumulative.gather(-1, index) + weight) / weight
    return index, share.clamp(min=0.0).squeeze(-1)  # the sum before it may have been rounded up


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Inverts the cumulative distribution, in float64: first over blocks of tokens, then within one.

    Args:
        probabilities: [batch, vocabulary] in float32; 0 marks tokens that cannot be drawn.
        uniform: [batch] in [0, 1), float64.

    Returns:
        Token ids [batch].
    """
    missing = -probabilities.shape[-1] % _BLOCK
    padded = F.pad(probabilities, (0, missing)) if missing else probabilities
    blocks = padded.view(len(padded), -1, _BLOCK)
    block, rest = _invert(blocks.sum(-1).double(), uniform)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, 1, _BLOCK)).squeeze(1)
    return (block * _BLOCK + _invert(inside.double(), rest)[0]).squeeze(-1)


class _Uniform:
    """The uniform numbers of a batch of `count` rows: one for each token of each, whenever it is drawn.

    They are drawn for every row and every step of the longest action, so that an action depends on the generator's
    state and on its row only, not on when the other rows end or how well they were guessed. Where several processes
    share the work, these are numbers for the rows of all of them, as one process would draw them.
    """

    def __init__(self, generator: torch.Generator, count: int):
        self.generator, self.count = generator, count
        self.numbers: list[Tensor] = []  # of each step, for the own rows
        self.states = [generator.get_state()]  # of the generator after so many steps

    def at(self, steps: Sequence[int], rows: Sequence[int]) -> Tensor:
        """The numbers [n] in [0, 1) of n pairs of a step and a row, in float64."""
        while len(self.numbers) <= max(steps):
            numbers = torch.rand(self.count * distributed.size(), generator=self.generator, dtype=torch.float64)
            self.numbers.append(distributed.share(numbers))
            self.states.append(self.generator.get_state())
        return torch.stack(self.numbers)[list(steps), list(rows)]

    def end(self, steps: int) -> None:
        """Leaves the generator as if numbers had been drawn for so many steps only."""
        self.generator.set_state(self.states[steps])


@torch.inference_mode()
def sample(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    end_token: int,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int = 0,
    ended: Callable[[int, Sampled], None] | None = None,
    drafts: Drafts | None = None,
) -> list[Sampled]:
    """Samples one action for each prompt.

    Args:
        decoder: reads the prompts and yields logits.
        prompts: token ids of each prompt, of any lengths.
        end_token: id that ends an action.
        max_new_tokens: length at which an action is cut off.
        generator: CPU generator of the uniform numbers, one a token.
        temperature: of sampling, > 0.
        top_k: sample among the k likeliest tokens, 0 = all.
        ended: called with the number of a prompt and its action as soon as that is complete.
        drafts: guesses tokens, which changes nothing but the time; None for one token a pass, as with decoders that
            cannot take a guess back.
    """
    drafts = drafts if decoder.takes_back else None
    actions = [_Writing() for _ in prompts]
    uniform = _Uniform(generator, len(prompts))
    rows = list(range(len(prompts)))  # of `prompts`, in the decoder's batch
    guesses: list[list[int] | None] = [[] for _ in rows]  # that the logits are behind; None for a row that has ended
    logits = decoder.prefill(prompts)
    while True:
        # A line of logits for what follows the last token drawn, and one behind each token of a guess.
        lines = [
            (row, len(actions[row].tokens) + i)
            for row, guess in zip(rows, guesses, strict=True)
            if guess is not None
            for i in range(len(guess) + 1)
        ]
        numbers = uniform.at([step for _, step in lines], [row for row, _ in lines]).to(logits.device)
        probabilities = _shaped(logits, temperature, top_k).softmax(-1)
        token = draw(probabilities, numbers)
        log_prob = probabilities.gather(-1, token.unsqueeze(-1)).squeeze(-1).log()
        drawn = iter(zip(token.tolist(), log_prob.tolist(), strict=True))
        unused = []
        for row, guess in zip(rows, guesses, strict=True):
            if guess is None:
                unused.append(0)
                continue
            action, right = actions[row], 0
            of_row = [next(drawn) for _ in range(len(guess) + 1)]
            for i, (new, value) in enumerate(of_row):
                action.append(new, value, new == end_token)
                if action.finished or len(action.tokens) == max_new_tokens or i == len(guess) or new != guess[i]:
                    break
                right += 1
            unused.append(len(guess) - right)
            action.running = not action.finished and len(action.tokens) < max_new_tokens
            if ended is not None and not action.running:
                ended(row, action.sampled())
        running = [i for i, row in enumerate(rows) if actions[row].running]
        if not running:
            break
        if any(unused):
            decoder.take_back(unused)
        # A step costs little less for a few rows less: rows are dropped once a quarter of them has ended.
        if 4 * len(running) <= 3 * len(rows):
            decoder.keep(running)
            rows = [rows[i] for i in running]
        guesses = [_guess(drafts, actions[row], max_new_tokens) if actions[row].running else None for row in rows]
        fed = [
            [] if guess is None else [actions[row].tokens[-1], *guess] for row, guess in zip(rows, guesses, strict=True)
        ]
        logits = decoder.step(fed)
    uniform.end(max(len(action.tokens) for action in actions))
    return [action.sampled() for action in actions]


class _Writing:
    """An action while it is being written."""

    def __init__(self):
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.finished, self.running = False, True

    def append(self, token: int, log_prob: float, last: bool) -> None:
        """Adds a token."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.finished = last

    def sampled(self) -> Sampled:
        """The action as it is now."""
        return Sampled(tuple(self.tokens), tuple(self.log_probs), self.finished)


def _guess(drafts: Drafts | None, action: _Writing, max_new_tokens: int) -> list[int]:
    """Tokens that may follow; after the last of them there is at least one more to draw."""
    return [] if drafts is None else drafts.guess(action.tokens, max_new_tokens - len(action.tokens) - 1)


class TransformersDecoder:
    """Decoding through a transformers model's own cache; any causal architecture."""

    takes_back = False

    def __init__(self, model: nn.Module):
        self.model = model
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder.prefill`; prompts are padded on the left."""
        longest = max(map(len, prompts))
        # Padding is told by position, never by token value: any id may stand there.
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=self.device)
        padding = torch.tensor([longest - len(p) for p in prompts], device=self.device)
        positions = torch.arange(longest, device=self.device) - padding[:, None]
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

    @torch.inference_mode()
    def step(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder.step`: at most one token a sequence; what follows a sequence that was given none is lost."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        self.position = self.position + 1
        given = [len(t) > 0 for t in tokens]
        out = self.model(
            input_ids=torch.tensor([t[:1] or [0] for t in map(list, tokens)], device=self.device),
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.past_key_values
        return out.logits[given, -1]

    def take_back(self, counts: Sequence[int]) -> None:
        """See `Decoder.take_back`."""
        raise NotImplementedError("a transformers cache cannot take back other numbers of tokens of each sequence")

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """See `Decoder.keep`."""
        index = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(index)
        self.mask, self.position = self.mask[index], self.position[index]


def _product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The function x -> x W^T, with W in the layout that the machine multiplies fastest."""
    packs = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not packs or weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return lambda x: F.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
    linear = torch.ops.mkldnn._linear_pointwise.default  # named here, it need not be looked up in every call
    return lambda x: linear(x, packed, None, "none", [], "")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Runs what is inside on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; at least the last token of each prompt is left out.

    (The state behind a prompt's last token is the one that the first action token is drawn from.)
    """
    # What the first and the last in order share is shared by all between them.
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


class LlamaDecoder:
    """A bare decoder for models of the Llama architecture (`llama.fits`), with its own merged copy of the weights.

    Keys and values of the tokens written lie one column a token for each sequence; a token that is taken back leaves
    its column to the next one.

    Args:
        model: a `LlamaForCausalLM`, plain or wrapped by peft.
        dtype: of the copied weights and of the products.
        adapter: as in `load`.
    """

    takes_back = True

    def __init__(self, model: nn.Module, dtype: torch.dtype, adapter: str | None = None):
        causal = llama.causal_model(model)
        self.model, self.body, self.dtype, self.shape = model, causal.model, dtype, llama.shape(model)
        self.device = causal.lm_head.weight.device
        self.head = _product(causal.lm_head.weight.detach().to(dtype))
        # x / sqrt(mean(x^2) + epsilon) = sqrt(H) x / sqrt(|x|^2 + H epsilon): the norm in fewer operations.
        size = causal.config.hidden_size
        self.root, self.least = size**0.5, torch.tensor((size * self.shape.epsilon) ** 0.5, device=self.device)
        self.norm = self.body.norm.weight.detach().float() * self.root
        self.load(adapter)

    def load(self, adapter: str | None) -> None:
        """Copies the weights again, with LoRA adapter `adapter` merged in (None: the frozen base)."""
        self.layers = []  # the old copy goes before the new one comes
        for layer in llama.layers(self.model, self.dtype, adapter):
            products = {name: _product(getattr(layer, name)) for name in ("qkv", "out", "gate_up", "down")}
            norms = {name: getattr(layer, name) * self.root for name in ("norm_1", "norm_2")}
            self.layers.append(layer._replace(**products, **norms))

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm of rows [n, H], computed in float32; `weight` is scaled by sqrt(H)."""
        size = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.least)
        return (x / size).mul_(weight).to(self.dtype)

    def _run(self, ids: Tensor, positions: Tensor, attention: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The residual stream [T, H] behind all layers, in float32.

        Args:
            ids: token ids [T].
            positions: of each token in its sequence [T].
            attention: takes the number of a layer and its heads [T, heads + 2 kv_heads, width] - queries, scaled, keys
                and values, in `cache_dtype` - and returns what each token gathered [T, heads * width].
        """
        x, half = self.body.embed_tokens(ids).float(), self.shape.width // 2
        cos, sin = (t[0].unsqueeze(1) for t in self.body.rotary_emb(x, positions[None]))
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        # Rotating queries and keys and scaling the queries are one operation; it leaves the values as they are.
        heads = [self.shape.heads, self.shape.kv_heads, self.shape.kv_heads]
        factors = zip(heads, (self.shape.width**-0.5, 1.0, 0.0), strict=True)
        turns = [(cos * f if f else torch.ones_like(cos), sin * f, n) for n, f in factors]
        cos = torch.cat([c.expand(-1, n, -1) for c, _, n in turns], dim=1).to(self.cache_dtype)
        sin = torch.cat([s.expand(-1, n, -1) for _, s, n in turns], dim=1).to(self.cache_dtype)
        for i, layer in enumerate(self.layers):
            h = layer.qkv(self._normed(x, layer.norm_1)).to(self.cache_dtype).view_as(cos)
            x += layer.out(attention(i, (h * cos).addcmul_(h.roll(half, -1), sin)).to(self.dtype))
            gate, up = layer.gate_up(self._normed(x, layer.norm_2)).chunk(2, dim=-1)
            x += layer.down(F.silu(gate, inplace=True).mul_(up))
        return x

    def _logits(self, x: Tensor) -> Tensor:
        """Next-token logits [n, vocabulary] of rows of the residual stream [n, H]."""
        return self.head(self._normed(x, self.norm))

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder.prefill`; equal prompts are read once, and so is what all prompts begin with."""
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        self.prompts = [distinct.index(tuple(p)) for p in prompts]  # which of the distinct prompts each row has
        self.lengths = [len(p) for p in distinct]
        shared = shared_length(distinct) if len(distinct) > 1 else 0
        ends = [p[shared:] for p in distinct]
        # The products run over all tokens one after another, attention over one prompt after another: no padding.
        ids = self._index([*distinct[0][:shared], *(token for end in ends for token in end)])
        positions = self._index([*range(shared), *(shared + i for end in ends for i in range(len(end)))])
        stops = list(itertools.accumulate(map(len, ends), initial=shared))
        heads_of = [self.shape.heads, self.shape.kv_heads, self.shape.kv_heads]
        longest = max(self.lengths)
        # Of keys, values and scores.
        size = len(distinct) * longest * self.shape.kv_heads * self.shape.width
        self.cache_dtype = torch.float32 if self.device.type == "cpu" and size <= _EXACT else self.dtype
        unseen = torch.full((longest, longest), float("-inf"), dtype=self.cache_dtype, device=self.device).triu(1)
        self.keys, self.values = [], []  # of the distinct prompts, a layer each: [kv_heads, distinct, longest, width]

        def attention(_: int, heads: Tensor) -> Tensor:
            q, k, v = heads.unsqueeze(0).split(heads_of, dim=2)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
            gathered = []
            if shared:
                first = (t[:, :, :shared] for t in (k, v))
                gathered.append(llama.attend(q[:, :shared], *first, unseen[:shared, :shared])[0])
            cache = heads.new_zeros(2, self.shape.kv_heads, len(ends), longest, self.shape.width)
            for row, (start, stop) in enumerate(itertools.pairwise(stops)):
                own = [torch.cat([t[:, :, :shared], t[:, :, start:stop]], dim=2) for t in (k, v)]
                length = own[0].shape[2]
                cache[:, :, row, :length] = torch.cat(own)
                gathered.append(llama.attend(q[:, start:stop], *own, unseen[shared:length, :length])[0])
            self.keys.append(cache[0])
            self.values.append(cache[1])
            return torch.cat(gathered)

        x = self._run(ids, positions, attention)
        # Keys, then values of what is written from here on, a layer each: [2 kv_heads, batch, columns, width].
        empty = x.new_zeros(2 * self.shape.kv_heads, len(prompts), _COLUMNS, self.shape.width, dtype=self.cache_dtype)
        self.new = [empty.clone() for _ in self.layers]
        self.written = [0] * len(prompts)  # columns of each sequence that are in use
        self._arrange()
        last = self._index(stops[1:]) - 1
        return self._logits(x[last])[self._index(self.prompts)]

    def _arrange(self) -> None:
        """Lays the prompts' keys and values out for the rows that are left.

        Rows with the same prompt read one copy of it: a block of rows is one product. Blocks have the same number of
        places, so a prompt that many rows share may fill several, and a last place may stay unused.
        """
        members: dict[int, list[int]] = {}
        for row, prompt in enumerate(self.prompts):
            members.setdefault(prompt, []).append(row)

        def blocks(places: int) -> list[tuple[int, list[int]]]:
            starts = ((p, rows, i) for p, rows in members.items() for i in range(0, len(rows), places))
            return [(p, rows[i : i + places]) for p, rows, i in starts]

        # Reading a prompt costs about as much as multiplying it with the queries of four rows.
        places = min(range(1, len(self.prompts) + 1), key=lambda n: len(blocks(n)) * (n + 4))
        chosen = blocks(places)
        self.blocks, self.seen = len(chosen), max(self.lengths[p] for p in members)
        held = [row for _, rows in chosen for row in rows + rows[:1] * (places - len(rows))]
        # Which row each place holds and at which place each row is; None where that is the same.
        ordered = held == list(range(len(self.prompts)))
        self.held = None if ordered else self._index(held)
        self.place = None if ordered else self._index([held.index(row) for row in range(len(self.prompts))])

        read = [p for p, _ in chosen]
        whole = read == list(range(len(self.lengths))) and self.seen == max(self.lengths)
        index = self._index(read)
        self.read_keys, self.read_values = (
            cache if whole else [t[:, :, : self.seen].index_select(1, index) for t in cache]
            for cache in (self.keys, self.values)
        )
        # What is added to scores: -inf behind the end of a prompt, for each pair of head and block.
        beyond = torch.arange(self.seen, device=self.device) >= self._index([self.lengths[p] for p in read])[:, None]
        mask = torch.zeros(beyond.shape, dtype=self.cache_dtype, device=self.device).masked_fill_(beyond, float("-inf"))
        self.ended = mask.repeat(self.shape.kv_heads, 1).unsqueeze(1)

    def _gather(self, i: int, heads: Tensor, place: "_Place") -> Tensor:
        """Attention of layer `i` in one step: writes keys and values of the new tokens, gathers from all before them.

        heads: as in `_run`, the new tokens of the first sequence first; returns [T, heads * width].
        """
        batch, kv_heads, width = len(self.written), self.shape.kv_heads, self.shape.width
        group = self.shape.heads // kv_heads
        self.new[i][:, place.rows, place.columns] = heads[:, self.shape.heads :].transpose(0, 1)
        keys, values = (t.flatten(0, 1) for t in self.new[i].chunk(2))
        queries = heads[:, : self.shape.heads]
        if place.of_tokens is not None:  # sequences have different numbers of new tokens: fill up
            filled = queries.new_zeros(batch * place.most, *queries.shape[1:])
            queries = filled.index_copy_(0, place.of_tokens, queries)
        # The lines of a sequence: its new tokens for each of the heads that share keys.
        lines = group * place.most
        queries = queries.view(batch, place.most, kv_heads, group, width).permute(2, 0, 3, 1, 4)
        queries = queries.reshape(kv_heads, batch, lines, width)

        def to_places(t: Tensor) -> Tensor:
            """[kv_heads, batch, lines, n] as the products with the prompts want it."""
            t = t if self.held is None else t.index_select(1, self.held)
            return t.reshape(kv_heads * self.blocks, -1, t.shape[-1])

        def to_rows(t: Tensor) -> Tensor:
            t = t.view(kv_heads, -1, lines, t.shape[-1])
            return t if self.place is None else t.index_select(1, self.place)

        read_keys, read_values = self.read_keys[i].flatten(0, 1), self.read_values[i].flatten(0, 1)
        of_prompt = to_rows(torch.baddbmm(self.ended, to_places(queries), read_keys.transpose(1, 2)))
        of_new = torch.baddbmm(place.unseen, queries.flatten(0, 1), keys.transpose(1, 2))
        scores = torch.cat([of_prompt, of_new.view(kv_heads, batch, lines, -1)], dim=-1)
        weights = scores.softmax(-1)
        from_prompt = to_rows(to_places(weights[..., : self.seen]) @ read_values)
        gathered = torch.baddbmm(from_prompt.flatten(0, 1), weights[..., self.seen :].flatten(0, 1), values)
        gathered = gathered.view(kv_heads, batch, group, place.most, width).permute(1, 3, 0, 2, 4)
        gathered = gathered.reshape(batch * place.most, -1)
        return gathered if place.of_tokens is None else gathered.index_select(0, place.of_tokens)

    @torch.inference_mode()
    def step(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder.step`."""
        counts = [len(t) for t in tokens]
        most, columns = max(counts), self.new[0].shape[2]
        if (beyond := max(w + c for w, c in zip(self.written, counts, strict=True)) - columns) > 0:
            more = -(-beyond // _COLUMNS) * _COLUMNS
            self.new, columns = [F.pad(t, (0, 0, 0, more)) for t in self.new], columns + more
        at = [(row, i) for row, count in enumerate(counts) for i in range(count)]
        # A new token sees the columns before it and its own. Lines that only fill up see something, too: a softmax
        # over nothing is no number.
        own = self._index(self.written)[:, None] + torch.arange(most, device=self.device)
        later = torch.arange(columns, device=self.device) > own[..., None]  # [batch, most, columns]
        unseen = torch.zeros(later.shape, dtype=self.cache_dtype, device=self.device).masked_fill_(later, float("-inf"))
        kv_heads, batch = self.shape.kv_heads, len(tokens)
        unseen = unseen[None, :, None].expand(kv_heads, -1, self.shape.heads // kv_heads, -1, -1)
        place = _Place(
            rows=self._index([row for row, _ in at]),
            columns=self._index([self.written[row] + i for row, i in at]),
            most=most,
            of_tokens=None if min(counts) == most else self._index([row * most + i for row, i in at]),
            unseen=unseen.reshape(kv_heads * batch, -1, columns),
        )
        positions = self._index([self.lengths[self.prompts[row]] + self.written[row] + i for row, i in at])
        size = self.read_keys[0].numel() + self.new[0].numel() // 2
        alone = self.device.type == "cpu" and size * most <= _SERIAL

        def attention(i: int, heads: Tensor) -> Tensor:
            with _threads(1) if alone else nullcontext():
                return self._gather(i, heads, place)

        logits = self._logits(self._run(self._index([t for row in tokens for t in row]), positions, attention))
        self.written = [w + c for w, c in zip(self.written, counts, strict=True)]
        return logits

    def take_back(self, counts: Sequence[int]) -> None:
        """See `Decoder.take_back`."""
        self.written = [w - c for w, c in zip(self.written, counts, strict=True)]

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """See `Decoder.keep`."""
        index = self._index(rows)
        self.new = [t.index_select(1, index) for t in self.new]
        self.prompts, self.written = [self.prompts[row] for row in rows], [self.written[row] for row in rows]
        self._arrange()


@dataclass(frozen=True)
class _Place:
    """Where the new tokens of one step belong.

    Attributes:
        rows: the sequence of each [T].
        columns: the column of each [T].
        most: new tokens of the sequence that has most.
        of_tokens: place of each [T] among batch x most; None where every sequence has as many.
        unseen: what is added to scores [kv_heads * batch, lines, columns]: -inf where a token may not look.
    """

    rows: Tensor
    columns: Tensor
    most: int
    of_tokens: Tensor | None
    unseen: Tensor
