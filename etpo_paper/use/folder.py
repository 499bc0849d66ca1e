"""The folder of a run on one's own table: what was asked for, the encoded table, the run, and what came of it.

fit.json          what was asked for, and what becomes of each column
table.npz         x and y as training sees them
run/              what every run of this project writes, see `training.run_files`; with checkpoint/policy
best_program.py   the best program with its preprocessing
"""

import csv
import json
import os
import shlex
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etpo_core.errors import UserError
from etpo_paper.base.lock import LEASE, lock_of
from etpo_paper.base.provenance import write_json
from etpo_paper.base.settings import BaseModels
from etpo_paper.data.tasks import Task
from etpo_paper.data.tasks.table import fingerprint
from etpo_paper.training.run import Run
from etpo_paper.use.table import OwnTable, own_task

BEST = "best_program.py"


@dataclass(frozen=True)
class OwnRun(Run):
    """A run in a folder that the user has chosen, instead of results/."""

    place: Path

    @property
    def folder(self) -> Path:
        """The folder of the run's own files."""
        return self.place / "run"


@dataclass(frozen=True)
class Asked:
    """What `etpo fit` was asked for; a model in a folder is named by its absolute path."""

    table: str
    target: str
    method: str
    steps: int
    model: str
    seed: int
    lora_targets: str | None = None  # names with commas between them

    def __post_init__(self) -> None:
        """Makes the run independent of where the user is."""
        place = Path(self.model).expanduser()
        if self.model not in BaseModels.model_fields and place.is_dir():
            object.__setattr__(self, "model", str(place.resolve()))

    def run(self, place: Path) -> OwnRun:
        """The run in a folder."""
        return OwnRun("own", self.method, Path(self.table).stem, self.seed, place)

    def command(self, place: Path) -> str:
        """The command that begins the run or goes on with it, from where the user is now."""
        words = ["etpo", "fit", os.path.relpath(self.table), "--target", self.target, "--method", self.method]
        words += ["--steps", str(self.steps), "--model", self.model, "--seed", str(self.seed)]
        words += [] if self.lora_targets is None else ["--lora-targets", self.lora_targets]
        return shlex.join([*words, "--out", os.path.relpath(place)])


def check(place: Path, asked: Asked) -> None:
    """Looks whether a run can be made in a folder.

    Raises:
        UserError: the folder holds something else.
    """
    if place.exists() and not place.is_dir():
        raise UserError(f"--out {place} is a file; expected a folder")
    there = {path.name for path in place.iterdir()} - {"run.lock"} if place.is_dir() else set()
    if there and "fit.json" not in there:
        raise UserError(f"--out {place} holds other files; expected a new folder, or that of an earlier `etpo fit`")
    if there:
        before, _ = read(place)
        for name, then in asdict(before).items():
            if then != getattr(asked, name):
                raise UserError(f"--out {place} holds a run with {name} {then}; give another folder for this one")


def write(place: Path, asked: Asked, own: OwnTable) -> None:
    """Writes down what was asked for, and the table as training sees it."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / "table.npz.part").open("wb") as file:
        np.savez_compressed(file, x=own.task.x, y=own.task.y)
    os.replace(place / "table.npz.part", place / "table.npz")
    more = {"raw_rows": own.task.spec.raw_rows, "sha256": own.task.sha256}
    told = {"labels": own.labels, "plan": own.plan, "notes": own.notes}
    write_json(place / "fit.json", {**asdict(asked), **more, **told})


def read(place: Path) -> tuple[Asked, dict[str, Any]]:
    """What a folder was made for, and all of `fit.json`.

    Raises:
        UserError: it is not the folder of an `etpo fit`.
    """
    path = place / "fit.json"
    if not path.is_file():
        raise UserError(f"{place} is no folder of `etpo fit`; `etpo runs` lists those in runs/")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.setdefault("lora_targets", None)  # runs of earlier versions have none
        return Asked(**{name: content[name] for name in Asked.__dataclass_fields__}), content
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged; rename {place} and run `etpo fit` again") from None


def read_table(place: Path) -> OwnTable:
    """The table as training saw it, without its original columns.

    Raises:
        UserError: the file is missing or another one.
    """
    asked, content = read(place)
    path = place / "table.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} is missing or damaged; `{asked.command(place)}` makes it again") from None
    if fingerprint(x, y) != content["sha256"]:
        raise UserError(f"{path} is not the table of the run; `{asked.command(place)}` makes it again")
    task: Task = own_task(Path(asked.table), asked.target, x, y, content["raw_rows"], len(content["labels"]))
    return OwnTable(task, asked.target, content["labels"], content["plan"], content["notes"])


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes:
        state: "finished", "begun", or "held" by a process that is at it.
        steps: how many it has made.
        last_fifth: the mean reward over the last fifth of them; None if there are none.
        best: the best reward of a program that ran; None if none did.
    """

    state: str
    steps: int
    last_fifth: float | None
    best: float | None


def state_of(run: OwnRun) -> State:
    """How far a run is, from its files."""
    state, steps = "begun", run.folder / "steps.csv"
    rows: list[dict[str, str]] = []
    if steps.is_file():
        with steps.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("reward") and row.get("status")]
    ran = [float(row["reward"]) for row in rows if row["status"] == "ok"]
    if run.card.is_file():
        state = "finished"
    lock = lock_of(run.folder)
    if lock.is_file() and time.time() - lock.stat().st_mtime < LEASE:
        state = "held"
    last = [float(row["reward"]) for row in rows[-max(1, len(rows) // 5) :]]
    return State(state, len(rows), sum(last) / len(last) if last else None, max(ran, default=None))
