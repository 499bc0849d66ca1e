"""POAD: token-level PPO under Bellman backups with action decomposition (arXiv 2405.15821).

As `ppo_kl`, but every token is a decision of its own: it has a value V(s, w^1 ... w^{j-1}), read by a scalar head off
the critic's hidden state, an advantage from lambda-returns that run undiscounted through the action, and a clipped
ratio. Each token pays -beta log pi/rho of itself, whose mean is the KL at its position.
"""

import torch
from torch import Tensor

from etpo_core.bellman import lambda_targets
from etpo_core.losses import critic_loss, ppo_clipped_loss
from etpo_paper.base import distributed
from etpo_paper.base.settings import Settings
from etpo_paper.environment.rollout import Transition
from etpo_paper.methods.common import (
    Learnt,
    adamw,
    credit_of,
    micro_batches,
    optimiser_step,
    pack,
    state_batches,
    token_log_prob,
)
from etpo_paper.model.agent import Agent, Sequences
from etpo_paper.model.head import statistics


class POAD:
    """Token-level PPO with a KL penalty and no discount inside an action.

    Args:
        beta: weight of the KL in the reward.
        gamma: discount between actions.
        lam: of the lambda-returns inside an action (generalised advantage estimation).
        clip: the ratio of a token's probabilities is clipped to [1 - clip, 1 + clip].
        epochs: passes over a batch.
        policy_lr: learning rate of the policy's adapter.
        critic_lr: learning rate of the critic's adapter.
        value_lr: learning rate of the critic's value head.
        reflect: whether failed tries come back with their error.
    """

    trains = True
    inner_discount = 1.0

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
    ):
        self.beta, self.gamma, self.lam, self.clip, self.epochs = beta, gamma, lam, clip, epochs
        self.policy_lr, self.critic_lr, self.value_lr, self.reflect = policy_lr, critic_lr, value_lr, reflect

    def start(self, agent: Agent, training: Settings) -> None:
        """See `Method.start`."""
        self.agent, self.grad_norm, self.tokens_at_once = agent, training.grad_norm, training.micro_batch_tokens
        self.policy_optimiser = adamw(training.momentum, (agent.parameters("policy"), self.policy_lr))
        self.critic_optimiser = adamw(
            training.momentum,
            (agent.parameters("critic"), self.critic_lr),
            (agent.value_heads["critic"].parameters(), self.value_lr),
        )
        self.optimisers = [self.policy_optimiser, self.critic_optimiser]

    def update(self, transitions: list[Transition]) -> Learnt:
        """`epochs` passes over a batch; ratios are taken against the policy before the first."""
        agent, groups = self.agent, list(micro_batches(distributed.own(transitions), self.tokens_at_once))
        batches, total = [pack(agent, group) for group in groups], sum(len(t.action) for t in transitions)
        values, old_log_probs, penalties, kl = [], [], [], 0.0
        for batch in batches:
            reference, policy = agent.hidden("reference", batch), agent.hidden("policy", batch)
            values.append(batch.each(agent.value("critic", agent.hidden("critic", batch)).detach()))
            of_policy = statistics(policy, agent.head_weight, reference=reference, tokens=batch.tokens)
            old_log_probs.append(batch.each(of_policy.log_prob))
            penalties.append(self.beta * (old_log_probs[-1] - token_log_prob(agent, batch, reference)))
            kl += float(batch.each(of_policy.kl).sum())
        next_values = self._next_values(groups, batches, values)
        returns = [self._returns(*row) for row in zip(groups, batches, values, penalties, next_values, strict=True)]
        advantage = torch.cat(returns) - torch.cat(values)
        everyones = distributed.concatenated(advantage)
        scaled = (advantage - everyones.mean()) / (everyones.std(correction=0) + 1e-8)
        advantages = scaled.split([len(v) for v in values])
        sums = {"policy_loss": 0.0, "critic_loss": 0.0}
        for _ in range(self.epochs):
            for batch, old, weight, goal in zip(batches, old_log_probs, advantages, returns, strict=True):
                policy = agent.hidden("policy", batch, grad=True)
                losses = ppo_clipped_loss(token_log_prob(agent, batch, policy), old, weight, self.clip)
                critic = batch.each(agent.value("critic", agent.hidden("critic", batch, grad=True)))
                error = critic_loss(critic, goal)
                ((losses + error).sum() / total).backward()
                sums["policy_loss"] += float(losses.detach().sum())
                sums["critic_loss"] += float(error.detach().sum())
            optimiser_step(self.policy_optimiser, self.grad_norm)
            optimiser_step(self.critic_optimiser, self.grad_norm)
        sums = distributed.total({**sums, "kl": kl})
        logged = {
            "policy_loss": sums["policy_loss"] / (total * self.epochs),
            "critic_loss": sums["critic_loss"] / (total * self.epochs),
            "kl_per_token": sums["kl"] / total,
            "kl_per_action": sums["kl"] / len(transitions),
        }
        pairs = zip(returns, values, batches, strict=True)
        held = [(goal - value).split(batch.lengths.tolist()) for goal, value, batch in pairs]
        return Learnt(logged, credit_of(transitions, groups, held))

    def _returns(
        self, group: list[Transition], batch: Sequences, values: Tensor, penalty: Tensor, next_value: Tensor
    ) -> Tensor:
        """lambda-return [N] of each token, its own penalty included."""
        # V counts the penalties from its own position on, the backup's V + penalty those behind it.
        padded = lambda_targets(
            batch.to_padded(values + penalty),
            batch.to_padded(penalty),
            batch.lengths,
            reward=values.new_tensor([t.reward for t in group]),
            done=torch.tensor([t.done for t in group], device=values.device),
            next_soft_value=next_value,
            beta=1.0,
            gamma=self.gamma,
            lam=self.lam,
            inner_discount=self.inner_discount,
        )
        return batch.to_flat(padded) - penalty

    @torch.no_grad()
    def _next_values(
        self, groups: list[list[Transition]], batches: list[Sequences], values: list[Tensor]
    ) -> list[Tensor]:
        """V(s') of each transition, a tensor [batch] for each group; 0 where nothing follows."""
        agent, known = self.agent, {}
        for group, batch, value in zip(groups, batches, values, strict=True):
            first = value[batch.lengths.cumsum(0) - batch.lengths].tolist()
            known.update((t.prompt, v) for t, v in zip(group, first, strict=True))
        unknown = {t.next_prompt for group in groups for t in group if not t.done} - known.keys()
        for states, batch in state_batches(agent, unknown, self.tokens_at_once):
            known.update(zip(states, agent.value("critic", agent.hidden("critic", batch)).tolist(), strict=True))
        rows = [[0.0 if t.done else known[t.next_prompt] for t in group] for group in groups]
        return [torch.tensor(row, device=agent.device) for row in rows]

    def get_state(self) -> dict:
        """See `Method.get_state`."""
        return {"policy": self.policy_optimiser.state_dict(), "critic": self.critic_optimiser.state_dict()}

    def set_state(self, state: dict) -> None:
        """See `Method.set_state`."""
        self.policy_optimiser.load_state_dict(state["policy"])
        self.critic_optimiser.load_state_dict(state["critic"])
