"""The beginning of a run: rows that it cannot go on from are kept aside, and the user is told why.

A stopped run goes on only with the settings, the model and the table that it was begun with, because rows of two kinds
in one file would be worth nothing. With others it begins anew. What it had by then, finished or not, may have cost
hours: its whole folder is renamed to `seed{n}.before-{m}`, which neither the loaders nor git and DVC look at. With the
former settings and the folder under its old name, the run is as it was.
"""

import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from etpo_paper.base.provenance import write_json
from etpo_paper.base.settings import Settings
from etpo_paper.base.upgrades import upgrade
from etpo_paper.training.checkpoint import is_damaged, read_checkpoint
from etpo_paper.training.run import Data, Run, fingerprint, is_finished, read_run_card, run_parameters


def keep_aside(run: Run, settings: Settings, model_card: Mapping[str, Any], data: Data, whose: str) -> str:
    """Renames the folder of a run that is finished or stopped and does not fit what it depends on now.

    Args:
        run: names the folder.
        settings: of the scale.
        model_card: of the model that the run begins from.
        data: what it is made on.
        whose: the name that a checkpoint to go on from would have.

    Returns:
        A line for the user, which is empty where nothing was renamed.

    Raises:
        UserError: the folder has a card that is not readable, or lost rows that its checkpoint counts on.
    """
    steps, finished = run.folder / "steps.csv", run.card.exists()
    rows = steps.read_bytes().count(b"\n") - 1 if steps.is_file() else 0
    goes_on = read_checkpoint(run.state, whose) is not None
    if finished:
        fits = is_finished(run, settings, model_card, data)
    else:  # without a checkpoint it was stopped in its first update, which is made again in any case
        fits = not run.state.exists() or goes_on
    if fits or rows < 1:
        return ""
    then = _of_card(run) if finished else _read(run.begun)
    differ = ", ".join(_differences(then, _dependence(run, settings, model_card, data), run.method))
    damaged = not finished and is_damaged(run.state)
    aside = _free_name(run.folder)
    run.folder.rename(aside)
    if damaged:
        return f"{run.folder}: begins anew, because its checkpoint is damaged; its {rows} steps are kept in {aside}"
    why = f"with {differ or 'another model or version'}"
    back = "" if finished else "; with what was before and that folder renamed back, the run goes on"
    return f"{run.folder}: begins anew, because its {rows} steps were made {why}; they are kept in {aside}{back}"


def make_room(run: Run, settings: Settings, model_card: Mapping[str, Any], data: Data) -> str:
    """Leaves nothing in a run's folder but what the run goes on from, and prints what was kept aside.

    Args:
        run: names the folder.
        settings: of the scale.
        model_card: of the model that the run begins from.
        data: what it is made on.

    Returns:
        The name of the checkpoint that the run writes and goes on from. It has the hash of the weights, because
        adapters fit only the very weights that they were trained on.

    Raises:
        UserError: see `keep_aside`.
    """
    whose = f"{fingerprint(run_parameters(run, settings), model_card, data)} {model_card['sha256']}"
    if line := keep_aside(run, settings, model_card, data, whose):
        print(line)
    run.card.unlink(missing_ok=True)
    return whose


def note(run: Run, settings: Settings, model_card: Mapping[str, Any], data: Data) -> None:
    """Writes down what a run depends on, to be compared if it is stopped and started again."""
    write_json(run.begun, _dependence(run, settings, model_card, data))


def _dependence(run: Run, settings: Settings, model_card: Mapping[str, Any], data: Data) -> dict[str, Any]:
    return {
        "parameters": run_parameters(run, settings),
        "model": model_card.get("warm_start"),
        "weights": model_card.get("sha256"),
        "data": data.sha256,
    }


def _free_name(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}.before-{number}") for number in count(1))
    return next(name for name in names if not name.exists())


def _of_card(run: Run) -> dict[str, Any]:
    """What a finished run says it depended on, in today's words."""
    card = read_run_card(run)
    return {"parameters": upgrade(card["parameters"], run.method), "data": card["data"].get("sha256")}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], method: str) -> list[str]:
    """What differs in the parts that both have, each as "name old instead of new"."""
    old, new = (_flat({key: what[key] for key in then.keys() & now.keys()}) for what in (then, now))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    called = {name: name.removeprefix("parameters.").replace("method.", f"methods.{method}.", 1) for name in names}
    return [f"{called[name]} {_short(old.get(name))} instead of {_short(new.get(name))}" for name in names]


def _flat(content: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
