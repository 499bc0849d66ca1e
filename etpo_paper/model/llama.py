"""The layers of a Llama-shaped model, written out for training.

transformers runs any architecture. For the Llama family, to which SmolLM2 and CodeLlama belong, and Mistral without a
sliding window, this module computes the same hidden states with less work and memory. Products that share their input
are one product. LoRA is added inside a product and is not a layer of its own. The frozen weights are converted to the
dtype of the products once. The sequences of a batch form a tree: tokens that several of them begin with are computed
once, nothing is padded, and attention takes one sequence after another. The residual stream and the norms are float32
throughout. `trunk` runs the same layers where no gradient is needed.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from etpo_paper.model.batches import Sequences
from etpo_paper.model.output import causal_model

# About how many bytes a layer keeps for the backward pass, for each token and dimension of the residual stream.
BYTES_KEPT = 50
# Where all layers together would keep more than so many bytes, the backward pass computes each layer again instead.
RECOMPUTE = 4 * 2**30


class LowRank(NamedTuple):
    """A LoRA update of one product: x Aᵀ Bᵀ is added to x Wᵀ. The LoRA scale is part of B."""

    a: Tensor
    b: Tensor


class Layer(NamedTuple):
    """The weights of one layer; those of products that share their input are joined along the output."""

    norm_1: Tensor
    qkv: Tensor
    out: Tensor
    norm_2: Tensor
    gate_up: Tensor
    down: Tensor


class Shape(NamedTuple):
    """What cannot be read off the weights.

    Attributes:
        heads: query heads.
        kv_heads: heads of keys and values.
        width: of a head.
        epsilon: added to the mean square in the norms.
    """

    heads: int
    kv_heads: int
    width: int
    epsilon: float


def fits(model: nn.Module) -> bool:
    """Whether the model consists of plain Llama layers without biases, which is what this module computes."""
    return config_fits(causal_model(model).config)


def config_fits(config: Any) -> bool:
    """Whether the model of a configuration consists of such layers."""
    return (
        config.model_type in ("llama", "mistral")
        and getattr(config, "sliding_window", None) is None
        and not getattr(config, "attention_bias", False)
        and not getattr(config, "mlp_bias", False)
        and config.hidden_act == "silu"
    )


def shape(model: nn.Module) -> Shape:
    """The shape of a Llama model."""
    config = causal_model(model).config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(heads, config.num_key_value_heads, width, config.rms_norm_eps)


def _products(layer: Any) -> dict[str, list[Any]]:
    """The linear modules of a transformers layer, grouped by the products of `Layer`."""
    attention, mlp = layer.self_attn, layer.mlp
    return {
        "qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
        "out": [attention.o_proj],
        "gate_up": [mlp.gate_proj, mlp.up_proj],
        "down": [mlp.down_proj],
    }


def _joined(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Frozen weights, joined along the output, in `dtype`.

    Weights that have this dtype already become views of the result, so that memory holds them once.
    """
    if any(w.dtype != dtype or not w.is_contiguous() for w in weights):
        return torch.cat([w.to(dtype) for w in weights])
    rows, first = [len(w) for w in weights], weights[0]
    ends = [w.data_ptr() + w.numel() * w.element_size() for w in weights]
    one = {w.untyped_storage().data_ptr() for w in weights}
    if len(one) > 1 or ends[:-1] != [w.data_ptr() for w in weights[1:]]:
        for w, part in zip(weights, torch.cat(list(weights)).split(rows), strict=True):
            w.data = part
    return first.detach().as_strided((sum(rows), first.shape[1]), first.stride(), first.storage_offset())


@torch.no_grad()
def layers(model: nn.Module, dtype: torch.dtype) -> Iterator[Layer]:
    """The frozen weights of all layers in `dtype`; norms are float32.

    They are shared with a model of the same dtype and must not be written to.

    Args:
        model: for which `fits` holds, plain or wrapped by peft; its adapters are left out.
        dtype: of the weights.
    """
    for layer in causal_model(model).model.layers:
        products = {
            name: _joined([getattr(linear, "base_layer", linear).weight for linear in linears], dtype)
            for name, linears in _products(layer).items()
        }
        norms = layer.input_layernorm.weight.float(), layer.post_attention_layernorm.weight.float()
        yield Layer(norm_1=norms[0], norm_2=norms[1], **products)


