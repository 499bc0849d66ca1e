"""Quantities over the whole vocabulary, without a [tokens, vocabulary] tensor.

The networks hand over hidden states; the language-model head, frozen and shared by all of them, turns a hidden state
into one logit a token. With 49,152 tokens in the vocabulary those logits are large, so they are made for a few
positions at a time, reduced to the scalars that the method needs, and forgotten. `streamed` does that for any
function of hidden states and keeps the gradient with respect to the hidden states that the function would have had.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK = 64  # positions at a time: 64 x 49,152 float32 logits are 12 MB, small enough to stay in cache and heap


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, chunk, hidden, *context):
        parts = [slice(start, start + chunk) for start in range(0, len(hidden), chunk)]
        outputs, gradients = [], []
        for part in parts:
            with torch.enable_grad():
                leaf = hidden[part].detach().requires_grad_(hidden.requires_grad)
                results = function(leaf, *(c[part] for c in context))
            outputs.append([r.detach() for r in results])
            gradients.append([_gradient(r, leaf) for r in results])
        ctx.gradients = [_joined(column) for column in zip(*gradients, strict=True)]
        outputs = tuple(torch.cat(column) for column in zip(*outputs, strict=True))
        ctx.mark_non_differentiable(*(o for o, g in zip(outputs, ctx.gradients, strict=True) if g is None))
        return outputs

    @staticmethod
    def backward(ctx, *grad_outputs):
        pairs = [(g, d) for g, d in zip(grad_outputs, ctx.gradients, strict=True) if d is not None]
        total = sum(g.unsqueeze(-1).to(d.dtype) * d for g, d in pairs)
        return None, None, total, *(None,) * (len(ctx.needs_input_grad) - 3)


def _gradient(result: Tensor, leaf: Tensor) -> Tensor | None:
    """d result[i] / d leaf[i] for every position i, or None for a constant."""
    if not result.requires_grad:
        return None
    return torch.autograd.grad(result, leaf, torch.ones_like(result), retain_graph=True)[0]


def _joined(column: Sequence[Tensor | None]) -> Tensor | None:
    return None if column[0] is None else torch.cat(column)


def streamed(
    function: Callable[..., Sequence[Tensor]], hidden: Tensor, *context: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, ...]:
    """Applies a per-position function of hidden states a chunk of positions at a time.

    The gradient with respect to `hidden` is taken chunk by chunk during the forward pass (each output of a position
    depends on that position alone, so it is one vector a position and output); nothing of size [tokens, vocabulary]
    outlives its chunk.

    Args:
        function: takes (hidden [n, H], *context [n, ...]) and returns a sequence of tensors [n].
        hidden: [N, H], the only argument that gets a gradient.
        context: tensors of N rows, detached.
        chunk: positions at a time.

    Returns:
        The function's outputs, each [N].
    """
    if len(hidden) == 0:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; expected at least one position")
    return _Streamed.apply(function, chunk, hidden, *(c.detach() for c in context))
