"""What the trained methods share: micro-batches, the soft value of a next state, the optimiser step."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..agent import Agent, Sequences
from ..bellman import kl_divergence
from ..head import streamed
from ..rollout import Transition


def micro_batches(transitions: Sequence[Transition], size: int) -> Iterator[list[Transition]]:
    """Groups of at most `size` transitions, the longest sequences first.

    Sequences of a group are then about equally long, so little is padded; and a prompt that shows a failure is longer
    than the prompt that led to it, so a next state that was acted in is mostly known before it is asked for.
    """
    ordered = sorted(transitions, key=lambda t: (len(t.prompt) + len(t.action), t.action), reverse=True)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def pack(agent: Agent, group: Sequence[Transition]) -> Sequences:
    """The transitions' prompts and actions as one padded batch."""
    return Sequences.pack([t.prompt for t in group], [t.action for t in group], agent.device)


def next_token_kl(agent: Agent, policy_hidden: Tensor, reference_hidden: Tensor) -> Tensor:
    """KL[pi || rho] over the whole vocabulary at each position, [N], from hidden states [N, H]; no gradient."""

    def divergence(policy: Tensor, reference: Tensor) -> list[Tensor]:
        return [kl_divergence(agent.logits(policy), agent.logits(reference))]

    return streamed(divergence, policy_hidden.detach(), reference_hidden)[0]


def optimiser_step(optimiser: torch.optim.Optimizer, grad_norm: float) -> float:
    """Clips the gradient to `grad_norm`, steps, clears the gradient; returns the norm before clipping."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, grad_norm)
    optimiser.step()
    optimiser.zero_grad()
    return float(norm)
