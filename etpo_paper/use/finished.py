"""A finished run of `etpo fit`, opened for what is done with its policy."""

from pathlib import Path
from typing import NamedTuple

from etpo_core.errors import UserError
from etpo_paper.base.settings import Settings
from etpo_paper.environment.prompts import Prompt, task_prompt
from etpo_paper.model import models
from etpo_paper.training.run import read_run_card
from etpo_paper.use import folder
from etpo_paper.use.fit import settings_for
from etpo_paper.use.table import OwnTable


class Finished(NamedTuple):
    """What `etpo fit` was asked for, the run and its settings, its table, and the first prompt of its episodes."""

    asked: folder.Asked
    run: folder.OwnRun
    settings: Settings
    own: OwnTable
    prompt: Prompt


def finished(place: Path) -> Finished:
    """The run in a folder, whose model is then there.

    Raises:
        UserError: there is no such run, it is not finished, or its model is another one by now.
    """
    asked, _ = folder.read(place)
    run, settings = asked.run(place), settings_for(asked)
    if not run.card.is_file():
        raise UserError(f"{place}: its run is not finished; `{asked.command(place)}` goes on with it")
    own = folder.read_table(place)
    there = models.model(settings.model)
    if "path" in there and there["sha256"] != read_run_card(run)["model"]["sha256"]:
        raise UserError(f"{asked.model} is not the model any more that the policy of {place} was trained on")
    prompt = task_prompt(own.task.spec.description, own.task.features, own.task.rows // 2)
    return Finished(asked, run, settings, own, prompt)
