"""The settings of a scale, checked as a whole before a stage runs anything, its methods and tasks included."""

from collections.abc import Mapping

from etpo_paper.base.sections import Section, mistake, unknown_name
from etpo_paper.base.settings import Settings, load_settings
from etpo_paper.data.tasks import check_task
from etpo_paper.methods import check_method


def resolve(scale: str, method: str | None = None) -> Settings:
    """The settings of a scale, with everything that it will run checked before anything runs.

    Args:
        scale: a scale of `params.yaml` or a finished round of tuning.
        method: whose runs they are for, see `load_settings`.

    Raises:
        UserError: for the first mistake in the settings, the methods, the tasks or the model.
    """
    settings = load_settings(scale, method)
    for task in settings.tasks:
        check_task(task, settings)
    for name in {**dict.fromkeys(settings.method_names), **({method: None} if method else {})}:
        if check_method(name, settings.methods[name]):
            _check_sampling(name, load_settings(scale, name) if "training" in settings.methods[name] else settings)
    if "worlds" in settings.named:
        for variant in settings.worlds.variants:
            check_method(*variant_section(settings, variant))
    return settings


def variant_section(settings: Settings, variant: str) -> tuple[str, Section]:
    """A variant of the section `worlds`: its method, and that method's section with what the variant changes.

    Raises:
        UserError: the variant names no method, or one that has no section.
    """
    w, place = settings.worlds, settings.place("worlds", "variants", variant)
    changes = w.variants[variant]
    if not isinstance(changes, Mapping) or not isinstance(changes.get("method"), str):
        raise mistake(place, changes, "a section of settings with the name of a method, as in {method: etpo}")
    name = changes["method"]
    if name not in settings.methods:
        raise unknown_name("method", name, settings.methods, place)
    changed = {key: value for key, value in dict(changes).items() if key != "method"}
    section = settings.methods[name].plain() | {"beta": w.beta, "gamma": w.gamma} | changed
    return name, Section(section, place)


def _check_sampling(name: str, settings: Settings) -> None:
    """Methods that learn take each action as drawn from the policy itself, so it has to be.

    Raises:
        UserError: temperature or top-k say otherwise.
    """
    for key, wanted in (("temperature", 1.0), ("top_k", 0)):
        if (found := getattr(settings.training, key)) != wanted:
            expected = f"{wanted}: {name} learns from actions as drawn from the policy itself"
            raise mistake(settings.place("training", key), found, expected)
