"""Reflection: no training at all. The model tries, reads its error, and tries again (arXiv 2402.06700, baseline)."""

from collections.abc import Sequence
from typing import Any

import torch

from etpo_core.interfaces import Networks, Reducer, Transition, UpdateResult


class Reflection:
    """The untrained model, or any chat model, in the same environment with the same budget.

    Args:
        reflect: whether failed tries come back with their error.
        model: name at the chat endpoint; None for the project's own language model.
    """

    trains = False

    def __init__(self, *, reflect: bool, model: str | None = None):
        self.reflect, self.model = reflect, model
        self.optimisers: list[torch.optim.Optimizer] = []

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """Nothing to prepare."""

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """Nothing to learn."""
        return UpdateResult({}, [])

    def get_state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
