"""POAD: token-level PPO under Bellman backups with action decomposition (arXiv 2405.15821).

As `ppo_kl`, but every token is a decision of its own. It has a value V(s, w¹ … wʲ⁻¹), read by a scalar head off the
critic's features, an advantage from λ-returns that run undiscounted through the action, and a clipped ratio. Each token
pays -β log π/ρ of itself, whose mean is the KL at its position.

With `discount_tokens` it is NTPO of the same paper: tokens are ordinary time steps, and γ also stands between the
tokens of one action. The reward of an action of L tokens then reaches its first token as γ^{L-1} r, and what is
maximised depends on how long an action is written, which is the mistake that action decomposition removes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from etpo_core.bellman import lambda_targets
from etpo_core.interfaces import Batch, Networks, Reducer, Transition, UpdateResult, credit_of
from etpo_core.losses import critic_loss, ppo_clipped_loss


class POAD:
    """Token-level PPO with a KL penalty.

    Args:
        beta: β, weight of the KL in the reward, in units of reward per nat.
        gamma: γ, discount between actions.
        lam: λ of the returns inside an action (generalised advantage estimation).
        clip: ε; the ratio of a token's probabilities is clipped to [1 - ε, 1 + ε].
        epochs: passes over a batch.
        policy_lr: learning rate of the policy.
        critic_lr: learning rate of the critic.
        value_lr: learning rate of the critic's value head.
        reflect: whether failed tries come back with their error.
        discount_tokens: whether γ also stands between tokens (NTPO).
    """

    trains = True

    def __init__(
        self,
        *,
        beta: float,
        gamma: float,
        lam: float,
        clip: float,
        epochs: int,
        policy_lr: float,
        critic_lr: float,
        value_lr: float,
        reflect: bool,
        discount_tokens: bool = False,
    ):
        self.beta, self.gamma, self.lam, self.clip, self.epochs = beta, gamma, lam, clip, epochs
        self.policy_lr, self.critic_lr, self.value_lr, self.reflect = policy_lr, critic_lr, value_lr, reflect
        self.inner_discount = gamma if discount_tokens else 1.0
        self.optimisers: list[torch.optim.Optimizer] = []

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """See `Method.start`."""
        self.networks, self.reducer = networks, reducer
        self.optimisers = [
            networks.adamw({"policy": self.policy_lr}),
            networks.adamw({"critic": self.critic_lr, "value": self.value_lr}),
        ]

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """`epochs` passes over a batch; ratios are taken against the policy before the first. See `Method.update`."""
        networks, reducer = self.networks, self.reducer
        batches, total = networks.batches(reducer.share(transitions)), sum(len(t.action) for t in transitions)
        values, old_log_probs, penalties, kl = [], [], [], 0.0
        for batch in batches:
            values.append(self._value(batch))
            terms = networks.evaluate(batch)
            old_log_probs.append(terms.log_prob)
            penalties.append(self.beta * (terms.log_prob - networks.log_prob(batch, "reference")))
            kl += float(batch.flat(terms.kl).sum())
        following = self._next_values(batches, values)
        returns = [self._returns(*row) for row in zip(batches, values, penalties, following, strict=True)]
        advantages = [goal - value for goal, value in zip(returns, values, strict=True)]
        everyones = reducer.concatenated(torch.cat([b.flat(a) for b, a in zip(batches, advantages, strict=True)]))
        mean, deviation = everyones.mean(), everyones.std(correction=0) + 1e-8
        sums = {"policy_loss": 0.0, "critic_loss": 0.0, "kl": kl}
        for _ in range(self.epochs):
            for batch, old, advantage, goal in zip(batches, old_log_probs, advantages, returns, strict=True):
                log_prob = networks.log_prob(batch, "policy", grad=True)
                weight = (advantage - mean) / deviation
                losses = batch.flat(ppo_clipped_loss(log_prob, old, weight, self.clip))
                error = batch.flat(critic_loss(self._value(batch, grad=True), goal, batch.mask))
                ((losses + error).sum() / total).backward()
                sums["policy_loss"] += float(losses.detach().sum())
                sums["critic_loss"] += float(error.detach().sum())
            for optimiser in self.optimisers:
                networks.step(optimiser)
        sums = reducer.total(sums)
        logged = {
            "policy_loss": sums["policy_loss"] / (total * self.epochs),
            "critic_loss": sums["critic_loss"] / (total * self.epochs),
            "kl_per_token": sums["kl"] / total,
            "kl_per_action": sums["kl"] / len(transitions),
        }
        return UpdateResult(logged, credit_of(transitions, batches, advantages, reducer))

    def _value(self, batch: Batch, grad: bool = False) -> Tensor:
        """[B, T] V of each prefix."""
        with torch.set_grad_enabled(grad):
            return self.networks.value(self.networks.features(batch, "critic", grad)) * batch.mask

    def _returns(self, batch: Batch, values: Tensor, penalty: Tensor, next_value: Tensor) -> Tensor:
        """[B, T] λ-return of each token, its own penalty included."""
        # V counts the penalties from its own position on; the backup's V + penalty counts those behind it.
        ends = batch.reward, batch.terminated, next_value
        targets = lambda_targets(
            values + penalty,
            penalty,
            batch.lengths,
            *ends,
            beta=1.0,
            gamma=self.gamma,
            lam=self.lam,
            inner_discount=self.inner_discount,
        )
        return (targets - penalty) * batch.mask

    def _next_values(self, batches: Sequence[Batch], values: Sequence[Tensor]) -> list[Tensor]:
        """[B] V(s') of each transition of each micro-batch, 0 where nothing follows."""
        known: dict[tuple[int, ...], float] = {}
        for batch, value in zip(batches, values, strict=True):
            known.update((t.prompt, v) for t, v in zip(batch.transitions, value[:, 0].tolist(), strict=True))
        unknown = {t.next_prompt for b in batches for t in b.transitions if t.next_prompt} - known.keys()
        for batch in self.networks.state_batches(unknown):
            known.update(
                (t.prompt, v) for t, v in zip(batch.transitions, self._value(batch)[:, 0].tolist(), strict=True)
            )
        rows = [[known[t.next_prompt] if t.next_prompt else 0.0 for t in batch.transitions] for batch in batches]
        return [torch.tensor(row, device=self.networks.device) for row in rows]

    def get_state(self) -> dict[str, Any]:
        """See `Method.get_state`."""
        return {"optimisers": [o.state_dict() for o in self.optimisers]}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `Method.set_state`."""
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