def low_rank(layer: Any, adapter: str | None, dtype: torch.dtype) -> dict[str, LowRank]:
    """The LoRA adapter of a layer's joined products, by name, in `dtype`; gradients reach peft's parameters.

    Joined products share their input, so their matrices A are stacked, and their matrices B form a block diagonal, with
    rows of zeros for a product without that adapter. Empty for the frozen base, None, and for a layer without any.
    """
    updates: dict[str, LowRank] = {}
    if adapter is None:
        return updates
    for name, linears in _products(layer).items():
        adapted = [adapter in getattr(linear, "lora_A", {}) for linear in linears]
        if not any(adapted):
            continue
        both = list(zip(linears, adapted, strict=True))
        a = torch.cat([linear.lora_A[adapter].weight for linear, has in both if has])
        b = torch.block_diag(
            *(
                linear.lora_B[adapter].weight * linear.scaling[adapter]
                if has
                else linear.weight.new_zeros(linear.out_features, 0)
                for linear, has in both
            )
        )
        updates[name] = LowRank(a.to(dtype), b.to(dtype))
    return updates


class _LowRankLinear(torch.autograd.Function):
    """x Wᵀ + (x Aᵀ) Bᵀ with W frozen. The products do the addition, which saves a pass over the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
        inner = x @ a.T
        ctx.save_for_backward(x, weight, a, b, inner)
        return F.linear(x, weight).addmm_(inner, b.T)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor]:
        x, weight, a, b, inner = ctx.saved_tensors
        through = gradient @ b
        into_x = (gradient @ weight).addmm_(through, a) if ctx.needs_input_grad[0] else None
        return into_x, None, through.T @ x, gradient.T @ inner


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, which keeps nothing but its input for the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gate, up = ctx.saved_tensors[0].chunk(2, dim=-1)
        into_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return torch.cat([into_gate, F.silu(gate).mul_(gradient)], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [T, heads, width] with cos and sin [T, 1, width]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(query: Tensor, keys: Tensor, values: Tensor, unseen: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention of grouped heads in one sequence.

    Args:
        query: [new, heads, width], scaled.
        keys: [kv_heads, seen, width]; heads / kv_heads query heads share one.
        values: [kv_heads, seen, width].
        unseen: [new, seen] added to the scores, -inf where a token must not look.

    Returns:
        The output [new, heads, width], and the weights [kv_heads, heads / kv_heads * new, seen].
    """
    kv_heads, seen = keys.shape[:2]
    scores = (_grouped(query, kv_heads) @ keys.transpose(1, 2)).view(kv_heads, -1, len(query), seen)
    weights = scores.add_(unseen).softmax(-1).view(kv_heads, -1, seen)
    return _ungrouped(weights @ values, len(query)), weights


def _grouped(x: Tensor, kv_heads: int) -> Tensor:
    """[kv_heads, group * n, width] of [n, heads, width]: heads that share keys are rows of one product."""
    return x.transpose(0, 1).reshape(kv_heads, -1, x.shape[-1])


def _ungrouped(x: Tensor, count: int) -> Tensor:
    """The inverse of `_grouped`: [n, heads, width]."""
    return x.reshape(-1, count, x.shape[-1]).transpose(0, 1)


