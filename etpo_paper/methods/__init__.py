"""The methods, one file each against one contract.

A method is built from its section of `params.yaml`, gets the agent once (`start`), and then turns batches of
transitions into updates (`update`). Whether it trains and whether a failed try comes back with its error are
attributes; everything else - rollouts, checkpoints, files - is the same for all and lives in `training`.
"""

import inspect
from typing import Protocol

import torch

from etpo_core.errors import UserError, unknown
from etpo_paper.base.settings import Settings, expect_number
from etpo_paper.environment.rollout import Transition
from etpo_paper.methods.action_level import ActionLevelETPO
from etpo_paper.methods.common import Learnt
from etpo_paper.methods.etpo import ETPO
from etpo_paper.methods.etpo_memory import RememberingETPO
from etpo_paper.methods.ntpo import NTPO
from etpo_paper.methods.poad import POAD
from etpo_paper.methods.ppo_kl import PPOKL
from etpo_paper.methods.ppo_kl_memory import RememberingPPOKL
from etpo_paper.methods.reflection import Reflection
from etpo_paper.methods.released import Released


class Method(Protocol):
    """What `training` asks of a method.

    Attributes:
        trains: whether it learns.
        reflect: whether a failed try comes back with its error.
        optimisers: once started, those whose learning rates fall over a run; only of a method that trains.
    """

    trains: bool
    reflect: bool
    optimisers: list[torch.optim.Optimizer]

    def start(self, agent, training: Settings) -> None:
        """Takes the agent whose adapters will be trained, and the `training` section of the settings."""

    def update(self, transitions: list[Transition]) -> Learnt:
        """Learns from one batch.

        Several processes are all given the whole batch, and each passes its `distributed.own` transitions through the
        networks. Sums are over the whole batch, so that what all log and learn is the same.
        """

    def get_state(self) -> dict:
        """State of the optimisers, for a checkpoint."""

    def set_state(self, state: dict) -> None:
        """Restores what `get_state` returned."""


METHODS = {
    "etpo": ETPO,
    "etpo_no_reflection": ETPO,
    "etpo_action_level": ActionLevelETPO,
    "etpo_memory": RememberingETPO,
    "released": Released,
    "ppo_kl": PPOKL,
    "ppo_kl_memory": RememberingPPOKL,
    "poad": POAD,
    "ntpo": NTPO,
    "reflection": Reflection,
    "reflection_gpt4": Reflection,
}


def build_method(name: str, settings: Settings) -> Method:
    """The method called `name` with its settings.

    A section that says `method: etpo` is a variant of that method under a name of its own; what it says of `training`
    is for `load_settings`.

    Raises:
        UserError: for an unknown method or a setting that it does not have.
    """
    values = settings.plain()
    kind = values.pop("method", name)
    values.pop("training", None)
    if kind not in METHODS:
        raise unknown("method", kind, METHODS)
    known = inspect.signature(METHODS[kind]).parameters
    for key, value in values.items():
        if key not in known:
            raise unknown(f"parameter of method {name}", key, known)
        if known[key].annotation in (int, float):
            expect_number(value, f"methods.{name}.{key}")
    missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in values]
    if missing:
        raise UserError(f"methods.{name} of params.yaml lacks {missing[0]!r}")
    if values.get("epochs", 1) < 1:
        raise UserError(f"methods.{name}.epochs: got {values['epochs']}, expected at least 1")
    return METHODS[kind](**values)
