"""How far an update's log π is from that under which the tokens were drawn.

Both are of the same weights, but a rollout takes one token of many sequences at a time and an update whole sequences,
and sums in another order differ in their last digits; in bfloat16 they differ in the third. An importance ratio of the
two would not be exactly 1, so update rules here compare the update's own numbers with each other. The difference is in
the run card, because a large one would mean that a run does not learn from the policy that it acts with.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Gap:
    """The differences of log π over a run: before the first step of each update, at every token that was drawn."""

    def __init__(self) -> None:
        self.tokens, self.equal, self.total, self.largest = 0, 0, 0.0, 0.0

    def add(self, found: Tensor, drawn: Sequence[float]) -> None:
        """Takes an action in.

        Args:
            found: [L] log π of its tokens in the update, in nats.
            drawn: the same as they were drawn.
        """
        apart = (found.detach() - found.new_tensor(drawn)).abs()
        self.tokens += len(apart)
        self.equal += int((apart == 0).sum())
        self.total += float(apart.double().sum())
        self.largest = max(self.largest, float(apart.max()))

    def card(self) -> dict[str, Any] | None:
        """For the run card: tokens, how many are equal, mean and largest difference in nats; None if there is none."""
        if not self.tokens:
            return None
        mean = float(f"{self.total / self.tokens:.3g}")
        return {"tokens": self.tokens, "equal": self.equal, "mean": mean, "largest": float(f"{self.largest:.3g}")}

    def get_state(self) -> tuple[int, int, float, float]:
        """For a checkpoint."""
        return self.tokens, self.equal, self.total, self.largest

    def set_state(self, state: tuple[int, int, float, float]) -> None:
        """Restores what `get_state` returned."""
        self.tokens, self.equal, self.total, self.largest = state
