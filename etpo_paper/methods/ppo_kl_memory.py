"""PPO-KL that keeps the best program of its run in mind (ours; the counterpart of `etpo_memory`).

Everything is as in `ppo_kl`, and each batch has one action more, the best so far (`memory`), which the policy learns
from where it is better than the batch is on average (self-imitation, arXiv 1806.05635). Its probability ratio is taken
against the policy before the batch, like that of all others: the ratio to the policy that once drew it would be clipped
away as soon as the policy has left it.
"""

from etpo_paper.base.settings import Settings
from etpo_paper.environment.rollout import Transition
from etpo_paper.methods.common import Learnt
from etpo_paper.methods.memory import Memory
from etpo_paper.methods.ppo_kl import PPOKL
from etpo_paper.model.agent import Agent


class RememberingPPOKL(PPOKL):
    """PPO-KL with one remembered action; arguments as `PPOKL`."""

    def start(self, agent: Agent, training: Settings) -> None:
        """See `Method.start`."""
        super().start(agent, training)
        self.memory = Memory()

    def update(self, transitions: list[Transition]) -> Learnt:
        """See `PPOKL.update`."""
        return super().update(transitions, self.memory.keep(transitions))

    def get_state(self) -> dict:
        """See `Method.get_state`."""
        return {**super().get_state(), **self.memory.get_state()}

    def set_state(self, state: dict) -> None:
        """See `Method.set_state`."""
        super().set_state(state)
        self.memory.set_state(state)
