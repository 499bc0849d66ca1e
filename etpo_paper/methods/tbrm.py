"""TBRM: trajectory Bellman residual minimisation (arXiv 2505.15311, NeurIPS 2025).

The policy's own logits are Q/β, so that π = softmax(Q/β) and V(s) = β log Σ_w exp z(w), and there is no critic. One
squared residual for a whole trajectory, from its first prefix to its end:

    L = mean over trajectories of (V(s) + β Σ_j log π/ρ(wʲ) - r - γ V(s'))²

All values inside the trajectory cancel, which leaves V at its beginning only. Its gradient is followed in full, through
V as well (residual gradient), on the data as they are.

Source. The equation is the objective of the paper, divided there by β²; AdamW hardly notices the scale. The paper's
text was not at hand in full: the equation is taken from its quotation in ReVal (arXiv 2603.23355, section 4.1), the
rest from the abstract, so its number is not known. Choices: a trajectory is an action, and what follows it enters as
γ V(s'), a constant (`paths` says why; the paper has one turn and γ = 1). One pass, no replay.

What to know. V starts at β log Σ exp z_ρ, a number that no reward stands for. ReVal calls this a lack of
calibrated initialisation: without any reward the policy moves all the same, until V has left that level. `shiq` shifts
it away. One number for all tokens of an action says nothing of which token earned it.
"""

import torch
from torch import Tensor

from etpo_core.interfaces import Batch
from etpo_paper.methods.paths import PathConsistency, Rows


class TBRM(PathConsistency):
    """One squared residual for each trajectory; arguments as `PathConsistency`."""

    def _losses(self, batch: Batch, rows: Rows, earned: Tensor) -> tuple[Tensor, Tensor]:
        """See `PathConsistency._losses`; the loss of an action stands at its first position."""
        residual = self.beta * (rows.level[:, 0] + rows.log_ratio.sum(-1)) - earned
        loss = torch.zeros_like(rows.kl)
        loss[:, 0] = residual.square()
        return loss, torch.zeros_like(loss)

    def _value(self, batch: Batch) -> Tensor:
        """See `PathConsistency._value`."""
        return self.beta * self._rows(batch, grad=False).level[:, 0]
