"""Sampling actions: a fast decoder for Llama-shaped models, and exact sampling from any decoder.

To write the next token of every sequence, a decoder reads all weights of the model once, and the keys and values of
all tokens before it. `LlamaDecoder` keeps its own copy of the weights for this, with the policy's adapter merged in, in
the layout that the machine multiplies fastest; the model that is trained stays as it is. Its cache has two parts. The
keys and values of a prompt are held once for all sequences that share the prompt. Those of the tokens written since
take one column a token in each sequence, so prompts of different lengths need no padding there. `TransformersDecoder`
uses the model's own key-value cache. It serves every other architecture, and is the reference in tests.

`sample` writes a batch of actions with either decoder. It draws each token by inverting the cumulative distribution at
one uniform number, returns the token's log-probability under the very distribution that it was drawn from, and drops
sequences that have ended from the batch. `LlamaDecoder` accepts several tokens of a sequence at once, so that guesses
(`drafts`) can be checked: where the token drawn equals the guess, the next token is drawn from the same pass.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etpo_core.errors import UserError
from etpo_paper.base import distributed
from etpo_paper.model import llama
from etpo_paper.model.drafts import Drafts
from etpo_paper.model.loading import first_line
from etpo_paper.model.output import causal_model
from etpo_paper.model.trunk import Part, Passed, Trunk, threads

# The cache of the tokens written grows by so many columns at a time.
_COLUMNS = 16
# If one step's attention reads at most so many keys, a single thread does it: waking another one would take as long.
_SERIAL = 2**21
# Up to so many key elements of the prompts in a layer, a CPU computes attention in float32, whose small products start
# faster. Larger products are faster in the dtype of the weights.
_EXACT = 2**17
# `draw` finds a block of so many tokens first, then the token within it.
_BLOCK = 256


@dataclass(frozen=True)
class Sampled:
    """One sampled action.

    Attributes:
        tokens: token ids, the end token included when the model produced it.
        log_probs: log-probability of each token under the distribution that it was drawn from.
        finished: True if it ended with an end token or by a stop rule, False if it reached the length limit.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finished: bool


class Decoder(Protocol):
    """Incremental decoding of a batch of sequences of different lengths.

    Attributes:
        takes_back: whether `step` accepts several tokens of a sequence, and `take_back` can remove the last ones.
    """

    takes_back: bool

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Reads the prompts and returns next-token logits [batch, vocabulary]."""

    def step(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Appends tokens to the sequences, to some of them perhaps none.

        Returns:
            [appended tokens, vocabulary] the logits behind each appended token, those of the first sequence first.
        """

    def take_back(self, counts: Sequence[int]) -> None:
        """Removes the last tokens of each sequence, so many of each, as if they had never been appended."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all sequences but those at `rows`."""


