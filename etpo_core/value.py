"""The value of a prefix, fitted by least squares.

V(prefix) is linear in features that never move - the reference's hidden state there - so its best fit to the returns
seen so far has a closed form, and no learning rate. That matters because runs are short: a value head that takes one
gradient step an update lags behind the policy for most of a run, and while V is wrong, every token that was drawn is
pushed up or down alike. Batches count less the older they are, because the policy that earned them is gone; the ridge
keeps few of them from being learnt by heart.
"""

import torch
from torch import Tensor

from etpo_paper.base import distributed


class LeastSquaresValue:
    """V = features · weight + intercept, by ridge regression on all batches so far, the latest counting most.

    Before the first `fit`, V is 0.

    Args:
        decay: by how much a batch counts less with each that follows, 0 (only the latest counts) to 1 (all alike).
        ridge: weight of |weight|² in the loss per position, in units of the features' mean square. The intercept is
            free.
    """

    def __init__(self, decay: float, ridge: float):
        self.decay, self.ridge = decay, ridge
        self.gram = self.weight = None
        self._new = None

    @property
    def fitted(self) -> bool:
        """Whether there was a `fit`."""
        return self.weight is not None

    def __call__(self, features: Tensor) -> Tensor:
        """V [N] in float32 of features [N, K]; no gradient."""
        if not self.fitted:
            return torch.zeros(len(features), device=features.device)
        return (_with_constant(features) @ self.weight).float()

    def observe(self, features: Tensor, returns: Tensor) -> None:
        """Takes positions of the current batch into account, from the next `fit` on.

        Args:
            features: [N, K].
            returns: what V should have been there [N], in units of reward.
        """
        rows = torch.cat([_with_constant(features), returns.detach().double()[:, None]], dim=1)
        gram = rows.T @ rows  # of features, constant and returns: all that the fit needs
        self._new = gram if self._new is None else self._new + gram

    def fit(self) -> None:
        """Ends a batch: fits V to what was observed since the last call, by all processes, and before it."""
        new = distributed.summed(self._new)
        self._new, self.gram = None, new if self.gram is None else self.decay * self.gram + new
        count = self.gram[-2, -2]
        square = self.gram[:-1, :-1] / count
        # The last term keeps the system solvable where there is no ridge and features that never vary.
        penalty = self.ridge * square.diagonal()[:-1].mean() + 1e-12
        square.diagonal()[:-1].add_(penalty)
        self.weight = torch.linalg.solve(square, self.gram[:-1, -1] / count)

    def get_state(self) -> dict:
        """What the next fit depends on, for a checkpoint."""
        return {"gram": self.gram, "weight": self.weight}

    def set_state(self, state: dict) -> None:
        """Restores what `get_state` returned."""
        self.gram, self.weight = state["gram"], state["weight"]


def _with_constant(features: Tensor) -> Tensor:
    wide = features.detach().double()
    return torch.cat([wide, wide.new_ones(len(wide), 1)], dim=1)
