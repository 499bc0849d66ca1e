"""The contracts between an update rule and everything around it.

An update rule (`Method`) is given a batch of transitions and changes the networks. It speaks to two things only.
`Networks` says what the policy, the critic and the frozen reference make of some actions, steps their weights, and
averages them; whether they are adapters of a language model or tables over a small world is not visible from here.
`Reducer` adds up what several processes computed on their shares of a batch.

Layout. A `Batch` holds B actions, padded on the right to T tokens. Position j of a row belongs to the prefix
(s, w¹ … wʲ), from which token j of the row (counted from 0) is drawn; it is the layout of `bellman`. What `Networks`
returns for a batch is [B, T] and 0 at padding. The four roles of a network are "policy" (π), "reference" (ρ, frozen),
"critic" (Q) and "target_critic" (Q̄, which follows the critic by Polyak averaging).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from etpo_core.bellman import position_mask

T = TypeVar("T")


@dataclass(frozen=True)
class Transition:
    """One action and what it earned.

    Attributes:
        prompt: token ids of the state s_t.
        action: token ids of the action a_t as sampled, end token included.
        log_probs: log μ of each action token, where μ is the behaviour policy: the distribution it was drawn from.
        reward: r(s_t, a_t).
        terminated: whether the episode ended with this action, so that no state follows.
        next_prompt: token ids of s_{t+1}; None when terminated. An episode that was truncated has one, and is
            bootstrapped from it.
        environment: the number of the environment in which the action was taken.
    """

    prompt: tuple[int, ...]
    action: tuple[int, ...]
    log_probs: tuple[float, ...]
    reward: float
    terminated: bool
    next_prompt: tuple[int, ...] | None
    environment: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """Some transitions as tensors, small enough to be computed at once (a micro-batch).

    Attributes:
        transitions: the B transitions, in the order of the rows.
        lengths: integer [B], tokens of each action.
        reward: [B] r_t.
        terminated: bool [B].
    """

    transitions: Sequence[Transition]
    lengths: Tensor
    reward: Tensor
    terminated: Tensor

    @cached_property
    def mask(self) -> Tensor:
        """Bool [B, T]: where there is a token."""
        return position_mask(self.lengths, int(self.lengths.max()))

    def flat(self, values: Tensor) -> Tensor:
        """The values [B, T, ...] at real positions as [N, ...], one action after another."""
        return values[self.mask]

    def padded(self, values: Tensor) -> Tensor:
        """The inverse of `flat`: [N, ...] spread over [B, T, ...], 0 at padding; gradients pass through."""
        mask = self.mask
        return values.new_zeros(*mask.shape, *values.shape[1:]).index_put(mask.nonzero(as_tuple=True), values)


B = TypeVar("B", bound=Batch)


class PolicyTerms(NamedTuple):
    """What the policy says of a batch.

    Attributes:
        log_prob: [B, T] log π of the tokens taken.
        kl: [B, T] KL[π‖ρ] of the next token over the whole vocabulary, in nats; no gradient.
    """

    log_prob: Tensor
    kl: Tensor


class Terms(NamedTuple):
    """What ETPO needs at each position of a batch when Q = V + A - E_π[A] with A = β (z_critic - z_ρ).

    Attributes:
        policy_loss: [B, T] KL(π ‖ ρ exp(Q/β) / Z) in nats; its gradient reaches the policy only.
        kl: [B, T] KL[π‖ρ] in nats; no gradient.
        log_prob: [B, T] log π of the tokens taken; no gradient.
        advantage: [B, T] A(w) - E_π[A] of the tokens taken, in units of reward; its gradient reaches the critic only.
        advantage_square: [B, T] E_π[(A - E_π[A])²]; its gradient reaches the critic only.
    """

    policy_loss: Tensor
    kl: Tensor
    log_prob: Tensor
    advantage: Tensor
    advantage_square: Tensor


class UpdateResult(NamedTuple):
    """What an update reports.

    Attributes:
        logged: figures for `updates.csv`.
        credit: how much better than the policy's mean each token of each action was held to be, in units of reward,
            before anything was learnt from the batch; a list for each transition, in their order. Empty for a method
            that does not train.
    """

    logged: dict[str, float]
    credit: list[list[float]]


class Networks(Protocol[B]):
    """The policy, the critic, its target and the reference, as an update rule sees them.

    `B` is the implementation's own kind of `Batch`: a rule hands back what it was given.
    """

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""

    def batches(self, transitions: Sequence[Transition]) -> list[B]:
        """The transitions in micro-batches that fit in memory, in whatever order suits the networks."""

    def state_batches(self, states: Iterable[tuple[int, ...]]) -> list[B]:
        """Micro-batches of states to be evaluated at their empty prefix (T is 1); row i is `transitions[i].prompt`."""

    def evaluate(self, batch: B, grad: bool = False) -> PolicyTerms:
        """log π of the tokens taken, with a gradient into the policy if `grad`, and KL[π‖ρ]."""

    def log_prob(self, batch: B, role: str, grad: bool = False) -> Tensor:
        """[B, T] log-probability of the tokens taken under a role, with a gradient into it if `grad`."""

    def terms(self, batch: B, beta: float, policy: Literal["trained", "fixed", "critic"]) -> Terms:
        """The terms of ETPO's two losses (`losses.policy_loss`, `losses.q_dueling`, `bellman.kl_divergence`).

        Args:
            batch: the actions.
            beta: β > 0, units of reward per nat.
            policy: "trained" if the policy's loss is to have a gradient, "fixed" if it needs none, "critic" if the
                policy has the critic's weights at this moment: it is then its own target policy, its loss is 0, and
                one network less is run.
        """

    def map_logits(
        self,
        batch: B,
        function: Callable[[dict[str, Tensor], Tensor], Sequence[Tensor]],
        roles: Sequence[str],
        learner: str | None = None,
    ) -> tuple[Tensor, ...]:
        """Any other function of logits, position by position.

        Args:
            batch: the actions.
            function: takes the logits [n, V] of each role at n positions, by role, and the tokens taken there [n];
                returns tensors [n], each of which depends on its own position alone.
            roles: whose logits are needed.
            learner: the role that the gradient of the results reaches; None for no gradient.

        Returns:
            The function's results, each [B, T].
        """

    def features(self, batch: B, role: str = "reference", grad: bool = False) -> Tensor:
        """[B, T, K] what a value is read off at each prefix, with a gradient into the role's weights if `grad`."""

    def value(self, features: Tensor) -> Tensor:
        """[...] the critic's scalar value head at features [..., K], with a gradient into head and features."""

    def adamw(self, rates: Mapping[str, float]) -> torch.optim.Optimizer:
        """AdamW without weight decay for "policy", "critic" or "value" (the value head), each with its rate."""

    def step(self, optimiser: torch.optim.Optimizer) -> float:
        """Clips the gradient of all processes, steps and clears it; returns its norm before clipping."""

    def parameters(self, role: str) -> Sequence[torch.nn.Parameter]:
        """The weights of a role that is trained."""

    def polyak_update(self, source: str, target: str, tau: float) -> None:
        """target ← τ target + (1 - τ) source; with τ = 0 the target takes the source's weights."""


