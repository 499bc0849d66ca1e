"""The methods by name: the paper's update rules, and those that are not the paper's own, one file each.

A method is a class that fulfils `etpo_core.interfaces.Method`. Its settings are the keyword arguments of its
constructor, and a section of `params.yaml` that bears its name gives them. A section may also say `method: etpo`: it is
then a variant of that method under a name of its own.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from etpo_core.errors import UserError, unknown
from etpo_core.interfaces import Method
from etpo_core.update import ETPO, PPOKL, ActionLevelETPO
from etpo_paper.methods.etpo_memory import RememberingETPO
from etpo_paper.methods.on_logits import OnLogitsETPO
from etpo_paper.methods.poad import POAD
from etpo_paper.methods.ppo_kl_memory import RememberingPPOKL
from etpo_paper.methods.reflection import Reflection
from etpo_paper.methods.released import Released

METHODS: dict[str, type] = {
    "etpo": ETPO,
    "etpo_no_reflection": ETPO,
    "etpo_action_level": ActionLevelETPO,
    "etpo_memory": RememberingETPO,
    "etpo_on_logits": OnLogitsETPO,
    "released": Released,
    "ppo_kl": PPOKL,
    "ppo_kl_memory": RememberingPPOKL,
    "poad": POAD,
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


def build_method(name: str, section: Mapping[str, Any]) -> Method:
    """The method called `name` with the settings of its section.

    Raises:
        UserError: for an unknown method, or a setting that is unknown, missing, of the wrong type or impossible.
    """
    values = dict(section)
    kind = values.pop("method", name)
    values.pop("training", None)  # what a variant says of `training` is resolved by `load_settings`
    if kind not in METHODS:
        raise unknown("method", kind, METHODS)
    known = parameters(METHODS[kind])
    for key, value in values.items():
        if key not in known:
            raise unknown(f"setting of methods.{name}", key, known)
        if known[key].annotation in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(
                f"methods.{name}.{key}: got {value!r}, expected a number (YAML reads 1e-3 as text, 1.0e-3 as a number)"
            )
    missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in values]
    if missing:
        raise UserError(f"methods.{name} of params.yaml lacks {missing[0]!r}")
    if values.get("epochs", 1) < 1:
        raise UserError(f"methods.{name}.epochs: got {values['epochs']}, expected at least 1")
    method: Method = METHODS[kind](**values)
    return method
