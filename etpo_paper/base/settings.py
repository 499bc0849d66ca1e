"""Settings of one scale: `params.yaml` with that scale's overrides laid over it.

`params.yaml` holds every setting once. The sections at its top are the defaults; `scales.NAME` names the model, the
methods, the tasks and the seeds of a scale and overrides single settings of the sections of the same name. Its methods
are a list, or names with what each is to have otherwise there. A method's section may itself override settings of
`training`, for a variant whose runs differ in those. A name that is not there by default cannot be overridden, so that
a misspelt setting is an error and not a silent default.
"""

from types import SimpleNamespace
from typing import Any

import yaml

from etpo_core.errors import UserError, unknown
from etpo_paper.base import paths

SCALE_LISTS = ("model", "methods", "tasks", "seeds")


class Settings(SimpleNamespace):
    """A section of settings: values as attributes, subsections are sections themselves."""

    def __getitem__(self, key: str) -> Any:
        return vars(self)[key]

    def __iter__(self):
        return iter(vars(self))

    def __contains__(self, key: str) -> bool:
        return key in vars(self)

    def plain(self) -> dict[str, Any]:
        """The section as nested dictionaries, for run cards and hashes."""
        return {k: v.plain() if isinstance(v, Settings) else v for k, v in vars(self).items()}


def read_params() -> dict[str, Any]:
    """The whole of `params.yaml` as nested dictionaries.

    Raises:
        UserError: when the file is missing or is no valid YAML.
    """
    try:
        params = yaml.safe_load(paths.PARAMS.read_text())
    except FileNotFoundError:
        raise UserError(f"{paths.PARAMS} is missing; it holds every setting, restore it from git") from None
    except yaml.YAMLError as error:
        raise UserError(f"params.yaml is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(params, dict) or "scales" not in params:
        raise UserError(f"{paths.PARAMS} has no section scales; it holds every setting, restore it from git")
    return params


def load_settings(scale: str, method: str | None = None) -> Settings:
    """The settings of `scale`, its overrides applied.

    Args:
        scale: one of those in `params.yaml`.
        method: whose runs they are for; with None, `training` is that of methods which do not override it.

    Returns:
        The sections of `params.yaml` (without `scales`) and, beside them, `scale`, `model`, `methods` -> a section
        for each method, `method_names`, `tasks` and `seeds`.

    Raises:
        UserError: for an unknown scale, method or overridden name.
    """
    params = read_params()
    scales = params.pop("scales")
    if scale not in scales:
        raise unknown("scale", scale, scales)
    chosen = scales[scale]
    for key in SCALE_LISTS:
        if key not in chosen:
            raise UserError(f"scales.{scale} of params.yaml has no {key}; a scale names its {', '.join(SCALE_LISTS)}")
    for section, overrides in chosen.items():
        if section in SCALE_LISTS:
            continue
        if section not in params:
            raise unknown(f"section in scales.{scale}", section, params)
        _overlay(params[section], overrides, f"scales.{scale}.{section}")
    for name in chosen["methods"]:
        if name not in params["methods"]:
            raise unknown("method", name, params["methods"])
        if isinstance(chosen["methods"], dict):
            _overlay(params["methods"][name], chosen["methods"][name], f"scales.{scale}.methods.{name}")
    if method in params["methods"]:
        _overlay(params["training"], params["methods"][method].get("training", {}), f"methods.{method}.training")
    settings = _sections(params)
    settings.scale = scale
    settings.model = chosen["model"]
    settings.method_names = list(chosen["methods"])
    settings.tasks = list(chosen["tasks"])
    settings.seeds = list(chosen["seeds"])
    return settings


def _overlay(section: dict, overrides: dict, where: str) -> None:
    if not isinstance(overrides, dict):
        raise UserError(f"{where}: got {overrides!r}, expected settings, {{}} for none")
    for key, value in overrides.items():
        if key not in section:
            raise unknown(f"parameter in {where}", key, section)
        if isinstance(section[key], dict):
            _overlay(section[key], value, f"{where}.{key}")
        else:
            if isinstance(section[key], int | float) and not isinstance(section[key], bool):
                expect_number(value, f"{where}.{key}")
            section[key] = value


def deciding(sandbox: Settings) -> dict[str, Any]:
    """The section `sandbox` without what no score depends on: how many workers execute the code."""
    return {key: value for key, value in sandbox.plain().items() if key != "workers"}


def expect_number(value: Any, where: str) -> None:
    """Raises `UserError` where a setting is no number, which 1e-3 is not to YAML."""
    if not isinstance(value, int | float):
        raise UserError(f"{where}: got {value!r}, expected a number (YAML reads 1e-3 as text, 1.0e-3 as a number)")


def _sections(value: Any) -> Any:
    return Settings(**{k: _sections(v) for k, v in value.items()}) if isinstance(value, dict) else value
