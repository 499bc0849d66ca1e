"""Which run it is, where it writes, and which settings decide its numbers."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from etpo_paper.base import paths
from etpo_paper.base.settings import Settings, deciding
from etpo_paper.data.tasks import Task


@dataclass(frozen=True)
class Run:
    """Which run it is and where it writes."""

    scale: str
    method: str
    task: str
    seed: int

    @property
    def folder(self) -> Path:
        """results/{scale}/{method}/{task}/seed{n}."""
        return paths.run_folder(self.scale, self.method, self.task, self.seed)

    @property
    def state(self) -> Path:
        """The checkpoint that a run goes on from; it is there from the first update until the card is written."""
        return self.folder / "checkpoint" / "state.pt"


def run_parameters(run: Run, settings: Settings) -> dict:
    """The settings that decide a run's numbers (how many workers execute the code does not)."""
    return {
        "training": settings.training.plain(),
        "environment": settings.environment.plain(),
        "method": settings.methods[run.method].plain(),
        "sandbox": deciding(settings.sandbox),
    }


def fingerprint(parameters: dict, model_card: dict, task: Task) -> str:
    """Names what a run depends on besides the code: its settings, the model, the table.

    A warm-started model is named by what it was made from and how. Its weights differ in the last digits from one kind
    of processor to another, and a matrix of runs may be completed on several; their sum stands in the run card.
    """
    model = model_card.get("warm_start") or model_card.get("sha256")
    content = {"parameters": parameters, "model": model, "data": task.sha256}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
