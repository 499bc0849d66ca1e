"""The layers of a Llama-shaped model, written out once for decoding and for training.

transformers runs any architecture; for the Llama family - SmolLM2 and CodeLlama among them - this module computes the
same hidden states with less work and memory: products over the same input are one product, LoRA is added to a product
instead of being a layer of its own, the frozen weights are converted to the computing precision once, and what all
sequences of a batch begin with is read once. What attention sees is the caller's: a decoder brings its cache,
`Body.hidden` a batch with a shared prefix. The residual stream and the norms are float32 throughout.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

BYTES_KEPT = 50  # bytes that a layer keeps for the way back, for each token and dimension of the residual stream; about
RECOMPUTE = 4 * 2**30  # bytes to be kept from which on layers are computed again on the way back instead


class LowRank(NamedTuple):
    """A LoRA update of one weight: x A^T B^T is added to x W^T; the LoRA scale is part of B."""

    a: Tensor
    b: Tensor


class Layer(NamedTuple):
    """The weights of one layer, products over the same input joined along the output."""

    norm_1: Tensor
    qkv: Tensor
    out: Tensor
    norm_2: Tensor
    gate_up: Tensor
    down: Tensor


class Shape(NamedTuple):
    """What the weights alone do not tell."""

    heads: int
    kv_heads: int
    width: int
    epsilon: float


def causal_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def fits(model: nn.Module) -> bool:
    """Whether `model` consists of plain Llama layers without biases, so that this module computes what it computes."""
    config = causal_model(model).config
    return (
        config.model_type == "llama"
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


def _products(layer: nn.Module) -> dict[str, list[nn.Module]]:
    attention, mlp = layer.self_attn, layer.mlp
    return {
        "qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
        "out": [attention.o_proj],
        "gate_up": [mlp.gate_proj, mlp.up_proj],
        "down": [mlp.down_proj],
    }


def _joined(weights: Sequence[nn.Parameter], dtype: torch.dtype) -> Tensor:
    """Frozen weights, joined along the output, in `dtype`.

    Where that is their own dtype they become views of what is returned: the model then holds nothing twice.
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
def layers(model: nn.Module, dtype: torch.dtype, adapter: str | None = None) -> Iterator[Layer]:
    """The weights of all layers in `dtype`, with LoRA `adapter` merged in (None: the frozen base).

    What no adapter changes is shared with the model where the model has that dtype; it must not be written to.
    """

    def merged(linears: Sequence[nn.Module]) -> Tensor:
        bases = [getattr(linear, "base_layer", linear).weight for linear in linears]
        if adapter is None or not any(adapter in getattr(linear, "lora_A", {}) for linear in linears):
            return _joined(bases, dtype)
        updates = [linear.get_delta_weight(adapter).float() for linear in linears]
        return torch.cat([(b.float() + u).to(dtype) for b, u in zip(bases, updates, strict=True)])

    for layer in causal_model(model).model.layers:
        yield Layer(
            norm_1=layer.input_layernorm.weight.float(),
            norm_2=layer.post_attention_layernorm.weight.float(),
            **{name: merged(linears) for name, linears in _products(layer).items()},
        )


def low_rank(layer: nn.Module, adapter: str, dtype: torch.dtype) -> dict[str, LowRank]:
    """The LoRA `adapter` of a layer's joined products, in `dtype`; gradients reach peft's parameters.

    Joined products share their input: the A of each stand side by side, each B acts on its own.
    """
    updates = {}
    for name, linears in _products(layer).items():
        a = torch.cat([linear.lora_A[adapter].weight for linear in linears])
        b = torch.block_diag(*(linear.lora_B[adapter].weight * linear.scaling[adapter] for linear in linears))
        updates[name] = LowRank(a.to(dtype), b.to(dtype))
    return updates


