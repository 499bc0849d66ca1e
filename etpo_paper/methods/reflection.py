"""Reflection: no training at all. The model tries, reads its error, and tries again (arXiv 2402.06700, baseline)."""

from etpo_paper.base.settings import Settings
from etpo_paper.environment.rollout import Transition
from etpo_paper.methods.common import Learnt


class Reflection:
    """The untrained model, or any chat model, in the same environment with the same budget.

    Args:
        reflect: whether failed tries come back with their error.
        model: name at the chat endpoint; None for the project's own language model.
    """

    trains = False

    def __init__(self, *, reflect: bool, model: str | None = None):
        self.reflect, self.model = reflect, model

    def start(self, agent, training: Settings) -> None:
        """Nothing to prepare."""

    def update(self, transitions: list[Transition]) -> Learnt:
        """Nothing to learn."""
        return Learnt({}, [])

    def get_state(self) -> dict:
        """Nothing to keep."""
        return {}

    def set_state(self, state: dict) -> None:
        """Nothing to restore."""
