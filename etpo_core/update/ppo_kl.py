"""PPO-KL: action-level PPO with the KL in the reward (arXiv 2402.06700, baseline).

An action is one decision. Its reward is r - β KL[π‖ρ], its advantage is the same for each of its tokens, and the
clipped ratio is that of the whole action's probability. The KL is estimated by log π(a|s) - log ρ(a|s) of the action
drawn, whose mean is KL[π‖ρ](s). Unlike the full divergence, which is one number for a state, it differs from action to
action, so the policy's gradient depends on it. V(s) is a scalar head on the reference's features at the prompt's end.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from etpo_core.interfaces import Batch, Networks, Reducer, Transition, UpdateResult, credit_of
from etpo_core.losses import ppo_clipped_loss


class PPOKL:
    """Action-level PPO with a KL penalty.

    Args:
        beta: β, weight of the KL in the reward, in units of reward per nat.
        gamma: γ, discount between actions.
        clip: ε; the ratio of probabilities is clipped to [1 - ε, 1 + ε].
        epochs: passes over a batch.
        policy_lr: learning rate of the policy.
        value_lr: learning rate of the value head.
        reflect: whether failed tries come back with their error.
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
        value_lr: float,
        reflect: bool,
    ):
        self.beta, self.gamma, self.clip, self.epochs = beta, gamma, clip, epochs
        self.policy_lr, self.value_lr, self.reflect = policy_lr, value_lr, reflect
        self.optimisers: list[torch.optim.Optimizer] = []

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """See `Method.start`."""
        self.networks, self.reducer = networks, reducer
        self.optimisers = [networks.adamw({"policy": self.policy_lr}), networks.adamw({"value": self.value_lr})]

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """`epochs` passes over a batch; ratios are taken against the policy before the first. See `Method.update`."""
        networks, reducer, (policy_optimiser, value_optimiser) = self.networks, self.reducer, self.optimisers
        batches = networks.batches(reducer.share(transitions))
        features, old_log_probs, log_ratios, kl = [], [], [], 0.0
        for batch in batches:
            features.append(networks.features(batch)[:, 0])
            # One graph at a time fits in memory, and that of the last micro-batch serves the first pass as well.
            terms = networks.evaluate(batch, grad=batch is batches[-1])
            old_log_probs.append(terms.log_prob.detach().sum(-1))
            log_ratios.append(old_log_probs[-1] - networks.log_prob(batch, "reference").sum(-1))
            kl += float(batch.flat(terms.kl).sum())
        state = torch.cat(features)
        with torch.no_grad():
            reward = torch.cat([batch.reward for batch in batches]) - self.beta * torch.cat(log_ratios)
            returns = reward + self.gamma * self._next_value(batches, state)
            advantage = returns - networks.value(state)
        sizes = [len(batch.transitions) for batch in batches]
        rows = list(zip(batches, old_log_probs, self._normalised(advantage).split(sizes), strict=True))
        sums = {"policy_loss": 0.0, "critic_loss": 0.0, "kl": kl}
        for epoch in range(self.epochs):
            for batch, old, weight in reversed(rows):
                known = epoch == 0 and batch is batches[-1]
                log_prob = terms.log_prob if known else networks.log_prob(batch, "policy", grad=True)
                loss = ppo_clipped_loss(log_prob.sum(-1), old, weight, self.clip)
                (loss.sum() / len(transitions)).backward()
                sums["policy_loss"] += float(loss.detach().sum())
            self._learn_besides(len(transitions))
            networks.step(policy_optimiser)
            error = (networks.value(state) - returns).square()
            (error.sum() / len(transitions)).backward()
            sums["critic_loss"] += float(error.detach().sum())
            networks.step(value_optimiser)
        sums, passes = reducer.total(sums), len(transitions) * self.epochs
        logged = {
            "policy_loss": sums["policy_loss"] / passes,
            "critic_loss": sums["critic_loss"] / passes,
            "kl_per_token": sums["kl"] / sum(len(t.action) for t in transitions),
            "kl_per_action": sums["kl"] / len(transitions),
        }
        of_tokens = [a[:, None] * b.mask for a, b in zip(advantage.split(sizes), batches, strict=True)]
        return UpdateResult(logged, credit_of(transitions, batches, of_tokens, reducer))

    def _normalised(self, advantage: Tensor) -> Tensor:
        """The advantages [n] less the mean of all processes', over their standard deviation."""
        everyones = self.reducer.concatenated(advantage)
        return (advantage - everyones.mean()) / (everyones.std(correction=0) + 1e-8)

    def _learn_besides(self, actions: int) -> None:
        """Adds, in each pass, the gradients of what a variant learns from besides the batch; losses over `actions`."""

    def _next_value(self, batches: Sequence[Batch], state: Tensor) -> Tensor:
        """V(s') [n], 0 where nothing follows; `state` [n, K] holds the features of the states that were acted in."""
        transitions = [t for batch in batches for t in batch.transitions]
        known = {t.prompt: f for t, f in zip(transitions, state, strict=True)}
        unknown = {t.next_prompt for t in transitions if t.next_prompt} - known.keys()
        for batch in self.networks.state_batches(unknown):
            found = self.networks.features(batch)[:, 0]
            known.update((t.prompt, f) for t, f in zip(batch.transitions, found, strict=True))
        following = [known[t.next_prompt] if t.next_prompt else state[0] for t in transitions]
        terminated = torch.cat([batch.terminated for batch in batches])
        return self.networks.value(torch.stack(following)) * ~terminated

    def get_state(self) -> dict[str, Any]:
        """See `Method.get_state`."""
        return {"optimisers": [o.state_dict() for o in self.optimisers]}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `Method.set_state`."""
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
