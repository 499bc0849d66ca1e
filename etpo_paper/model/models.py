"""Makes the language models, which are too large for git, when a stage first needs one.

What decides the numbers is in git: the start of each model, see `etpo_paper.model.starts`. A clone can therefore say
that its results are up to date without the model, and `dvc repro` makes it only where a stage has to run. The stages
`data` and `corpora` do the same for tables and texts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.lock import sole_maker
from etpo_paper.base.sections import unknown_name
from etpo_paper.base.settings import load_defaults
from etpo_paper.model import starts
from etpo_paper.model.loading import check_files, convert_smollm2, fetch_hub, read_card, unchanged


def base(name: str) -> dict[str, Any]:
    """The card of a pretrained model, which is made if it is not there or not that of the settings.

    Raises:
        UserError: it cannot be made.
    """
    folder, makers = paths.MODELS / f"{name}-base", base_makers()
    if name in makers and not _is_todays(folder):
        makers[name](folder)
        print(f"{folder}: made")
    return check_files(f"{name}-base")


def _is_todays(folder: Path) -> bool:
    """Whether a pretrained model is there and, if it lies elsewhere, is the one that the settings name, unchanged."""
    if not (folder / "card.json").is_file():
        return False
    card = read_card(folder.name)
    return "path" not in card or (card.get("source") == load_defaults().base_model.codellama.source and unchanged(card))


def base_makers() -> dict[str, Callable[[Path], object]]:
    """The pretrained models that are fetched, with what writes each into a folder."""
    source = load_defaults().base_model.codellama.source  # the same at every scale
    return {"smollm2": convert_smollm2, "codellama": lambda folder: fetch_hub(source, folder)}


def card(name: str) -> dict[str, Any]:
    """The card of the model that the runs begin from, whether the model itself is there or not.

    Raises:
        UserError: there is neither a start nor a model of that name, or the start was made by another recipe than that
            of the settings.
    """
    start = starts.read_start(name)
    if start is None:
        return read_card(name)
    if start["start"] is None:
        return model(name)
    check_recipe(name, start)
    return start


def check_recipe(name: str, start: dict[str, Any]) -> None:
    """Compares the recipe of a start with that of the settings.

    Raises:
        UserError: they differ.
    """
    wanted = recipe(name)
    made = {key: start["warm_start"].get(key) for key in wanted}
    if made != wanted:
        differ = ", ".join(f"{key} {made[key]} instead of {wanted[key]}" for key in wanted if made[key] != wanted[key])
        again = f"`python -m pipeline.warm_start --model {name}` makes it again"
        raise UserError(f"starts/{name} was made with {differ}, which warm_start.{name} of params.yaml says; {again}")


def recipe(name: str) -> dict[str, Any]:
    """What the settings say of a warm start and decides its weights.

    Raises:
        UserError: the settings know no such model, or it has no warm start.
    """
    sections = load_defaults().warm_start  # the same at every scale
    if name not in type(sections).model_fields:
        raise unknown_name("model", name, type(sections).model_fields)
    section = getattr(sections, name)
    if section is None:
        raise UserError(f"{name} has no warm start: warm_start.{name} of params.yaml is empty")
    return {key: value for key, value in section.plain().items() if key != "report_samples"}


def model(name: str) -> dict[str, Any]:
    """The card of models/{name}, which is made from its start if it is not there or was made from another start.

    Where several processes need it, one makes it and the others wait.

    Raises:
        UserError: it cannot be made.
    """
    start = starts.read_start(name)
    if start is None:
        return check_files(name)
    if there := _there(name, start):
        return there
    with sole_maker(paths.MODELS / name, wait=True):
        return _there(name, start) or _make(name, start)


def _there(name: str, start: dict[str, Any]) -> dict[str, Any] | None:
    """The card of models/{name} if that was made from this start or, without a warm start, from today's source."""
    base_folder = paths.MODELS / f"{name}-base"
    if not (paths.MODELS / name / "card.json").is_file():
        return None
    if start["start"] is None:
        there = read_card(name)
        return there if _is_todays(base_folder) and there == read_card(base_folder.name) | {"name": name} else None
    there = check_files(name)
    return there if there.get("start") == start["start"] else None


def _make(name: str, start: dict[str, Any]) -> dict[str, Any]:
    folder = paths.MODELS / name
    if start["start"] is not None:
        check_recipe(name, start)
    print(f"{folder}: made from {starts.folder(name)}")
    made = starts.make(name, lambda: base(name))
    if start["start"] is not None and made.get("sha256") != start.get("sha256"):
        print(f"{folder}: not the weights that the start led to where it was made; runs may differ in last digits")
    return made
