"""The value of a prefix, fitted by least squares.

V(prefix) is linear in features that never change, the reference's hidden state there, so its best fit to the returns
seen so far has a closed form and needs no learning rate. That matters because runs are short: a value head that takes
one gradient step in each update lags behind for most of a run, and as long as V is wrong, all tokens that were drawn
are pushed the same way. Older batches count less, because the policy that earned their returns has changed since. A
ridge penalty keeps V from learning a few batches by heart.
"""

import torch
from torch import Tensor

from etpo_core import checks
from etpo_core.interfaces import Reducer


class LeastSquaresValue:
    """V = features · weight + intercept, by ridge regression on all batches so far, with later ones counting more.

    Before the first `fit`, V is 0.

    Args:
        decay: factor by which a batch counts less with each batch that follows, from 0 (only the latest counts) to 1
            (all count alike).
        ridge: ridge penalty, the weight of |weight|² in the loss of a position, in units of the features' mean square.
            The intercept is not penalised.
    """

    def __init__(self, decay: float, ridge: float):
        self.decay, self.ridge = decay, ridge
        self.gram: Tensor | None = None  # the products of features, constant and returns: all that a fit needs
        self.weight: Tensor | None = None
        self._new: Tensor | None = None

    @property
    def fitted(self) -> bool:
        """Whether there was a `fit`."""
        return self.weight is not None

    def __call__(self, features: Tensor) -> Tensor:
        """V [N], in units of reward and float32, at features [N, K]; no gradient."""
        if self.weight is None:
            return torch.zeros(len(features), device=features.device)
        return (_with_constant(features) @ self.weight).float()

    def observe(self, features: Tensor, returns: Tensor) -> None:
        """Adds positions of the current batch, which the next `fit` takes into account.

        Args:
            features: [N, K], with the same K in every call.
            returns: [N], what V should have been there, in units of reward.

        Raises:
            ValueError: a wrong shape or dtype, NaN or infinity.
        """
        known = self.gram if self._new is None else self._new
        checks.floats("features", features, (None, None if known is None else len(known) - 2))
        checks.floats("returns", returns, features.shape[:1])
        constant = _with_constant(checks.finite("features", features))
        rows = torch.cat([constant, checks.finite("returns", returns).detach().double()[:, None]], dim=1)
        if len(rows):
            self._new = rows.T @ rows if self._new is None else self._new + rows.T @ rows

    def fit(self, reducer: Reducer) -> None:
        """Ends a batch: fits V to what all processes observed since the last call, and to the batches before it.

        Raises:
            RuntimeError: nothing was observed since the last call.
        """
        if self._new is None:
            raise RuntimeError("fit: nothing was observed since the last fit, expected positions given to observe")
        new = reducer.summed(self._new)
        self._new, self.gram = None, new if self.gram is None else self.decay * self.gram + new
        count = self.gram[-2, -2]
        square = self.gram[:-1, :-1] / count
        # The last term keeps the system solvable without a ridge where features never vary.
        penalty = self.ridge * square.diagonal()[:-1].mean() + 1e-12
        square.diagonal()[:-1].add_(penalty)
        self.weight = torch.linalg.solve(square, self.gram[:-1, -1] / count)

    def get_state(self) -> dict[str, Tensor | None]:
        """What the next fit depends on, for a checkpoint."""
        return {"gram": self.gram, "weight": self.weight}

    def set_state(self, state: dict[str, Tensor | None]) -> None:
        """Restores what `get_state` returned."""
        self.gram, self.weight = state["gram"], state["weight"]


def _with_constant(features: Tensor) -> Tensor:
    doubled = features.detach().double()
    return torch.cat([doubled, doubled.new_ones(len(doubled), 1)], dim=1)