def _shaped(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """The logits whose softmax is sampled: divided by the temperature, and cut to the `top_k` likeliest tokens.

    Args:
        logits: [batch, vocabulary], any floating dtype.
        temperature: > 0.
        top_k: number of tokens kept, 0 for all. Tokens as likely as the last one kept are kept as well.

    Returns:
        [batch, vocabulary] in float32; -inf for a token that cannot be drawn.
    """
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    return logits


def _invert(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The entry in which the cumulative sum of the weights reaches a given share of their total.

    Args:
        weights: [batch, n] in float64, at least 0 and not all 0.
        uniform: [batch] the share, in [0, 1), float64.

    Returns:
        Indices [batch, 1] of entries above 0, and which part of the entry lies below that point [batch], in [0, 1).
    """
    cumulative = weights.cumsum(-1)
    # A number below 1 times the total stays below the total after rounding, so there is such an entry.
    point = (uniform * cumulative[:, -1]).unsqueeze(-1)
    index = torch.searchsorted(cumulative, point, right=True)
    weight = weights.gather(-1, index)
    share = (point - cumulative.gather(-1, index) + weight) / weight
    return index, share.clamp(min=0.0).squeeze(-1)  # the sum before it may have been rounded up


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Draws a token for each row by inverting the cumulative distribution in float64.

    Args:
        probabilities: [batch, vocabulary] in float32; 0 for a token that cannot be drawn.
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
    """The uniform numbers of a batch of `count` rows: one for each token of each row.

    A number is drawn for every row in every step of the longest action. An action therefore depends on the generator's
    state and on its own row alone, not on when other rows end or how well their tokens were guessed. Where several
    processes share a batch, each draws the numbers for the rows of all of them and uses its own.
    """

    def __init__(self, generator: torch.Generator, count: int):
        self.generator, self.count = generator, distributed.together(count)
        self.share = list(distributed.share(range(self.count)))
        self.numbers: list[Tensor] = []  # of each step, for the rows of this process
        self.states = [generator.get_state()]  # of the generator after each number of steps

    def at(self, steps: Sequence[int], rows: Sequence[int]) -> Tensor:
        """The numbers [n] in [0, 1), in float64, of n pairs of a step and a row."""
        while len(self.numbers) <= max(steps):
            numbers = torch.rand(self.count, generator=self.generator, dtype=torch.float64)
            self.numbers.append(numbers[self.share])
            self.states.append(self.generator.get_state())
        return torch.stack(self.numbers)[list(steps), list(rows)]

    def end(self, steps: int) -> None:
        """Puts the generator into the state after so many steps."""
        self.generator.set_state(self.states[steps])


@torch.inference_mode()
def sample(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    end_token: int | Collection[int],
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int = 0,
    ended: Callable[[int, Sampled], None] | None = None,
    drafts: Drafts | None = None,
    stops: Callable[[Sequence[int]], bool] | None = None,
) -> list[Sampled]:
    """Samples one action for each prompt.

    Args:
        decoder: reads the prompts and yields logits.
        prompts: token ids of each prompt, of any lengths.
        end_token: the token id that ends an action, or several of them.
        max_new_tokens: length limit of an action.
        generator: CPU generator of the uniform numbers.
        temperature: of sampling, > 0.
        top_k: samples among the k likeliest tokens; 0 for all.
        ended: called with the number of a prompt and its action as soon as that action is complete.
        drafts: guesses tokens, which saves time and changes no token; None for one token in each pass. Not used with a
            decoder that cannot take tokens back.
        stops: says of the tokens of an action whether it ends with the last of them, as with an end token; None if
            end tokens alone end an action.

    Returns:
        The actions, in the order of the prompts.
    """
    drafts = drafts if decoder.takes_back else None
    ends = {end_token} if isinstance(end_token, int) else end_token
    actions = [_Writing() for _ in prompts]
    uniform = _Uniform(generator, len(prompts))
    rows = list(range(len(prompts)))  # which prompt each row of the decoder's batch belongs to
    # The guess whose logits were just computed, for each row; None for a row that has ended.
    guesses: list[list[int] | None] = [[] for _ in rows]
    logits = decoder.prefill(prompts)
    while True:
        # One line of logits behind the last token drawn, and one behind each token of the guess.
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
                action.append(new, value, new in ends or (stops is not None and stops([*action.tokens, new])))
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
        # A step with slightly fewer rows takes about as long, so rows are dropped once a quarter of them has ended.
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

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.finished, self.running = False, True

    def append(self, token: int, log_prob: float, last: bool) -> None:
        """Adds a token; `last` says whether it ends the action."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.finished = last

    def sampled(self) -> Sampled:
        """The action as it is now."""
        return Sampled(tuple(self.tokens), tuple(self.log_probs), self.finished)


def _guess(drafts: Drafts | None, action: _Writing, max_new_tokens: int) -> list[int]:
    """A guess of the next tokens, short enough that at least one more token is drawn behind it."""
    return [] if drafts is None else drafts.guess(action.tokens, max_new_tokens - len(action.tokens) - 1)


class TransformersDecoder:
    """Decoding with a transformers model's own cache, for any causal architecture."""

    takes_back = False
    # What `prefill` leaves and `step` moves on: the mask [batch, seen], the last position [batch, 1], and the cache.
    mask: Tensor
    position: Tensor
    cache: Any

    def __init__(self, model: nn.Module):
        self.model = model
        self.device = next(model.parameters()).device

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder.prefill`; prompts are padded on the left."""
        longest = max(map(len, prompts))
        # The mask says what is padding, so any token id may stand there.
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
        """See `Decoder.step`: at most one token of each sequence; a sequence without one cannot be continued."""
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
        raise NotImplementedError("a transformers cache cannot remove a different number of tokens from each sequence")

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """See `Decoder.keep`."""
        index = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(index)
        self.mask, self.position = self.mask[index], self.position[index]


@torch.inference_mode()
def check_decoding(model: nn.Module, ids: Sequence[int]) -> None:
    """Compares what `TransformersDecoder` computes of a model, token by token, with plain passes over the whole.

    Args:
        model: a causal language model of transformers.
        ids: at least eight token ids.

    Raises:
        UserError: the model has no cache of keys and values as the decoder needs it, or says something else with it.
    """
    kind, decoder = type(causal_model(model)).__name__, TransformersDecoder(model)

    def plain(*stops: int) -> Tensor:
        passes = [model(input_ids=torch.tensor([ids[:n]], device=decoder.device), use_cache=False) for n in stops]
        return torch.stack([out.logits[0, -1] for out in passes]).float()

    try:
        found = [decoder.prefill([ids[:3], ids[:6]]), decoder.step([[ids[3]], [ids[6]]])]
        decoder.keep([1])
        found.append(decoder.step([[ids[7]]]))
        off = torch.cat(found).float() - (expected := plain(3, 6, 4, 7, 8))
    except Exception as error:  # whatever a model raises that expects other arguments or keeps another cache
        raise UserError(
            f"{kind} cannot write token by token as other models do ({first_line(error)}); choose another model"
        ) from error
    # Rounding differs between a pass over one token and one over many, by the roots of the number of its steps.
    tolerance = torch.finfo(next(model.parameters()).dtype).eps ** 0.5 * expected.abs().max()
    if not off.abs().max() <= tolerance:
        raise UserError(
            f"{kind} says something else token by token than in one pass (its logits differ by {off.abs().max():.2g}); "
            "choose another model"
        )


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, the last token of each prompt not counted.

    The last token is left out because the first token of an action is drawn from the state behind it.
    """
    # Whatever the first and the last prompt in sorted order share, all prompts between them share as well.
    first, last = min(prompts, key=tuple), max(prompts, key=tuple)
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


class LlamaDecoder:
    """A fast decoder for models of the Llama architecture (`llama.fits`).

    In the cache of the tokens written, each token of a sequence has a column. The column of a token that was taken back
    is used again by the next one.

    Args:
        model: a `LlamaForCausalLM`, plain or wrapped by peft.
        dtype: of the products.
        adapter: as in `load`.
        trunk: the frozen weights of the model in that dtype, if something else holds them already.
        forward: makes a pass of a trunk for one part, perhaps together with those of other runs; None to make it alone.
    """

    takes_back = True

    def __init__(
        self,
        model: nn.Module,
        dtype: torch.dtype,
        adapter: str | None = None,
        trunk: Trunk | None = None,
        forward: Callable[[Trunk, Part], Passed] | None = None,
    ):
        self.model, self.dtype, self.shape = causal_model(model).model, dtype, llama.shape(model)
        self.trunk = trunk or Trunk(model, dtype)
        self.device = self.trunk.device
        self.forward = forward or (lambda trunk, part: trunk.forward([part])[0])
        self.load(adapter)

    @torch.no_grad()
    def load(self, adapter: str | None) -> None:
        """Takes the weights of a LoRA adapter as they are now; None for the frozen base."""
        self.updates = [llama.low_rank(layer, adapter, self.dtype) for layer in self.model.layers]
        self.lowest = next((i for i, update in enumerate(self.updates) if update), len(self.updates))

    def _pass(
        self,
        ids: Tensor,
        positions: Tensor,
        attention: Callable[[int, Tensor], Tensor],
        wanted: Tensor | None = None,
    ) -> Passed:
        return self.forward(self.trunk, Part(ids, positions, attention, self.updates, wanted, self.lowest))

    def _index(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """See `Decoder.prefill`; equal prompts are computed once, and so are the tokens that all prompts begin with."""
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        self.prompts = [distinct.index(tuple(p)) for p in prompts]  # which of the distinct prompts each row has
        self.lengths = [len(p) for p in distinct]
        shared = shared_length(distinct) if len(distinct) > 1 else 0
        ends = [p[shared:] for p in distinct]
        # Products take all tokens in one sequence, attention takes one prompt after another, so nothing is padded.
        ids = self._index([*distinct[0][:shared], *(token for end in ends for token in end)])
        positions = self._index([*range(shared), *(shared + i for end in ends for i in range(len(end)))])
        stops = list(itertools.accumulate(map(len, ends), initial=shared))
        heads_of = [self.shape.heads, self.shape.kv_heads, self.shape.kv_heads]
        longest = max(self.lengths)
        size = len(distinct) * longest * self.shape.kv_heads * self.shape.width
        # The dtype of keys, values and scores.
        self.cache_dtype = torch.float32 if self.device.type == "cpu" and size <= _EXACT else self.dtype
        unseen = torch.full((longest, longest), float("-inf"), dtype=self.cache_dtype, device=self.device).triu(1)
        # Of the distinct prompts, for each layer: [kv_heads, distinct, longest, width].
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

        def attention(_: int, heads: Tensor) -> Tensor:
            q, k, v = heads.to(self.cache_dtype).split(heads_of, dim=1)
            k, v = k.transpose(0, 1), v.transpose(0, 1)
            gathered = []
            if shared:
                mask = unseen[:shared, :shared]
                gathered.append(llama.attend(q[:shared], k[:, :shared], v[:, :shared], mask)[0])
            cache = q.new_zeros(2, self.shape.kv_heads, len(ends), longest, self.shape.width)
            for row, (start, stop) in enumerate(itertools.pairwise(stops)):
                keys, values = (torch.cat([t[:, :shared], t[:, start:stop]], dim=1) for t in (k, v))
                length = keys.shape[1]
                cache[:, :, row, :length] = torch.stack([keys, values])
                gathered.append(llama.attend(q[start:stop], keys, values, unseen[shared:length, :length])[0])
            self.keys.append(cache[0])
            self.values.append(cache[1])
            return torch.cat(gathered).flatten(1)

        logits, below = self._pass(ids, positions, attention, wanted=self._index(stops[1:]) - 1)
        parts = [below[start:stop] for start, stop in itertools.pairwise(stops)]
        # What `states_below` is made of, for each of the prompts; `origin` says which of them a row of the batch is.
        of_prompts = [torch.cat([below[:shared], part]) for part in parts]
        self.trails = [[of_prompts[prompt]] for prompt in self.prompts]
        self.origin = list(range(len(prompts)))
        # Keys, then values of the tokens that are written from here on, for each layer: [2 kv_heads, batch, columns,
        # width].
        empty = 2 * self.shape.kv_heads, len(prompts), _COLUMNS, self.shape.width
        self.new = [torch.zeros(empty, dtype=self.cache_dtype, device=self.device) for _ in self.updates]
        self.written = [0] * len(prompts)  # columns of each sequence that are in use
        self._arrange()
        return logits[self._index(self.prompts)]

    def _arrange(self) -> None:
        """Arranges the prompts' keys and values for the rows that are left.

        Rows with the same prompt form a block, which reads one copy of the prompt in one product. All blocks have the
        same number of places. A prompt that many rows share may fill several blocks, and places may stay unused.
        """
        members: dict[int, list[int]] = {}
        for row, prompt in enumerate(self.prompts):
            members.setdefault(prompt, []).append(row)

        def blocks(places: int) -> list[tuple[int, list[int]]]:
            starts = ((p, rows, i) for p, rows in members.items() for i in range(0, len(rows), places))
            return [(p, rows[i : i + places]) for p, rows, i in starts]

        # Reading a prompt takes about as long as multiplying it with the queries of four rows.
        places = min(range(1, len(self.prompts) + 1), key=lambda n: len(blocks(n)) * (n + 4))
        chosen = blocks(places)
        self.blocks, self.seen = len(chosen), max(self.lengths[p] for p in members)
        held = [row for _, rows in chosen for row in rows + rows[:1] * (places - len(rows))]
        # Which row each place holds, and in which place each row is; None if rows and places are the same.
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
        # The mask that is added to scores, -inf behind the end of a prompt, for each pair of head and block.
        beyond = torch.arange(self.seen, device=self.device) >= self._index([self.lengths[p] for p in read])[:, None]
        mask = torch.zeros(beyond.shape, dtype=self.cache_dtype, device=self.device).masked_fill_(beyond, float("-inf"))
        self.ended = mask.repeat(self.shape.kv_heads, 1).unsqueeze(1)

    def _gather(self, i: int, heads: Tensor, place: "_Place") -> Tensor:
        """Attention of one layer in a step; writes keys and values of the new tokens into the cache.

        Args:
            i: number of the layer.
            heads: as in `_run`, the new tokens of the first sequence first.
            place: where the new tokens belong.

        Returns:
            [T, heads * width].
        """
        heads = heads.to(self.cache_dtype)
        batch, kv_heads, width = len(self.written), self.shape.kv_heads, self.shape.width
        group = self.shape.heads // kv_heads
        self.new[i][:, place.rows, place.columns] = heads[:, self.shape.heads :].transpose(0, 1)
        keys, values = (t.flatten(0, 1) for t in self.new[i].chunk(2))
        queries = heads[:, : self.shape.heads]
        if place.of_tokens is not None:  # sequences have different numbers of new tokens and are padded
            filled = queries.new_zeros(batch * place.most, *queries.shape[1:])
            queries = filled.index_copy_(0, place.of_tokens, queries)
        # A sequence has a line for each new token and each of the query heads that share keys.
        lines = group * place.most
        queries = queries.view(batch, place.most, kv_heads, group, width).permute(2, 0, 3, 1, 4)
        queries = queries.reshape(kv_heads, batch, lines, width)

        def to_places(t: Tensor) -> Tensor:
            """Brings [kv_heads, batch, lines, n] into the order of the products with the prompts."""
            t = t if self.held is None else t.index_select(1, self.held)
            return t.reshape(kv_heads * self.blocks, -1, t.shape[-1])

        def to_rows(t: Tensor) -> Tensor:
            """The inverse of `to_places`."""
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
        # A new token sees its own column and the columns before it. So does padding, because a softmax over a row that
        # is -inf everywhere would be NaN.
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
            with threads(1) if alone else nullcontext():
                return self._gather(i, heads, place)

        logits, below = self._pass(self._index([t for row in tokens for t in row]), positions, attention)
        self.written = [w + c for w, c in zip(self.written, counts, strict=True)]
        if len(below):
            for origin, part in zip(self.origin, below.split(counts), strict=True):
                self.trails[origin].append(part)
        return logits

    def take_back(self, counts: Sequence[int]) -> None:
        """See `Decoder.take_back`."""
        self.written = [w - c for w, c in zip(self.written, counts, strict=True)]
        for origin, count in zip(self.origin, counts, strict=True):
            last = self.trails[origin][-1]
            self.trails[origin][-1] = last[: len(last) - count]

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """See `Decoder.keep`."""
        index = self._index(rows)
        self.new = [t.index_select(1, index) for t in self.new]
        self.prompts, self.written = [self.prompts[row] for row in rows], [self.written[row] for row in rows]
        self.origin = [self.origin[row] for row in rows]
        self._arrange()

    def states_below(self, row: int, tokens: int) -> Tensor:
        """[tokens, H] the residual stream in front of the adapted layers, which is the same for all roles.

        Args:
            row: which of the prompts given to `prefill`.
            tokens: how many tokens of the sequence, prompt included.
        """
        return torch.cat(self.trails[row])[:tokens]


@dataclass(frozen=True)
class _Place:
    """Where the new tokens of one step belong.

    Attributes:
        rows: [T] the sequence of each token.
        columns: [T] the column of each token.
        most: the largest number of new tokens of a sequence.
        of_tokens: [T] index of each token among batch * most; None if every sequence has `most` new tokens.
        unseen: [kv_heads * batch, lines, columns] the mask that is added to scores, -inf where a token must not look.
    """

    rows: Tensor
    columns: Tensor
    most: int
    of_tokens: Tensor | None
    unseen: Tensor
