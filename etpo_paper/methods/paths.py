"""Path consistency: what `tbrm`, `shiq` and `oreo` have in common.

Where π = ρ exp(Q/β) / Z, the soft value V(s) = β log Σ_w ρ(w) exp(Q(w)/β) and the policy tell the same story: along
whatever was drawn,

    V(prefix) = r + γ V(s') - β Σ log π/ρ, over the tokens from the prefix to the end of the action.

It holds for every token, not only on average over π, and for no other policy. So its residual can be squared and
minimised on any data, whoever drew them, without a ratio of probabilities. The three methods differ in where V comes
from and in which residuals they square.

An action is a path. What follows it enters as γ V(s'), evaluated before the update and held constant; nothing follows
an action that terminated its episode, and a truncated one is bootstrapped. So reflection states are ordinary states.
The methods' papers have deterministic transitions, and there one residual could span all tries of an episode. Squared,
it would be biased where the next state is random, because the policy would be asked to explain which state came; with
a constant V(s'), the mean of what is regressed to is Q(s, a), and there is no bias.
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from etpo_core.bellman import kl_divergence, token_log_prob
from etpo_core.interfaces import Batch, Networks, Reducer, Transition, UpdateResult, credit_of


class Rows(NamedTuple):
    """What whole rows of logits say at each position; the gradient reaches the policy.

    Attributes:
        level: [B, T] log Σ_w exp z(w) of the policy, in nats.
        reference_level: [B, T] the same of the reference.
        log_ratio: [B, T] log π - log ρ of the tokens taken, in nats.
        kl: [B, T] KL[π‖ρ] in nats.
    """

    level: Tensor
    reference_level: Tensor
    log_ratio: Tensor
    kl: Tensor


class PathConsistency:
    """Squares residuals of path consistency; a method says which, and where V comes from.

    Args:
        beta: β > 0, weight of KL[π‖ρ], in units of reward per nat.
        gamma: γ, discount between actions; inside an action the discount is 1.
        epochs: passes over a batch. Next states are valued before the first, and their values kept.
        policy_lr: learning rate of the policy.
        reflect: whether failed tries come back with their error.
    """

    trains = True

    def __init__(
        self, *, beta: Annotated[float, Field(gt=0)], gamma: float, epochs: int, policy_lr: float, reflect: bool
    ):
        self.beta, self.gamma, self.epochs = beta, gamma, epochs
        self.policy_lr, self.reflect = policy_lr, reflect
        self.optimisers: list[torch.optim.Optimizer] = []

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """See `Method.start`."""
        self.networks, self.reducer = networks, reducer
        self.optimisers = [networks.adamw({"policy": self.policy_lr})]

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """`epochs` passes over a batch. See `Method.update`."""
        networks, reducer, count = self.networks, self.reducer, len(transitions)
        batches = networks.batches(reducer.share(transitions))
        returns, credit = self._returns(batches), []
        sums = {"policy_loss": 0.0, "critic_loss": 0.0, "kl": 0.0}
        for epoch in range(self.epochs):
            for batch, earned in zip(batches, returns, strict=True):
                rows = self._rows(batch, grad=True)
                policy_loss, critic_loss = self._losses(batch, rows, earned)
                ((policy_loss + critic_loss).sum() / count).backward()
                sums["policy_loss"] += float(policy_loss.detach().sum())
                sums["critic_loss"] += float(critic_loss.detach().sum())
                if epoch == 0:  # Q(w) - E_π[Q] is β (log π/ρ - KL), by Q = V + β log π/ρ
                    credit.append(self.beta * (rows.log_ratio - rows.kl).detach())
                    sums["kl"] += float(rows.kl.detach().sum())
            for optimiser in self.optimisers:
                networks.step(optimiser)
        sums = reducer.total(sums)
        logged = {
            "policy_loss": sums["policy_loss"] / (count * self.epochs),
            "critic_loss": sums["critic_loss"] / (count * self.epochs),
            "kl_per_token": sums["kl"] / sum(len(t.action) for t in transitions),
            "kl_per_action": sums["kl"] / count,
        }
        return UpdateResult(logged, credit_of(transitions, batches, credit, reducer))

    def _losses(self, batch: Batch, rows: Rows, earned: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's and the critic's loss [B, T], in units of reward squared, 0 at padding.

        Args:
            batch: the actions.
            rows: what the policy says of them.
            earned: [B] r + γ V(s').
        """
        raise NotImplementedError

    def _value(self, batch: Batch) -> Tensor:
        """[B] V of each state at its empty prefix, in units of reward; no gradient is taken."""
        raise NotImplementedError

    def _rows(self, batch: Batch, grad: bool) -> Rows:
        """See `Rows`."""

        def of(logits: dict[str, Tensor], tokens: Tensor) -> list[Tensor]:
            policy, reference = logits["policy"], logits["reference"]
            ratio = token_log_prob(policy, tokens) - token_log_prob(reference, tokens)
            levels = policy.logsumexp(-1), reference.logsumexp(-1)
            return [*levels, ratio, kl_divergence(policy, reference)]

        return Rows(*self.networks.map_logits(batch, of, ["policy", "reference"], "policy" if grad else None))

    @torch.no_grad()
    def _returns(self, batches: Sequence[Batch]) -> list[Tensor]:
        """[B] r + γ V(s') of each micro-batch's actions; nothing follows where an episode terminated."""
        following = {t.next_prompt for batch in batches for t in batch.transitions if t.next_prompt}
        known: dict[tuple[int, ...] | None, float] = {None: 0.0}
        for states in self.networks.state_batches(following):
            known.update((t.prompt, v) for t, v in zip(states.transitions, self._value(states).tolist(), strict=True))
        return [
            batch.reward + self.gamma * batch.reward.new_tensor([known[t.next_prompt] for t in batch.transitions])
            for batch in batches
        ]

    def get_state(self) -> dict[str, Any]:
        """See `Method.get_state`."""
        return {"optimisers": [o.state_dict() for o in self.optimisers]}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `Method.set_state`."""
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def from_here(values: Tensor) -> Tensor:
    """[B, T] the sum over each position and those behind it, of values that are 0 at padding."""
    return values.flip(-1).cumsum(-1).flip(-1)
