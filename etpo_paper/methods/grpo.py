"""GRPO: an action counts by how it did within its group (arXiv 2402.03300, DeepSeekMath).

The control that everybody knows: no critic, no soft value. A group is the batch's actions from one state. Every token
of an action has the same advantage, and the loss is (equations 3 and 4 there)

    A = (R - mean of the group) / deviation of the group
    L = mean over actions of 1/T Σ_j [-min(κ_j A, clip(κ_j, 1 - ε, 1 + ε) A) + β k3_j],  κ_j = π(wʲ) / μ(wʲ)

with k3 the estimator of KL[π‖ρ] at each token (`kl`), differentiated as it stands. `kl` and `kl_in` choose another one,
or charge it to the return instead.

Choices. R is the discounted sum of an environment's rewards from the action to the end of its episode or of the batch.
The paper has one turn; what lies behind the batch counts as 0, because there is no value to ask. The first tries of an
episode that was cut are so judged by less than they led to. A group of one, as a reflection state often is, has no
advantage: only the KL moves its action. The deviation is that of the group as a population, with 1e-8 added. All
actions of a batch have the same weight, whatever their group.

What to know. The reward is measured in deviations of its group and the KL is not, so what is priced is β times that
deviation, another one in each state: the fixed point is not ρ exp(Q/β) / Z. The more certain the policy, the less its
rewards deviate and the less the KL costs; below some β nothing but a policy without doubt is a fixed point. A shared
offset of rewards cancels. With k3 as the loss the penalty's gradient is that of KL[ρ‖π] at fixed prefixes.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from etpo_core.bellman import kl_divergence, token_log_prob
from etpo_core.interfaces import Batch, Networks, Reducer, Transition, UpdateResult, credit_of
from etpo_core.losses import ppo_clipped_loss
from etpo_paper.methods.kl import Kind, Place, kl_estimate


class GRPO:
    """Group-relative policy optimisation.

    Args:
        beta: β, weight of the KL: in deviations of the reward per nat as a loss, in units of reward as part of it.
        gamma: γ, discount between actions.
        clip: ε; the ratio of probabilities is clipped to [1 - ε, 1 + ε].
        epochs: passes over a batch.
        policy_lr: learning rate of the policy.
        reflect: whether failed tries come back with their error.
        kl: the estimator of the KL, see `kl`.
        kl_in: whether the KL is part of the loss or of the reward.
    """

    trains = True

    def __init__(
        self,
        *,
        beta: float,
        gamma: float,
        clip: float,
        epochs: int,
        policy_lr: float,
        reflect: bool,
        kl: Kind = "k3",
        kl_in: Place = "loss",
    ):
        self.beta, self.gamma, self.clip, self.epochs = beta, gamma, clip, epochs
        self.policy_lr, self.reflect, self.kl, self.kl_in = policy_lr, reflect, kl, kl_in
        self.optimisers: list[torch.optim.Optimizer] = []

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """See `Method.start`."""
        self.networks, self.reducer = networks, reducer
        self.optimisers = [networks.adamw({"policy": self.policy_lr})]

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """`epochs` passes over a batch; ratios are taken against the policy before the first. See `Method.update`."""
        networks, reducer, count = self.networks, self.reducer, len(transitions)
        batches = networks.batches(reducer.share(transitions))
        old, reference, sums = [], [], {"policy_loss": 0.0, "kl": 0.0}
        charged: dict[int, float] = {}
        for batch in batches:
            # One graph at a time fits in memory, and that of the last micro-batch serves the first pass as well.
            terms = networks.evaluate(batch, grad=batch is batches[-1] and not self._learns_exact_kl)
            old.append(self._decisions(terms.log_prob.detach()))
            reference.append(self._decisions(networks.log_prob(batch, "reference")))
            exact = self._decisions(terms.kl)
            penalty = exact if self.kl == "full" else kl_estimate(old[-1] - reference[-1], self.kl)
            cost = (self.beta * penalty * (self.kl_in == "reward")).sum(-1)
            charged.update((id(t), c) for t, c in zip(batch.transitions, cost.tolist(), strict=True))
            sums["kl"] += float(terms.kl.sum())
        costs = reducer.merge([charged[id(t)] for t in reducer.share(transitions)])
        advantage = self._advantages(transitions, self._returns(transitions, costs))
        found = {id(t): a for t, a in zip(transitions, advantage, strict=True)}
        weights = [b.reward.new_tensor([found[id(t)] for t in b.transitions])[:, None] for b in batches]
        rows = list(zip(batches, old, reference, weights, strict=True))
        first = None if self._learns_exact_kl else terms.log_prob
        for epoch in range(self.epochs):
            for batch, before, of_reference, weight in reversed(rows):
                known = first if epoch == 0 and batch is batches[-1] else None
                log_prob, exact = self._policy(batch, known)
                loss = ppo_clipped_loss(log_prob, before, weight.expand_as(before), self.clip)
                if self.kl_in == "loss":
                    estimate = exact if self.kl == "full" else kl_estimate(log_prob - of_reference, self.kl)
                    loss = loss + self.beta * estimate
                loss = loss * self._share(batch)
                (loss.sum() / count).backward()
                sums["policy_loss"] += float(loss.detach().sum())
            networks.step(self.optimisers[0])
        sums = reducer.total(sums)
        logged = {
            "policy_loss": sums["policy_loss"] / (count * self.epochs),
            "kl_per_token": sums["kl"] / sum(len(t.action) for t in transitions),
            "kl_per_action": sums["kl"] / count,
        }
        credit = [weight * batch.mask for weight, batch in zip(weights, batches, strict=True)]
        return UpdateResult(logged, credit_of(transitions, batches, credit, reducer))

    # What a decision is, and what it is compared with; `rloo` replaces these --------------------------------------

    def _decisions(self, values: Tensor) -> Tensor:
        """[B, D] values of each decision, from those of each token [B, T]: here tokens are decisions."""
        return values

    def _share(self, batch: Batch) -> Tensor:
        """[B, D] the weight of each decision in its action's loss."""
        return batch.mask / batch.lengths[:, None].to(batch.reward.dtype)

    def _compared(self, returns: Tensor) -> Tensor:
        """[G] the advantage of each action of one group, from their returns."""
        return (returns - returns.mean()) / (returns.std(correction=0) + 1e-8)

    # ----------------------------------------------------------------------------------------------------------------

    @property
    def _learns_exact_kl(self) -> bool:
        """Whether the loss has the KL over the whole vocabulary, with its gradient."""
        return self.kl == "full" and self.kl_in == "loss"

    def _policy(self, batch: Batch, known: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, D] log π of what was drawn, and the KL over the whole vocabulary if it is to be learnt from.

        Args:
            batch: the actions.
            known: [B, T] log π of each token with its gradient, where it is there already.
        """
        if not self._learns_exact_kl:
            log_prob = self._decisions(self.networks.log_prob(batch, "policy", grad=True) if known is None else known)
            return log_prob, torch.zeros_like(log_prob)

        def of(logits: dict[str, Tensor], tokens: Tensor) -> list[Tensor]:
            policy = logits["policy"]
            return [token_log_prob(policy, tokens), kl_divergence(policy, logits["reference"])]

        log_prob, kl = self.networks.map_logits(batch, of, ["policy", "reference"], "policy")
        return self._decisions(log_prob), self._decisions(kl)

    def _returns(self, transitions: Sequence[Transition], costs: Sequence[float]) -> list[float]:
        """r - cost of each action, and what its environment earned after it in the same episode, discounted."""
        after: dict[int, float] = defaultdict(float)
        returns = []
        for t, cost in zip(reversed(transitions), reversed(costs), strict=True):
            after[t.environment] = t.reward - cost + self.gamma * (not t.terminated) * after[t.environment]
            returns.append(after[t.environment])
        return returns[::-1]

    def _advantages(self, transitions: Sequence[Transition], returns: Sequence[float]) -> list[float]:
        """The advantage of each action within the group of its state, 0 in a group of one."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, t in enumerate(transitions):
            groups[t.prompt].append(row)
        advantages = [0.0] * len(returns)
        for rows in groups.values():
            if len(rows) > 1:
                found = self._compared(torch.tensor([returns[row] for row in rows], dtype=torch.float64))
                for row, advantage in zip(rows, found.tolist(), strict=True):
                    advantages[row] = advantage
        return advantages

    def get_state(self) -> dict[str, Any]:
        """See `Method.get_state`."""
        return {"optimisers": [o.state_dict() for o in self.optimisers]}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `Method.set_state`."""
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
