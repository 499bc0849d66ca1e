"""Quantities over the whole vocabulary, without a [tokens, vocabulary] tensor.

The networks hand over hidden states; the language-model head, frozen and shared by all of them, turns a hidden state
into one logit a token. With 49,152 tokens in the vocabulary those logits are large, so they are made for a few
positions at a time, reduced to the scalars that the method needs, and forgotten. `streamed` does that for any
function of hidden states and keeps the gradient with respect to the hidden states that the function would have had;
`dueling_terms` does it for ETPO's two losses at once, with gradients in closed form.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class DuelingTerms(NamedTuple):
    """What ETPO needs at each position under the dueling reading of Q, all [N].

    Attributes:
        policy_loss: KL(pi || rho exp(Q/beta) / Z); gradient into the policy's hidden states only.
        kl: KL[pi || rho], no gradient.
        log_prob: log pi(w) of the given tokens, no gradient.
        advantage: A(w) of the given tokens, in units of reward; gradient into the critic's hidden states only.
        spread: E_pi[A^2]; gradient into the critic's hidden states only.
    """

    policy_loss: Tensor
    kl: Tensor
    log_prob: Tensor
    advantage: Tensor
    spread: Tensor


class _DuelingTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, policy, reference, critic, weight, tokens, beta, chunk):
        rows = [slice(start, start + chunk) for start in range(0, len(policy), chunk)]
        parts = [_dueling_chunk(policy[r], reference[r], critic[r], weight, tokens[r], beta) for r in rows]
        terms = [torch.cat(column) for column in zip(*parts, strict=True)]
        ctx.save_for_backward(*terms[5:])
        ctx.mark_non_differentiable(terms[1], terms[2])
        return tuple(terms[:5])

    @staticmethod
    def backward(ctx, grad_loss, _kl, _log_prob, grad_advantage, grad_spread):
        loss, advantage, spread = ctx.saved_tensors
        into_critic = grad_advantage[:, None] * advantage + grad_spread[:, None] * spread
        return grad_loss[:, None] * loss, None, into_critic, None, None, None, None


def _dueling_chunk(policy, reference, critic, weight, tokens, beta):
    """The five terms of some positions, and their gradients [n, H]: of the loss, of A(w), of E_pi[A^2].

    With A = beta (d - E_pi[d]), d = z_critic - z_reference, the optimum rho exp(A/beta) / Z is softmax(z_critic): the
    loss is KL(pi || softmax(z_critic)), and everything follows from three products with the head and three back.
    """
    index = tokens[:, None]
    log_policy, log_reference, log_critic = (torch.log_softmax(h @ weight.T, -1) for h in (policy, reference, critic))
    p = log_policy.exp()
    log_prob = log_policy.gather(-1, index).squeeze(-1)
    kl = (p * (log_policy - log_reference)).sum(-1)

    difference = log_critic - log_reference
    mean_difference = (p * difference).sum(-1, keepdim=True)
    gap = log_policy.sub_(log_critic)
    loss = (p * gap).sum(-1)
    loss_gradient = (gap.sub_(loss[:, None]).mul_(p)) @ weight

    centred = difference.sub_(mean_difference)
    advantage = beta * centred.gather(-1, index).squeeze(-1)
    advantage_gradient = beta * (weight[tokens] - p @ weight)
    weighted = p.mul_(centred)  # p is not needed any more
    spread = beta**2 * (weighted * centred).sum(-1)
    spread_gradient = 2 * beta**2 * (weighted @ weight)
    return loss, kl, log_prob, advantage, spread, loss_gradient, advantage_gradient, spread_gradient


def dueling_terms(
    policy: Tensor,
    reference: Tensor,
    critic: Tensor,
    weight: Tensor,
    tokens: Tensor,
    beta: float,
    chunk: int = CHUNK,
) -> DuelingTerms:
    """The terms of ETPO's two losses under the dueling reading of Q, from hidden states and the frozen head.

    Equal to `losses.policy_loss`, `bellman.kl_divergence` and `losses.q_dueling` on whole logits (the tests say so),
    with the advantage a constant in the policy's loss and the policy a constant in the critic's.

    Args:
        policy: hidden states [N, H].
        reference: hidden states [N, H], a constant.
        critic: hidden states [N, H].
        weight: the head [vocabulary, H], frozen.
        tokens: token ids [N] whose advantage and log-probability are wanted.
        beta: weight of the KL, in units of reward.
        chunk: positions at a time.
    """
    if not len(policy) == len(reference) == len(critic) == len(tokens) > 0:
        sizes = [len(t) for t in (policy, reference, critic, tokens)]
        raise ValueError(f"policy, reference, critic, tokens have {sizes} positions; expected the same number, not 0")
    return DuelingTerms(*_DuelingTerms.apply(policy, reference, critic, weight, tokens, beta, chunk))
