"""The best program of a run, kept to be learnt from once more with every batch (ours; the paper has no such memory).

The reward depends on the program alone, not on the state that it is written in, nor on when. So the best one so far can
be learnt from again as if it had been written in the state that most actions of the present batch were written in.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from etpo_core.interfaces import Transition


class Memory:
    """The best action of a run.

    Attributes:
        best: of the actions that ended their episode, the earliest among equals; None before there was one.
    """

    def __init__(self) -> None:
        self.best: Transition | None = None

    def keep(self, transitions: Sequence[Transition]) -> list[Transition]:
        """Takes a batch in; returns the best action, if there is one, in the state most of the batch was written in."""
        for t in transitions:
            if t.terminated and (self.best is None or t.reward > self.best.reward):
                self.best = t
        state = Counter(t.prompt for t in transitions).most_common(1)[0][0]
        return [replace(self.best, prompt=state)] if self.best else []

    def get_state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.best and asdict(self.best)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        self.best = state["best"] and Transition(**state["best"])
