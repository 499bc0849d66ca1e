"""ETPO that keeps the best program of its run in mind (ours; the paper has no such memory).

Everything is as in `etpo`, and in each pass the critic also learns from the best action so far (`memory`). That is the
very update any drawn action gets, with whole returns, where it says that Q is too low; where Q is above it, nothing is
learnt (self-imitation as lower-bound soft Q-learning, arXiv 1806.05635). Q is a statement about an action, whoever
wrote it, so a critic can learn from one that the policy would hardly draw any more. It is what a policy that is nearly
certain of a lesser program needs to leave it: tokens that are no longer drawn are otherwise never regressed.
"""

import torch

from etpo_paper.base import distributed
from etpo_paper.base.settings import Settings
from etpo_paper.environment.rollout import Transition
from etpo_paper.methods.common import Learnt, pack
from etpo_paper.methods.etpo import ETPO
from etpo_paper.methods.memory import Memory
from etpo_paper.model.agent import Agent


class RememberingETPO(ETPO):
    """ETPO with one remembered action; arguments as `ETPO`."""

    def start(self, agent: Agent, training: Settings) -> None:
        """See `Method.start`."""
        super().start(agent, training)
        self.memory = Memory()

    def update(self, transitions: list[Transition]) -> Learnt:
        """See `ETPO.update`."""
        self.remembered = self.memory.keep(transitions)
        return super().update(transitions)

    def _learn_besides(self, total: int) -> None:
        """Adds the gradient of the critic's loss at the best action. See `ETPO._learn_besides`."""
        # While V knows nothing, every program that ran is pushed up anyway. One process is enough: gradients add up.
        knows = self.value.fitted or not self.reading.has_value
        if not self.remembered or not knows or distributed.rank() > 0:
            return
        agent, batch = self.agent, pack(self.agent, self.remembered)
        reference, critic = agent.hidden("reference", batch), agent.hidden("critic", batch, grad=True)
        policy = None if self.exact else agent.hidden("policy", batch)
        terms = self.reading.terms(agent, policy, reference, critic, batch.tokens, self.beta)
        value, nothing = self._value(reference), torch.zeros(1, device=agent.device)
        target = self._targets(batch, self.remembered, value, terms.kl, nothing, {}, lam=1.0)
        q = value + terms.q_taken
        (self._critic_loss(q, torch.maximum(target, q.detach())).sum() / total).backward()

    def get_state(self) -> dict:
        """See `Method.get_state`."""
        return {**super().get_state(), **self.memory.get_state()}

    def set_state(self, state: dict) -> None:
        """See `Method.set_state`."""
        super().set_state(state)
        self.memory.set_state(state)