class Reducer(Protocol):
    """What several processes that share a batch tell each other; with one process it changes nothing."""

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that this process computes."""

    def merge(self, items: list[T]) -> list[T]:
        """Undoes `share`: the results of all processes, in the order of the whole list."""

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """Each number added up over all processes."""

    def summed(self, values: Tensor) -> Tensor:
        """The sum of all processes' tensors."""

    def concatenated(self, values: Tensor) -> Tensor:
        """The vectors [n] of all processes one after another; no gradient."""


class Alone:
    """The `Reducer` of a single process."""

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """All of them."""
        return items

    def merge(self, items: list[T]) -> list[T]:
        """All of them."""
        return items

    def total(self, sums: dict[str, float]) -> dict[str, float]:
        """The same numbers."""
        return sums

    def summed(self, values: Tensor) -> Tensor:
        """The same tensor."""
        return values

    def concatenated(self, values: Tensor) -> Tensor:
        """The same vector."""
        return values


def credit_of(
    transitions: Sequence[Transition], batches: Sequence[Batch], values: Sequence[Tensor], reducer: Reducer
) -> list[list[float]]:
    """`UpdateResult.credit` of a whole batch from the values [B, T] of this process's micro-batches."""
    held = {
        id(t): row[:length].tolist()
        for batch, of_batch in zip(batches, values, strict=True)
        for t, row, length in zip(batch.transitions, of_batch, batch.lengths.tolist(), strict=True)
    }
    return reducer.merge([held[id(t)] for t in reducer.share(transitions)])


class Method(Protocol):
    """An update rule, built from the settings of its section and used as `start`, then `update` for every batch.

    Attributes:
        trains: whether it learns.
        reflect: whether a failed try comes back with its error for another step.
        optimisers: after `start`, those whose learning rates the training loop lowers; empty if it does not train.
    """

    trains: bool
    reflect: bool
    optimisers: list[torch.optim.Optimizer]

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """Takes the networks to train."""

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """Learns from one whole batch, ordered by time and then by environment.

        Every process is given the whole batch and computes its `Reducer.share`; what is logged is of all of it.
        """

    def get_state(self) -> dict[str, Any]:
        """What the next update depends on besides the networks, for a checkpoint."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
