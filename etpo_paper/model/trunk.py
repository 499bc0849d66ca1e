"""A pass of a frozen Llama model over the tokens of several runs at once.

While a token is written, most of the time goes into reading the weights of the model, and reading them for one run's
eight sequences takes about as long as for ten runs' eighty. `Trunk` therefore holds the frozen weights once for all
runs of a process, and `Trunk.forward` takes the tokens of all of them: a `Part` for each run, with its own attention
and its own low-rank updates. The large products run over all rows together; everything else belongs to one part.

A row must come out the same to the last bit whatever else is in the pass, so that a run in a group is the run alone.
Sums along a row are taken by one thread in one order. Attention sees the rows of its own part alone. What is left are
the products: libraries choose their kernel by the number of rows, and kernels differ in the order of their sums. Which
numbers of rows give the same bits depends on the processor, so they are tried at the start (`row_rule`), and fewer rows
are padded and more are cut into blocks where the processor needs it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etpo_paper.model import llama
from etpo_paper.model.output import causal_model

# Packed weights are laid out for products with so many rows; from 1 to 512 rows this is within 5 % of the best layout.
_PACKED_FOR = 16

Product = Callable[[Tensor], Tensor]


class Rows(NamedTuple):
    """How many rows a product takes at a time, so that a row's result depends on that row alone.

    Attributes:
        least: fewer rows are padded with zeros.
        most: more rows are cut into equal blocks; None for no limit.
        same: whether all numbers of rows that were tried gave a row the same bits under this rule.
    """

    least: int
    most: int | None
    same: bool


# Tried in this order: as it comes; as float32 products need it on some processors; as AMX needs it for bfloat16.
_RULES = (Rows(1, None, True), Rows(4, None, True), Rows(48, 240, True))
_TRIED = (1, 2, 3, 5, 8, 17, 31, 33, 48, 64, 100, 200, 240, 260, 600)


class Part(NamedTuple):
    """The tokens of one run in a pass.

    Attributes:
        ids: [T] token ids.
        positions: [T] of each token in its sequence.
        attention: takes the number of a layer and its heads [T, heads + 2 kv_heads, width] in float32: queries, scaled
            and rotated, rotated keys, and values. Returns the output of attention for each token [T, heads * width].
        updates: for each layer, the LoRA updates of its products by name.
        wanted: index into T of the tokens behind which logits are asked for; None for all of them.
        lowest: the number of the lowest layer that has updates.
    """

    ids: Tensor
    positions: Tensor
    attention: Callable[[int, Tensor], Tensor]
    updates: Sequence[dict[str, llama.LowRank]]
    wanted: Tensor | None
    lowest: int


class Passed(NamedTuple):
    """What a pass leaves for a part.

    Attributes:
        logits: [n, vocabulary] behind the wanted tokens.
        below: [T, H] the residual stream in front of the part's lowest layer with updates, in float32.
    """

    logits: Tensor
    below: Tensor


class _Layer(NamedTuple):
    """A layer: the products of `llama.Layer` as functions, and its norms times sqrt(H)."""

    norm_1: Tensor
    qkv: Product
    out: Product
    norm_2: Tensor
    gate_up: Product
    down: Product


class Trunk:
    """The frozen weights of a Llama model (`llama.fits`), held once for all that computes with them.

    Args:
        model: a `LlamaForCausalLM`, plain or wrapped by peft; its adapters are not looked at.
        dtype: of the products.

    Attributes:
        layers: the weights for training, see `llama.Body`.
        shape: of the model.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        causal = causal_model(model)
        self.dtype, self.shape = dtype, llama.shape(model)
        self.layers = list(llama.layers(model, dtype))
        self._embed, self._rotary = causal.model.embed_tokens, causal.model.rotary_emb
        self._head_weight = causal.lm_head.weight
        self.device: torch.device = causal.lm_head.weight.device
        # x / sqrt(mean(x^2) + epsilon) = sqrt(H) x / sqrt(|x|^2 + H epsilon): the norm in fewer operations.
        size = causal.config.hidden_size
        self._root, self._least = size**0.5, torch.tensor((size * self.shape.epsilon) ** 0.5, device=self.device)
        self._norm = causal.model.norm.weight.detach().float() * self._root

    @cached_property
    def _packed(self) -> list[_Layer]:
        return [
            _Layer(
                norm_1=layer.norm_1 * self._root,
                qkv=packed(layer.qkv),
                out=packed(layer.out),
                norm_2=layer.norm_2 * self._root,
                gate_up=packed(layer.gate_up),
                down=packed(layer.down),
            )
            for layer in self.layers
        ]

    @cached_property
    def _head(self) -> Product:
        return packed(self._head_weight.detach().to(self.dtype))

    @cached_property
    def rows(self) -> Rows:
        """The rule that all products of a pass follow."""
        if self.device.type != "cpu" or not self.layers:
            return Rows(1, None, False)
        layer, packed = self.layers[0], self._packed[0]
        of_layer = [(getattr(packed, name), getattr(layer, name)) for name in ("qkv", "out", "gate_up", "down")]
        return row_rule([*of_layer, (self._head, self._head_weight.to(self.dtype))])

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        """Root-mean-square norm of rows [n, H], computed in float32; `weight` is scaled by sqrt(H)."""
        size = torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), self._least)
        return (x / size).mul_(weight).to(self.dtype)

    @torch.inference_mode()
    def forward(self, parts: Sequence[Part]) -> list[Passed]:
        """Runs the model over the tokens of all parts; what a part is given does not depend on the others."""
        sizes, half = [len(part.ids) for part in parts], self.shape.width // 2
        x = self._embed(torch.cat([part.ids for part in parts])).float()
        cos, sin = (t[0].unsqueeze(1) for t in self._rotary(x, torch.cat([part.positions for part in parts])[None]))
        sin = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
        # One multiplication rotates queries and keys, scales the queries and leaves the values as they are.
        heads = [self.shape.heads, self.shape.kv_heads, self.shape.kv_heads]
        factors = zip(heads, (self.shape.width**-0.5, 1.0, 0.0), strict=True)
        turns = [(cos * f if f else torch.ones_like(cos), sin * f, n) for n, f in factors]
        cos = torch.cat([c.expand(-1, n, -1) for c, _, n in turns], dim=1)
        sin = torch.cat([s.expand(-1, n, -1) for _, s, n in turns], dim=1)
        below: list[Tensor] = [x[:0]] * len(parts)
        for i, layer in enumerate(self._packed):

            def product(name: str, x: Tensor, layer: _Layer = layer, number: int = i) -> Tensor:
                out = self._blocked(getattr(layer, name), x)
                for part, rows, given in zip(parts, out.split(sizes), x.split(sizes), strict=True):
                    if (update := part.updates[number].get(name)) is not None:
                        rows.addmm_(given @ update.a.T, update.b.T)
                return out

            for number, (part, rows) in enumerate(zip(parts, x.split(sizes), strict=True)):
                if part.lowest == i:
                    below[number] = rows.clone()
            h = product("qkv", self._normed(x, layer.norm_1)).float().view_as(cos)
            h = (h * cos).addcmul_(h.roll(half, -1), sin)
            gathered = [part.attention(i, rows) for part, rows in zip(parts, h.split(sizes), strict=True)]
            x += product("out", torch.cat(gathered).to(self.dtype))
            gate, up = product("gate_up", self._normed(x, layer.norm_2)).chunk(2, dim=-1)
            x += product("down", F.silu(gate, inplace=True).mul_(up))
        every = zip(parts, x.split(sizes), strict=True)
        wanted = [rows if part.wanted is None else rows[part.wanted] for part, rows in every]
        logits = self._blocked(self._head, self._normed(torch.cat(wanted), self._norm))
        return [Passed(*pair) for pair in zip(logits.split([len(rows) for rows in wanted]), below, strict=True)]

    def _blocked(self, product: Product, x: Tensor) -> Tensor:
        return blocked(product, x, self.rows)