class _LowRankLinear(torch.autograd.Function):
    """x W^T + (x A^T) B^T with W frozen; the sum is taken inside the products, not in passes over the output."""

    @staticmethod
    def forward(ctx, x, weight, a, b):
        inner = x @ a.T
        ctx.save_for_backward(x, weight, a, b, inner)
        return F.linear(x, weight).addmm_(inner, b.T)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, a, b, inner = ctx.saved_tensors
        through = gradient @ b
        into_x = (gradient @ weight).addmm_(through, a) if ctx.needs_input_grad[0] else None
        return into_x, None, through.T @ x, gradient.T @ inner


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, keeping its input alone for the backward pass."""

    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient):
        gate, up = ctx.saved_tensors[0].chunk(2, dim=-1)
        into_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return torch.cat([into_gate, F.silu(gate).mul_(gradient)], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [T, heads, width] with cos and sin [T, 1, width]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention of grouped heads.

    Args:
        query: [batch, new, heads, width], scaled.
        keys: [batch, kv_heads, seen, width]; heads / kv_heads query heads read the same one.
        values: [batch, kv_heads, seen, width].
        mask: added to the scores [batch or 1, 1, new, seen]; None where all is visible.

    Returns:
        [batch, new, heads * width].
    """
    batch, new, heads, width = query.shape
    kv_heads, seen = keys.shape[1:3]
    # Query heads that share a key-value head become rows of one product.
    rows = query.transpose(1, 2).reshape(batch, kv_heads, heads // kv_heads * new, width)
    scores = (rows @ keys.transpose(-1, -2)).view(batch, heads, new, seen)
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1).view(batch, kv_heads, heads // kv_heads * new, seen)
    return (weights @ values).view(batch, heads, new, width).transpose(1, 2).reshape(batch, new, heads * width)


def run_layer(
    x: Tensor, layer: Layer, update: dict[str, LowRank], cos: Tensor, sin: Tensor, shape: Shape, attention: Attend
) -> Tensor:
    """One layer over the residual stream.

    Args:
        x: the residual stream [T, H] in float32, one row a token.
        layer: its weights.
        update: the LoRA update of some of its products; empty for none.
        cos: rotary embedding of each token's position [T, 1, width], in the weights' dtype.
        sin: likewise.
        shape: of the model.
        attention: takes queries [T, heads, width], scaled and rotated, keys and values [T, kv_heads, width], and
            returns what each token gathered [T, heads * width].
    """

    def product(name: str, x: Tensor) -> Tensor:
        weight = getattr(layer, name)
        return _LowRankLinear.apply(x, weight, *update[name]) if name in update else F.linear(x, weight)

    dtype = layer.qkv.dtype
    heads = product("qkv", normed(x, layer.norm_1, shape.epsilon).to(dtype)).view(len(x), -1, shape.width)
    q, k, v = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
    gathered = attention(rotate(q, cos, sin) * shape.width**-0.5, rotate(k, cos, sin), v)
    x = x + product("out", gathered)
    h = _SwiGLU.apply(product("gate_up", normed(x, layer.norm_2, shape.epsilon).to(dtype)))
    return x + product("down", h)


class _Norm(torch.autograd.Function):
    """Root-mean-square norm with a frozen weight, in few passes over the rows both ways."""

    @staticmethod
    def forward(ctx, x, weight, epsilon):
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return x.mul(scale).mul_(weight)

    @staticmethod
    def backward(ctx, gradient):
        x, weight, scale = ctx.saved_tensors
        into_x = gradient.mul(weight)
        along = (into_x * x).sum(-1, keepdim=True).mul_(scale.square()).div_(-x.shape[-1])
        return into_x.addcmul_(x, along).mul_(scale), None, None


def normed(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm of x [T, H] in float32; no gradient reaches the weight [H]."""
    return _Norm.apply(x, weight, epsilon)


class Body:
    """The body of a frozen Llama model with LoRA adapters by peft.

    The lowest layers may be without adapters: there all roles compute the same, once (`below`). On the way back a layer
    needs what it computed on the way there; where that would be more than `RECOMPUTE` bytes, each layer keeps its input
    alone and computes the rest again, which makes a third of the products of a pass more.

    Args:
        model: a `LlamaForCausalLM`, plain or wrapped by peft.
        dtype: of the products.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self.model, self.dtype, self.shape = causal_model(model).model, dtype, shape(model)
        self.layers = list(layers(model, dtype))
        adapted = [bool(getattr(layer.self_attn.q_proj, "lora_A", ())) for layer in self.model.layers]
        self.lowest = adapted.index(True) if True in adapted else len(adapted)  # layer that has adapters

    @torch.no_grad()
    def below(self, prefix: Tensor, ids: Tensor) -> Tensor:
        """What all roles have in common: the residual stream [P + batch S, H] behind the layers without adapters.

        Args:
            prefix: as in `hidden`.
            ids: as in `hidden`.
        """
        x = self.model.embed_tokens(torch.cat([prefix, ids.flatten()])).float()
        return self._through(x, slice(0, self.lowest), len(prefix), ids.shape, None)

    def hidden(self, prefix: Tensor, ids: Tensor, adapter: str | None, below: Tensor | None = None) -> Tensor:
        """Last hidden states of sequences that begin alike.

        A position sees the whole prefix and its own sequence up to itself; padding on the right is seen by no one
        but padding, so it needs no mask.

        Args:
            prefix: token ids [P] that all sequences begin with; P may be 0.
            ids: token ids [batch, S] of what follows, padded on the right.
            adapter: name of the LoRA adapter; None for the frozen base.
            below: what `below` returned for them, to spare computing it again.

        Returns:
            [batch, S, H] in float32: the states behind the prefix.
        """
        x = self.below(prefix, ids) if below is None else below
        x = self._through(x, slice(self.lowest, None), len(prefix), ids.shape, adapter)
        return normed(x[len(prefix) :], self.model.norm.weight.float(), self.shape.epsilon).view(*ids.shape, -1)

    def _through(self, x: Tensor, which: slice, shared: int, size: torch.Size, adapter: str | None) -> Tensor:
        """The residual stream behind some layers: first the `shared` tokens, then `size` [batch, S] of their own."""
        batch, new = size
        positions = torch.arange(shared + new, device=x.device)
        cos, sin = (t[0].to(self.dtype) for t in self.model.rotary_emb(x, positions[None]))
        cos, sin = (torch.cat([t[:shared], t[shared:].repeat(batch, 1)]).unsqueeze(1) for t in (cos, sin))
        unseen = torch.full((shared + new,) * 2, float("-inf"), dtype=self.dtype, device=x.device).triu(1)

        def attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            (q0, q), (k0, k), (v0, v) = ((t[:shared], t[shared:]) for t in (query, keys, values))

            def joined(first: Tensor, own: Tensor) -> Tensor:
                own = own.view(batch, new, *own.shape[1:]).transpose(1, 2)
                return torch.cat([first.transpose(0, 1).expand(batch, -1, -1, -1), own], dim=2)

            q = q.view(batch, new, *q.shape[1:])
            gathered = attend(q, joined(k0, k), joined(v0, v), unseen[shared:]).flatten(0, 1)
            if shared == 0:
                return gathered
            first = attend(q0[None], k0.transpose(0, 1)[None], v0.transpose(0, 1)[None], unseen[:shared, :shared])
            return torch.cat([first[0], gathered])

        again = torch.is_grad_enabled() and BYTES_KEPT * x.numel() * len(self.layers[which]) > RECOMPUTE
        for weights, layer in zip(self.layers[which], self.model.layers[which], strict=True):
            update = {} if adapter is None else low_rank(layer, adapter, self.dtype)
            arguments = x, weights, update, cos, sin, self.shape, attention
            if again:
                x = checkpoint(run_layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x = run_layer(*arguments)
        return x
