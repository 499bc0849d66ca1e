"""PPO-KL that keeps the best program of its run in mind (ours; the counterpart of `etpo_memory`).

Everything is as in `ppo_kl`, and in each pass the policy also learns from the best action so far (`memory`), where that
action is better than the batch is on average (self-imitation, arXiv 1806.05635). Its probability ratio is taken against
the policy before the batch, like that of all others: the ratio to the policy that once drew it would be clipped away as
soon as the policy has left it. The action counts in the mean and the deviation that advantages are measured by; the
value and what is logged are of the batch alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from etpo_core.interfaces import Batch, Networks, Reducer, Transition, UpdateResult
from etpo_core.losses import ppo_clipped_loss
from etpo_core.update.ppo_kl import PPOKL
from etpo_paper.methods.memory import Memory


class RememberingPPOKL(PPOKL):
    """PPO-KL with one remembered action; arguments as `PPOKL`."""

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """See `Method.start`."""
        super().start(networks, reducer)
        self.memory = Memory()

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """See `PPOKL.update`."""
        best = self.reducer.share(self.memory.keep(transitions))  # one process is enough: gradients add up
        self.remembered = self.networks.batches(best)
        self.old = [self.networks.evaluate(batch).log_prob.sum(-1) for batch in self.remembered]
        return super().update(transitions)

    def _normalised(self, advantage: Tensor) -> Tensor:
        """See `PPOKL._normalised`; the remembered action counts, and its own weight is never negative."""
        of_memory = [self._advantage_of(batch, old) for batch, old in zip(self.remembered, self.old, strict=True)]
        whole = super()._normalised(torch.cat([advantage, *of_memory]))
        batch, memory = whole.tensor_split([len(advantage)])
        self.weight = memory.clamp(min=0.0)
        return batch

    @torch.no_grad()
    def _advantage_of(self, batch: Batch, old: Tensor) -> Tensor:
        """[B] r - β log π/ρ - V of remembered actions, which ended their episodes."""
        penalty = self.beta * (old - self.networks.log_prob(batch, "reference").sum(-1))
        return batch.reward - penalty - self.networks.value(self.networks.features(batch)[:, 0])

    def _learn_besides(self, actions: int) -> None:
        """See `PPOKL._learn_besides`."""
        for batch, old in zip(self.remembered, self.old, strict=True):
            log_prob = self.networks.log_prob(batch, "policy", grad=True).sum(-1)
            (ppo_clipped_loss(log_prob, old, self.weight, self.clip).sum() / actions).backward()

    def get_state(self) -> dict[str, Any]:
        """See `Method.get_state`."""
        return {**super().get_state(), **self.memory.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `Method.set_state`."""
        super().set_state(state)
        self.memory.set_state(state)
