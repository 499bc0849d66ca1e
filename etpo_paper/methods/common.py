"""What the trained methods share: micro-batches, the soft value of a next state, the optimiser step."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from etpo_paper.base import distributed
from etpo_paper.environment.rollout import Transition
from etpo_paper.model.agent import Agent, Sequences, shared_length
from etpo_paper.model.head import statistics


class Learnt(NamedTuple):
    """What an update tells.

    Attributes:
        logged: figures for `updates.csv`.
        credit: how much better than the policy's mean each token of each action was held to be, in units of reward,
            before anything was learnt from the batch; a list for each transition, in their order. Empty for a method
            that does not train.
    """

    logged: dict[str, float]
    credit: list[list[float]]


def credit_of(
    transitions: Sequence[Transition], groups: Iterable[Sequence[Transition]], parts: Iterable[Sequence[Tensor]]
) -> list[list[float]]:
    """`Learnt.credit` of a whole batch from this process's groups: for each a tensor [tokens] of every transition."""
    held = {
        id(t): part.tolist()
        for group, of_group in zip(groups, parts, strict=True)
        for t, part in zip(group, of_group, strict=True)
    }
    return distributed.merge([held[id(t)] for t in distributed.own(transitions)])


def micro_batches(transitions: Sequence[Transition], tokens: int) -> Iterator[list[Transition]]:
    """Groups of transitions that take at most `tokens` tokens each, padding included, the longest sequences first.

    What all prompts of a group begin with counts once, as it is computed once, and so do equal sequences. Sequences of
    a group are about equally long, so little is padded; and a prompt that shows a failure is longer than the prompt
    that led to it, so a next state that was acted in is mostly known before it is asked for. A transition too long for
    the limit goes alone.
    """
    group: list[Transition] = []
    for t in sorted(transitions, key=lambda t: (len(t.prompt) + len(t.action), t.action, t.prompt), reverse=True):
        if group:
            shared = shared_length([u.prompt for u in (*group, t)])
            longest = len(group[0].prompt) + len(group[0].action)
            distinct = {(u.prompt, u.action) for u in (*group, t)}
            if shared + len(distinct) * (longest - shared) > tokens:
                yield group
                group = []
        group.append(t)
    if group:
        yield group


def pack(agent: Agent, group: Sequence[Transition]) -> Sequences:
    """The transitions' prompts and actions as one padded batch."""
    return Sequences.pack([t.prompt for t in group], [t.action for t in group], agent.device)


def state_batches(
    agent: Agent, states: Iterable[tuple[int, ...]], tokens: int
) -> Iterator[tuple[list[tuple[int, ...]], Sequences]]:
    """States to be evaluated at their last token, in batches of at most `tokens` tokens."""
    # The hidden state at a prompt's last position does not see the token that stands behind it.
    alone = [Transition(state, (0,), (0.0,), 0.0, True, None) for state in states]
    for group in micro_batches(alone, tokens):
        yield [t.prompt for t in group], pack(agent, group)


def next_token_kl(agent: Agent, policy_hidden: Tensor, reference_hidden: Tensor) -> Tensor:
    """KL[pi || rho] over the whole vocabulary at each position, [N], from hidden states [N, H]; no gradient."""
    return statistics(policy_hidden.detach(), agent.head_weight, reference=reference_hidden).kl


def token_log_prob(agent: Agent, batch: Sequences, hidden: Tensor) -> Tensor:
    """log-probability [N] of the action tokens from hidden states [M, H] at their distinct positions."""
    return batch.each(statistics(hidden, agent.head_weight, tokens=batch.tokens).log_prob)


def adamw(momentum: float, *parts: tuple[Iterable[nn.Parameter], float]) -> torch.optim.Optimizer:
    """AdamW without weight decay for parameters and their learning rate; `momentum` is its first beta."""
    groups = [{"params": list(parameters), "lr": rate} for parameters, rate in parts]
    return torch.optim.AdamW(groups, betas=(momentum, 0.999), weight_decay=0.0)


def set_rates(optimisers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Sets all learning rates to a share of what they were at first; the first ones are kept in the state."""
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["lr"] = share * group.setdefault("initial_lr", group["lr"])


def optimiser_step(optimiser: torch.optim.Optimizer, grad_norm: float) -> float:
    """Clips the gradient, of all processes, to `grad_norm`, steps, clears it; returns the norm before clipping."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    distributed.sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, grad_norm)
    optimiser.step()
    optimiser.zero_grad()
    return float(norm)
