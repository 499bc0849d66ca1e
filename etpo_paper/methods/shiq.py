"""ShiQ: shifted Q-learning on the policy's own logits (arXiv 2505.11081, NeurIPS 2025).

As `tbrm`, the policy's logits are Q, and there is no critic. But Q is read as what the logits have gained over the
reference's, Q(w) = β (z(w) - z_ρ(w)), so that V(prefix) = β (log Σ exp z - log Σ exp z_ρ) is 0 at the start, where
π = ρ. And every prefix has a residual of its own, which reaches to the end of the action (multi-step):

    L = mean over actions of Σ_j (V(s, w¹…wʲ⁻¹) + β Σ_{k≥j} log π/ρ(wᵏ) - r - γ V(s'))²

The gradient is followed in full, through every V and every log π. Its form at the start is that of `losses.q_residual`.

Source. The text of the paper was not at hand; what was: its abstract (token-wise, off-policy, one turn or several), and
a summary of its three steps (emergentmind.com/articles/2505.11081): β g = q + β log ρ, so that softmax(g) is the best
policy; logits shifted so that learning starts at the reference; a residual over several steps instead of one. The
equation above is what these three say, derived from path consistency; its number is not known. Choices: the sum over
an action's prefixes is not divided by their number; the reward comes with the last token; what follows an action enters
as γ V(s'), a constant (`paths` says why). One pass, no replay.
"""

import torch
from torch import Tensor

from etpo_core.interfaces import Batch
from etpo_paper.methods.paths import PathConsistency, Rows, from_here


class ShiQ(PathConsistency):
    """A squared residual for each prefix, of logits shifted by the reference's; arguments as `PathConsistency`."""

    def _losses(self, batch: Batch, rows: Rows, earned: Tensor) -> tuple[Tensor, Tensor]:
        """See `PathConsistency._losses`."""
        gained = rows.level - rows.reference_level
        residual = self.beta * (gained + from_here(rows.log_ratio)) - earned[:, None]
        loss = residual.square() * batch.mask
        return loss, torch.zeros_like(loss)

    def _value(self, batch: Batch) -> Tensor:
        """See `PathConsistency._value`."""
        rows = self._rows(batch, grad=False)
        return self.beta * (rows.level - rows.reference_level)[:, 0]
