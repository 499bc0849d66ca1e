"""RLOO: REINFORCE with the mean of the others as the baseline (arXiv 2402.14740).

As `grpo`, with two differences. A whole action is one decision, with one ratio of probabilities and one KL; and an
action is compared with the other actions of its group, in units of reward:

    A_i = R_i - mean of R_j, j ≠ i,   with R = r - β log π/ρ(a) of the whole action
    L = mean over actions of -min(κ A, clip(κ, 1 - ε, 1 + ε) A),  κ = π(a|s) / μ(a|s)

An action is not part of its own baseline, so E[A ∇ log π] is exactly the gradient of E[r] - β KL[π‖ρ]: with one pass,
in which no ratio is clipped, RLOO is unbiased, and its fixed point over one turn is ρ exp(r/β) / Z.

Source. The estimator is that of the paper's section on REINFORCE leave-one-out, its reward the usual one of RLHF; the
documentation of TRL's RLOO trainer states the same three equations. The clipped ratio, for further passes, is TRL's.
Choices: as in `grpo`. A group of one has nothing to be compared with, and teaches nothing. Behind a batch's end nothing
is counted, which biases episodes of several turns.
"""

from typing import Any

from torch import Tensor

from etpo_core.interfaces import Batch
from etpo_paper.methods.grpo import GRPO
from etpo_paper.methods.kl import Kind, Place


class RLOO(GRPO):
    """REINFORCE leave-one-out; arguments as `GRPO`, where the KL is charged to the reward as log π/ρ unless told."""

    def __init__(self, *, kl: Kind = "k1", kl_in: Place = "reward", **settings: Any):
        super().__init__(kl=kl, kl_in=kl_in, **settings)

    def _decisions(self, values: Tensor) -> Tensor:
        """See `GRPO._decisions`: the action is the only one."""
        return values.sum(-1, keepdim=True)

    def _share(self, batch: Batch) -> Tensor:
        """See `GRPO._share`."""
        return batch.reward.new_ones(len(batch.reward), 1)

    def _compared(self, returns: Tensor) -> Tensor:
        """See `GRPO._compared`: each less the mean of the others."""
        return returns - (returns.sum() - returns) / (len(returns) - 1)
