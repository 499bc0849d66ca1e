"""ETPO that keeps the best program of its run in mind, or centres its value (ours; the paper has neither).

Everything is as in `etpo`, with two changes that can be switched on one by one.

`remember`: in each pass the critic also learns from the best action so far (`memory`). That is the very update any
drawn action gets, with whole returns, where it says that Q is too low; where Q is above it, nothing is learnt
(self-imitation as lower-bound soft Q-learning, arXiv 1806.05635). Q is a statement about an action, whoever wrote it,
so a critic can learn from one that the policy would hardly draw any more. A policy that is nearly certain of a lesser
program needs this to leave it, because tokens that are no longer drawn are otherwise never regressed.

`center`: V is first moved by its mean error on the batch, so that what a batch pushes up and what it pushes down
balance. Without it, a V that lags behind pushes every token drawn up, or down, alike.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from etpo_core.interfaces import Batch, Networks, Reducer, Transition, UpdateResult
from etpo_core.update.etpo import ETPO
from etpo_paper.methods.memory import Memory
from etpo_paper.methods.returns import values_and_returns


class RememberingETPO(ETPO):
    """ETPO with one remembered action.

    Args:
        remember: whether the critic learns from the best action so far.
        center: whether V is moved by its mean error on each batch.
        settings: as `ETPO`.
    """

    def __init__(self, *, remember: bool = True, center: bool = False, **settings: Any):
        super().__init__(**settings)
        self.remember, self.center = remember, center
        self.error = 0.0

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """See `Method.start`."""
        super().start(networks, reducer)
        self.memory = Memory()

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """See `ETPO.update`."""
        best = self.memory.keep(transitions) if self.remember else []
        # One process is enough: gradients add up.
        self.remembered = self.networks.batches(self.reducer.share(best))
        return super().update(transitions)

    def _learn_besides(self, total: int) -> None:
        """Adds the gradient of the critic's loss at the best action. See `ETPO._learn_besides`."""
        # While V knows nothing, every program that ran is pushed up anyway.
        for batch in self.remembered if self.value.fitted else []:
            terms = self.networks.terms(batch, self.beta, policy="critic" if self.exact else "fixed")
            expected_q = self._expected_q(batch)
            nothing = torch.zeros(1, device=self.networks.device)
            target = self._targets(batch, expected_q, terms.kl, nothing, lam=1.0)
            q = expected_q + terms.advantage
            (self._critic_loss(q, torch.maximum(target, q.detach()), batch.mask).sum() / total).backward()

    def _values_of_new_states(self, batches: Sequence[Batch]) -> dict[tuple[int, ...], float]:
        """See `ETPO._values_of_new_states`; with `center`, V's mean error is found here, before anything is learnt."""
        known = super()._values_of_new_states(batches)
        if self.center:
            self.error = self._mean_error(batches, dict(known))
        return known

    def _level(self, batch: Batch, expected_q: Tensor) -> Tensor:
        """See `ETPO._level`: V moved by its mean error."""
        return expected_q + self.error

    @torch.no_grad()
    def _mean_error(self, batches: Sequence[Batch], known: dict[tuple[int, ...], float]) -> float:
        """How much more the batch's tokens earned, by whole returns, than V says: the mean over all tokens."""
        error, tokens = 0.0, 0
        for batch, (values, returns) in zip(batches, values_and_returns(self, batches, known), strict=True):
            error += float(batch.flat(returns - values).sum())
            tokens += int(batch.lengths.sum())
        sums = self.reducer.total({"error": error, "tokens": float(tokens)})
        return sums["error"] / sums["tokens"]

    def get_state(self) -> dict[str, Any]:
        """See `Method.get_state`."""
        return {**super().get_state(), **self.memory.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `Method.set_state`."""
        super().set_state(state)
        self.memory.set_state(state)