class _TreeAttention(torch.autograd.Function):
    """Softmax attention of grouped heads over the nodes of a tree, in which a node sees itself and those before it.

    One sequence after another is computed, so a node's result does not depend on what else is in the tree. The
    gradients of a node that many sequences see are summed in the dtype of the heads.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, values: Tensor, sequences: Sequences) -> Tensor:
        """The output of attention [T, heads, width].

        Args:
            ctx: of autograd.
            query: [T, heads, width], scaled.
            keys: [T, kv_heads, width].
            values: [T, kv_heads, width].
            sequences: the tree.
        """
        longest = max(map(len, sequences.paths))
        unseen = query.new_full((longest, longest), float("-inf")).triu(1)
        out, kept = [], []
        for path, q in zip(sequences.paths, query.split(list(sequences.own)), strict=True):
            k, v = (t[path].transpose(0, 1) for t in (keys, values))
            found, weights = attend(q, k, v, unseen[len(path) - len(q) : len(path), : len(path)])
            out.append(found)
            kept.append(weights)
        ctx.save_for_backward(query, keys, values, *kept)
        ctx.sequences = sequences
        return torch.cat(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, keys, values, *kept = ctx.saved_tensors
        into_query, into_keys, into_values = [], torch.zeros_like(keys), torch.zeros_like(values)
        of_each = (t.split(list(ctx.sequences.own)) for t in (query, gradient))
        for path, weights, q, g in zip(ctx.sequences.paths, kept, *of_each, strict=True):
            rows, above = (_grouped(t, keys.shape[1]) for t in (q, g))
            k, v = (t[path].transpose(0, 1) for t in (keys, values))
            into_weights = above @ v.transpose(1, 2)
            into_scores = into_weights.sub_((into_weights * weights).sum(-1, keepdim=True)).mul_(weights)
            into_query.append(_ungrouped(into_scores @ k, len(q)))
            into_keys.index_add_(0, path, (into_scores.transpose(1, 2) @ rows).transpose(0, 1))
            into_values.index_add_(0, path, (weights.transpose(1, 2) @ above).transpose(0, 1))
        return torch.cat(into_query), into_keys, into_values, None


def run_layer(
    x: Tensor, layer: Layer, update: dict[str, LowRank], cos: Tensor, sin: Tensor, shape: Shape, sequences: Sequences
) -> Tensor:
    """Runs one layer over the residual stream.

    Args:
        x: [T, H] the residual stream in float32, a row for each token.
        layer: the weights.
        update: LoRA updates by the name of the product; products without one are missing.
        cos: [T, 1, width] rotary embedding of each token's position, in the dtype that attention is computed in.
        sin: likewise.
        shape: of the model.
        sequences: whose T nodes the tokens are.

    Returns:
        [T, H] the residual stream behind the layer.
    """

    def product(name: str, x: Tensor) -> Tensor:
        weight = getattr(layer, name)
        return _LowRankLinear.apply(x, weight, *update[name]) if name in update else F.linear(x, weight)

    dtype = layer.qkv.dtype
    heads = product("qkv", normed(x, layer.norm_1, shape.epsilon).to(dtype)).view(len(x), -1, shape.width).to(cos.dtype)
    q, k, v = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    gathered = _TreeAttention.apply(rotate(q, cos, sin) * shape.width**-0.5, rotate(k, cos, sin), v, sequences)
    x = x + product("out", gathered.flatten(1).to(dtype))
    h = _SwiGLU.apply(product("gate_up", normed(x, layer.norm_2, shape.epsilon).to(dtype)))
    return x + product("down", h)


class _Norm(torch.autograd.Function):
    """Root-mean-square norm with a frozen weight, in few passes over the rows, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return x.mul(scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        into_x = gradient.mul(weight)
        along = (into_x * x).sum(-1, keepdim=True).mul_(scale.square()).div_(-x.shape[-1])
        return into_x.addcmul_(x, along).mul_(scale), None, None


def normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm of x [T, H] in float32; no gradient reaches the weight [H]."""
    return _Norm.apply(x, weight, epsilon)


class Body:
    """The body of a frozen Llama model with LoRA adapters by peft.

    If the lowest layers have no adapters, all roles compute the same there, and `below` does it once for all of them.

    The backward pass of a layer needs intermediate results of its forward pass. Where those of all layers would take
    more than `RECOMPUTE` bytes, each layer keeps its input alone, and the backward pass computes the rest again, at the
    cost of one more forward pass.

    Args:
        model: a `LlamaForCausalLM`, plain or wrapped by peft.
        dtype: of the products.
        frozen: what `layers` returns for them, if something else holds it already.

    Attributes:
        lowest: number of the lowest layer that has adapters.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, frozen: list[Layer] | None = None):
        self.model, self.dtype, self.shape = causal_model(model).model, dtype, shape(model)
        self.layers = list(layers(model, dtype)) if frozen is None else frozen
        products = [itertools.chain.from_iterable(_products(layer).values()) for layer in self.model.layers]
        adapted = [any(getattr(linear, "lora_A", ()) for linear in linears) for linears in products]
        self.lowest = adapted.index(True) if True in adapted else len(adapted)

    @torch.no_grad()
    def below(self, sequences: Sequences) -> Tensor:
        """The residual stream [T, H] in float32 behind the layers without adapters, which is the same for all roles."""
        x = self.model.embed_tokens(sequences.ids).float()
        return self._through(x, slice(0, self.lowest), sequences, None)

    def hidden(self, sequences: Sequences, adapter: str | None, below: Tensor) -> Tensor:
        """Last hidden states [M, H] in float32 at the distinct positions that action tokens are drawn from.

        Args:
            sequences: prompts and actions.
            adapter: name of the LoRA adapter; None for the frozen base.
            below: what `below` returned for the same sequences.
        """
        x = self._through(below, slice(self.lowest, None), sequences, adapter)
        return normed(x.index_select(0, sequences.places), self.model.norm.weight.float(), self.shape.epsilon)

    def _through(self, x: Tensor, which: slice, sequences: Sequences, adapter: str | None) -> Tensor:
        """The residual stream [T, H] behind some of the layers, of that in front of them."""
        # On a CPU the small products of attention start faster in float32.
        dtype = torch.promote_types(self.dtype, torch.float32) if x.device.type == "cpu" else self.dtype
        cos, sin = (t[0].to(dtype).unsqueeze(1) for t in self.model.rotary_emb(x, sequences.positions[None]))
        again = torch.is_grad_enabled() and BYTES_KEPT * x.numel() * len(self.layers[which]) > RECOMPUTE
        for weights, layer in zip(self.layers[which], self.model.layers[which], strict=True):
            arguments = x, weights, low_rank(layer, adapter, self.dtype), cos, sin, self.shape, sequences
            if again:
                x = checkpoint(run_layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x = run_layer(*arguments)
        return x
