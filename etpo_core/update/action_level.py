"""The ablation without the per-token soft Bellman backup: one action-level target for all tokens of an action.

Everything is as in `etpo` but the targets. Each token is regressed to r + γ V(s'), where V(s') is the soft value of
whole actions, E_{a'}[Q(s', a')] - β KL[π‖ρ](s') (arXiv 2402.06700, action-level soft Bellman update). By the chain rule
the KL of a whole action is the expected sum of the KLs at its positions, so drawn actions estimate it. The mean over
the batch before stands in for every state: one action a state would be noisier, and most next states are not acted in.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from etpo_core.bellman import action_targets
from etpo_core.interfaces import Batch, Transition, UpdateResult
from etpo_core.update.etpo import ETPO


class ActionLevelETPO(ETPO):
    """ETPO with one target for all tokens of an action; arguments as `ETPO`."""

    action_kl = 0.0  # mean KL of an action in the batch before, in nats

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """See `ETPO.update`."""
        result = super().update(transitions)
        self.action_kl = result.logged["kl_per_action"]
        return result

    def _targets(self, batch: Batch, expected_q: Tensor, kl: Tensor, next_soft_value: Tensor, lam: float) -> Tensor:
        """[B, T] the same target at every position of an action; see `bellman.action_targets`."""
        ends = batch.reward, batch.terminated, next_soft_value
        return action_targets(batch.lengths, expected_q.shape[1], *ends, self.gamma)

    def _state_values(self, batch: Batch, expected_q: Tensor, kl: Tensor) -> Tensor:
        """[B] E_a[Q] - β KL of whole actions at each state."""
        return expected_q[:, 0] - self.beta * self.action_kl

    def get_state(self) -> dict[str, Any]:
        """See `Method.get_state`."""
        return {**super().get_state(), "action_kl": self.action_kl}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `Method.set_state`."""
        super().set_state(state)
        self.action_kl = state["action_kl"]
