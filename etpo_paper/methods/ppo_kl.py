"""PPO-KL: action-level PPO with the KL in the reward (arXiv 2402.06700, baseline).

An action is one decision: its reward is r - beta KL[pi || rho], its advantage is the same for each of its tokens, and
the clipped ratio is that of the whole action's probability. The KL is estimated by log pi(a|s) - log rho(a|s) of the
action that was drawn: its mean is KL[pi || rho](s), and unlike the full divergence, which is one number for a state
whatever is drawn there, it tells actions apart, so that the policy's gradient sees it. V(s) is a scalar head on the
reference's hidden state at the end of the prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from etpo_core.losses import ppo_clipped_loss
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


class PPOKL:
    """Action-level PPO with a KL penalty.

    Args:
        beta: weight of the KL in the reward.
        gamma: discount between actions.
        clip: the ratio of probabilities is clipped to [1 - clip, 1 + clip].
        epochs: passes over a batch.
        policy_lr: learning rate of the policy's adapter.
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

    def start(self, agent: Agent, training: Settings) -> None:
        """See `Method.start`."""
        self.agent, self.grad_norm, self.tokens_at_once = agent, training.grad_norm, training.micro_batch_tokens
        self.policy_optimiser = adamw(training.momentum, (agent.parameters("policy"), self.policy_lr))
        self.critic_optimiser = adamw(training.momentum, (agent.value_heads["critic"].parameters(), self.value_lr))
        self.optimisers = [self.policy_optimiser, self.critic_optimiser]

    def update(self, transitions: list[Transition], remembered: Sequence[Transition] = ()) -> Learnt:
        """`epochs` passes over a batch; ratios are taken against the policy before the first.

        Args:
            transitions: the batch.
            remembered: actions that the policy's loss takes in as well, where they are better than the average. They
                count in the mean and deviation that advantages are measured by; V and what is told are of the batch.
        """
        agent, learnt = self.agent, distributed.own([*transitions, *remembered])
        groups = list(micro_batches(learnt, self.tokens_at_once))
        batches = [pack(agent, group) for group in groups]
        again = {id(t) for t in remembered}
        of_batch = torch.tensor([id(t) not in again for group in groups for t in group], device=agent.device)
        sizes = [len(group) for group in groups]
        features, old_log_probs, log_ratios, kl = [], [], [], 0.0
        for batch, told in zip(batches, of_batch.split(sizes), strict=True):
            reference = agent.hidden("reference", batch)
            policy = agent.hidden("policy", batch)
            features.append(batch.each(reference)[batch.lengths.cumsum(0) - batch.lengths])
            of_policy = statistics(policy, agent.head_weight, reference=reference, tokens=batch.tokens)
            old_log_probs.append(batch.to_padded(batch.each(of_policy.log_prob)).sum(-1))
            log_ratios.append(old_log_probs[-1] - self._action_log_prob(batch, reference))
            kl += float((batch.each(of_policy.kl) * told.repeat_interleave(batch.lengths)).sum())
        state = torch.cat(features)
        ordered = [t for group in groups for t in group]
        with torch.no_grad():
            reward = torch.tensor([t.reward for t in ordered], device=agent.device)
            reward = reward - self.beta * torch.cat(log_ratios)
            returns = reward + self.gamma * self._next_value(ordered, state)
            advantage = returns - agent.value("critic", state)
            held = [a.expand(len(t.action)) for a, t in zip(advantage, ordered, strict=True)]
            everyones = distributed.concatenated(advantage)
            advantage = (advantage - everyones.mean()) / (everyones.std(correction=0) + 1e-8)
            advantage = torch.where(of_batch, advantage, advantage.clamp(min=0.0))
        sums = {"policy_loss": 0.0, "critic_loss": 0.0}
        for _ in range(self.epochs):
            for batch, old, weight in zip(batches, old_log_probs, advantage.split(sizes), strict=True):
                policy = agent.hidden("policy", batch, grad=True)
                losses = ppo_clipped_loss(self._action_log_prob(batch, policy), old, weight, self.clip)
                (losses.sum() / len(transitions)).backward()
                sums["policy_loss"] += float(losses.detach().sum())
            optimiser_step(self.policy_optimiser, self.grad_norm)
            error = (agent.value("critic", state) - returns).square() * of_batch
            (error.sum() / len(transitions)).backward()
            sums["critic_loss"] += float(error.detach().sum())
            optimiser_step(self.critic_optimiser, self.grad_norm)
        sums = distributed.total({**sums, "kl": kl})
        scale = 1.0 / (len(transitions) * self.epochs)
        logged = {
            "policy_loss": sums["policy_loss"] * scale,
            "critic_loss": sums["critic_loss"] * scale,
            "kl_per_token": sums["kl"] / sum(len(t.action) for t in transitions),
            "kl_per_action": sums["kl"] / len(transitions),
        }
        return Learnt(logged, credit_of(transitions, [ordered], [held]))

    def _action_log_prob(self, batch: Sequences, hidden: Tensor) -> Tensor:
        """log pi(a|s) [batch] from the policy's hidden states at the distinct positions."""
        return batch.to_padded(token_log_prob(self.agent, batch, hidden)).sum(-1)

    def _next_value(self, transitions: list[Transition], state: Tensor) -> Tensor:
        """V(s') [batch], 0 where nothing follows. `state` holds the features of the states that were acted in."""
        agent = self.agent
        known = {t.prompt: f for t, f in zip(transitions, state, strict=True)}
        unknown = {t.next_prompt for t in transitions if not t.done} - known.keys()
        for states, batch in state_batches(agent, unknown, self.tokens_at_once):
            known.update(zip(states, agent.hidden("reference", batch), strict=True))
        following = torch.stack([state[0] if t.done else known[t.next_prompt] for t in transitions])
        running = torch.tensor([not t.done for t in transitions], device=agent.device)
        return agent.value("critic", following) * running

    def get_state(self) -> dict:
        """See `Method.get_state`."""
        return {"policy": self.policy_optimiser.state_dict(), "critic": self.critic_optimiser.state_dict()}

    def set_state(self, state: dict) -> None:
        """See `Method.set_state`."""
        self.policy_optimiser.load_state_dict(state["policy"])
        self.critic_optimiser.load_state_dict(state["critic"])
