"""The methods by name: the paper's update rules, and those that are not the paper's own, one file each.

A method is a class that fulfils `etpo_core.interfaces.Method`. Its settings are the keyword arguments of its
constructor, and a section of `params.yaml` that bears its name gives them. A section may also say `method: etpo`: it is
then a variant of that method under a name of its own.
"""

import inspect
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import Field

from etpo_core.errors import UserError
from etpo_core.interfaces import Method
from etpo_core.update import ETPO, PPOKL, ActionLevelETPO
from etpo_paper.base.sections import Place, Section, check_values, unknown_name
from etpo_paper.methods.etpo_memory import RememberingETPO
from etpo_paper.methods.etpo_tried import TriedETPO
from etpo_paper.methods.grpo import GRPO
from etpo_paper.methods.on_logits import OnLogitsETPO
from etpo_paper.methods.oreo import OREO
from etpo_paper.methods.poad import POAD
from etpo_paper.methods.ppo_kl_memory import RememberingPPOKL
from etpo_paper.methods.reflection import Reflection
from etpo_paper.methods.released import Released
from etpo_paper.methods.rloo import RLOO
from etpo_paper.methods.shiq import ShiQ
from etpo_paper.methods.tbrm import TBRM

METHODS: dict[str, type] = {
    "etpo": ETPO,
    "etpo_no_reflection": ETPO,
    "etpo_action_level": ActionLevelETPO,
    "etpo_memory": RememberingETPO,
    "etpo_tried": TriedETPO,
    "etpo_on_logits": OnLogitsETPO,
    "released": Released,
    "ppo_kl": PPOKL,
    "ppo_kl_memory": RememberingPPOKL,
    "poad": POAD,
    "tbrm": TBRM,
    "shiq": ShiQ,
    "oreo": OREO,
    "grpo": GRPO,
    "rloo": RLOO,
    "reflection": Reflection,
    "reflection_gpt4": Reflection,
}


def parameters(kind: type) -> dict[str, inspect.Parameter]:
    """The settings of a method's class: its keyword arguments, and those it hands on to the class it extends."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        own = inspect.signature(vars(base)["__init__"]).parameters
        found = {**{n: p for n, p in own.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}, **found}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values()):
            break
    return found


# Ranges of settings, as pydantic's `Field` takes them; what a setting means stands in the class.
LIMITS: dict[str, dict[str, float]] = {
    "beta": {"ge": 0},
    "gamma": {"ge": 0, "le": 1},
    "lam": {"ge": 0, "le": 1},
    "tau": {"ge": 0, "le": 1},
    "advantage_prior": {"ge": 0},
    "policy_lr": {"ge": 0},
    "critic_lr": {"ge": 0},
    "value_lr": {"ge": 0},
    "value_decay": {"gt": 0, "le": 1},
    "value_ridge": {"ge": 0},
    "epochs": {"ge": 1},
    "clip": {"gt": 0},
    "replay": {"ge": 0},
    "anchor": {"ge": 0},
    "first_kl": {"ge": 0},
    "first_beta": {"ge": 0},
    "low_lam": {"ge": 0, "le": 1},
    "huber_delta": {"gt": 0},
}


def build_method(name: str, section: Mapping[str, Any]) -> Method:
    """The method called `name` with the settings of its section.

    Raises:
        UserError: for an unknown method, or a setting that is unknown, missing, of the wrong type or impossible.
    """
    section = section if isinstance(section, Section) else Section(section, Place(f"methods.{name}"))
    kind = section.get("method", name)
    if kind not in METHODS:
        raise unknown_name("method", kind, METHODS, section.at if "method" in section else None)
    own = section.without("method", "training")  # what a variant says of `training` is resolved by `load_settings`
    fields = {key: _field(METHODS[kind], parameter) for key, parameter in parameters(METHODS[kind]).items()}
    check_values(own, fields, f"setting of {kind}")
    try:
        method: Method = METHODS[kind](**own)
    except UserError as error:
        raise UserError(f"{section.at}: {error}; change it in {section.at.file}") from None
    return method


def check_method(name: str, section: Mapping[str, Any]) -> bool:
    """Whether a method trains, once its section is found sound.

    Raises:
        UserError: as `build_method`.
    """
    return build_method(name, section).trains


def _field(kind: type, parameter: inspect.Parameter) -> tuple[Any, Any]:
    """Type, range and default of a setting, as `check_values` takes them."""
    limits: dict[str, Any] = dict(LIMITS.get(parameter.name, {}))
    if parameter.name == "beta" and issubclass(kind, ETPO):
        limits = {"gt": 0}  # A = β (z_critic - z_ρ) would be 0 everywhere
    wanted: Any = parameter.annotation
    if limits and get_origin(wanted) is UnionType:  # the range is one of numbers, not of a word like "exact"
        ranged = [Annotated[t, Field(**limits)] if t in (int, float) else t for t in get_args(wanted)]
        wanted = Union[tuple(ranged)]  # noqa: UP007
    elif limits:
        wanted = Annotated[wanted, Field(**limits)]
    return wanted, ... if parameter.default is parameter.empty else parameter.default