def blocked(product: Product, x: Tensor, rule: Rows) -> Tensor:
    """A product over rows [n, K], padded or cut as the rule says."""
    count = len(x)
    if count < rule.least:
        return product(F.pad(x, (0, 0, 0, rule.least - count)))[:count]
    if rule.most is not None and count > rule.most:
        return torch.cat([product(block) for block in x.tensor_split(-(-count // rule.most))])
    return product(x)


def row_rule(products: Sequence[tuple[Product, Tensor]]) -> Rows:
    """The cheapest rule under which products give a row the same bits for every number of rows and of threads tried.

    Args:
        products: each with its weight [out, K], of which shape and dtype are looked at.
    """

    def same(rule: Rows) -> bool:
        for product, weight in products:
            most = max(_TRIED) if len(weight) < 10_000 else 48  # the head takes long, and few rows at a time
            x = torch.randn(most, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
            expected = blocked(product, x[:48], rule)
            for count in (n for n in _TRIED if n <= most):
                # A row must not depend on its place either, so the last rows are compared as well as the first.
                found = blocked(product, x[:count], rule)
                if not torch.equal(found[:48], expected[:count]):
                    return False
                moved = blocked(product, x[:48].roll(7, 0)[:count], rule)
                if not torch.equal(moved, expected.roll(7, 0)[: min(count, 48)]):
                    return False
        return True

    for rule in _RULES:
        found = []
        for count in {1, len(os.sched_getaffinity(0))}:
            with threads(count):
                found.append(same(rule))
        if all(found):
            return rule
    return Rows(1, None, False)


def packed(weight: Tensor) -> Product:
    """The function x -> x Wᵀ, with W in the layout that the machine multiplies fastest."""
    packs = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not packs or weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return lambda x: F.linear(x, weight)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
    linear = torch.ops.mkldnn._linear_pointwise.default  # looked up here, once, and not in every call
    return lambda x: linear(x, laid_out, None, "none", [], "")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs the body of a `with` statement on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
