"""The ablation without the per-token soft Bellman backup: one action-level target for all tokens.

Everything is as in `etpo` but the targets: each token of an action is regressed to r + gamma V(s'), where V(s') is
the soft value of whole actions, E_a'[Q(s', a')] - beta KL[pi || rho](s') (arXiv 2402.06700, action-level soft
Bellman update and ablation). The KL of a whole action is the sum of the KLs at its positions, in expectation over
the action (chain rule), so drawn actions estimate it: for all states, the mean over the batch before stands in. (One
action a state would be noisier, and most next states are not acted in at all.)
"""

from torch import Tensor

from etpo_core.bellman import action_targets
from etpo_paper.environment.rollout import Transition
from etpo_paper.methods.common import Learnt
from etpo_paper.methods.etpo import ETPO
from etpo_paper.model.agent import Sequences


class ActionLevelETPO(ETPO):
    """ETPO with one target for all tokens of an action; arguments as `ETPO`."""

    action_kl = 0.0  # mean KL of an action in the batch before

    def update(self, transitions: list[Transition]) -> Learnt:
        """See `ETPO.update`."""
        learnt = super().update(transitions)
        self.action_kl = learnt.logged["kl_per_action"]
        return learnt

    def _targets(
        self,
        batch: Sequences,
        group: list[Transition],
        values: Tensor,
        kl: Tensor,
        next_soft_value: Tensor,
        correction: dict[str, Tensor],
        lam: float,
    ) -> Tensor:
        """The same target for every token of an action, [N]; there is no trace inside it to correct."""
        padded = action_targets(
            batch.lengths,
            int(batch.lengths.max()),
            reward=values.new_tensor([t.reward for t in group]),
            done=values.new_tensor([t.done for t in group]).bool(),
            next_soft_value=next_soft_value,
            gamma=self.gamma,
        )
        return batch.to_flat(padded)

    def _state_values(self, batch: Sequences, values: Tensor, kl: Tensor) -> Tensor:
        """E_a[Q] - beta KL of whole actions at each state, [batch]."""
        first = batch.lengths.cumsum(0) - batch.lengths
        return values[first] - self.beta * self.action_kl

    def get_state(self) -> dict:
        """See `Method.get_state`."""
        return {**super().get_state(), "action_kl": self.action_kl}

    def set_state(self, state: dict) -> None:
        """See `Method.set_state`."""
        super().set_state(state)
        self.action_kl = state["action_kl"]
