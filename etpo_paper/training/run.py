"""The identity of a run: where it writes, which settings decide its numbers, and whether it is finished."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.provenance import versions, write_json
from etpo_paper.base.settings import Settings, deciding
from etpo_paper.base.upgrades import upgrade
from etpo_paper.report.results import integrity


class Data(Protocol):
    """What a run is made on: a table, or an environment of one's own."""

    @property
    def source(self) -> str:
        """Where it comes from."""

    @property
    def stand_in(self) -> str | None:
        """None, or a sentence that names what is used in its place."""

    @property
    def sha256(self) -> str:
        """Tells it apart from any other."""


@dataclass(frozen=True)
class Run:
    """One run of the matrix.

    Attributes:
        scale: the scale whose settings it has.
        method: the name of its method in `params.yaml`.
        data: what it is made on.
        seed: of its adapters and of sampling.
    """

    scale: str
    method: str
    task: str
    seed: int

    @property
    def folder(self) -> Path:
        """results/{scale}/{method}/{task}/seed{n}."""
        return paths.run_folder(self.scale, self.method, self.task, self.seed)

    @property
    def card(self) -> Path:
        """The run card; it is written when the run is complete."""
        return self.folder / "run_card.json"

    @property
    def state(self) -> Path:
        """The checkpoint that a stopped run goes on from; it exists from the first update until the card is written."""
        return self.folder / "checkpoint" / "state.pt"

    @property
    def begun(self) -> Path:
        """What the run depended on when it was last started; it exists as long as the checkpoint."""
        return self.folder / "checkpoint" / "begun.json"

    @property
    def policy(self) -> Path:
        """The trained adapter, in the format of peft."""
        return self.folder / "checkpoint" / "policy"


def run_parameters(run: Run, settings: Settings) -> dict[str, Any]:
    """The settings that decide a run's numbers (how many workers execute the programs does not)."""
    return {
        "training": settings.training.plain(),
        "environment": settings.environment.plain(),
        "method": settings.methods[run.method].plain(),
        "sandbox": deciding(settings.sandbox),
    }


def fingerprint(parameters: Mapping[str, Any], model_card: Mapping[str, Any], data: Data) -> str:
    """The name of all that a run depends on besides the code: its settings, the model and the table.

    A warm-started model is identified by what it was made from and how. Its weights differ in the last digits from one
    kind of processor to another, and the runs of a matrix may be made on several kinds; the hash of the weights is in
    the run card.
    """
    model = model_card.get("warm_start") or model_card.get("sha256")
    content = {"parameters": parameters, "model": model, "data": data.sha256}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_finished(run: Run, settings: Settings, model_card: Mapping[str, Any], data: Data) -> bool:
    """Whether the run's folder holds it, done to its end with these settings, this model and this table.

    Settings that came, went or were renamed since, without changing a number, do not make a run unfinished: what the
    card says is compared in today's words (`upgrade`), and the card's fingerprint vouches for what it says.

    Raises:
        UserError: the card is not readable.
    """
    if not run.card.exists():
        return False
    card = read_run_card(run)
    parameters = card["parameters"]
    return (
        card["status"] == "finished"
        and card.get("fingerprint") == fingerprint(parameters, model_card, data)
        and upgrade(parameters, run.method) == run_parameters(run, settings)
    )


def read_run_card(run: Run) -> dict[str, Any]:
    """The run card, which has at least a status, the sections of the parameters, and the data.

    Raises:
        UserError: the file is not such a card.
    """
    try:
        card = json.loads(run.card.read_text(encoding="utf-8"))
        sections = [*card["parameters"].values(), card["data"]]
        if not isinstance(card["status"], str) or not all(isinstance(section, dict) for section in sections):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        way = f"delete {run.folder} and make the run again"
        if run.state.exists():
            way = "delete this file and start the run again, which goes on from its checkpoint"
        raise UserError(f"{run.card} is not a run card; {way}") from None
    return card


def write_card(
    run: Run, settings: Settings, data: Data, model_card: dict[str, Any], *, status: str, reason: str = "", **more: Any
) -> None:
    """Writes the run card.

    Args:
        run: names it.
        settings: of its scale and method.
        data: what it is made on.
        model_card: of the model that it began from.
        status: "finished", or "not run".
        reason: why it was not run.
        more: further entries.
    """
    parameters = run_parameters(run, settings)
    write_json(
        run.card,
        {
            "status": status,
            "reason": reason,
            "scale": run.scale,
            "method": run.method,
            "task": run.task,
            "seed": run.seed,
            "seeds": {"adapters and sampling": run.seed, "splits": list(settings.environment.split_seeds)},
            "parameters": parameters,
            "fingerprint": fingerprint(parameters, model_card, data),
            "data": {"source": data.source, "stand_in": data.stand_in, "sha256": data.sha256},
            "model": {k: model_card.get(k) for k in ("name", "source", "stand_in", "sha256")},
            "versions": versions(),
            **more,
        },
    )


def finish(
    run: Run,
    settings: Settings,
    data: Data,
    model_card: dict[str, Any],
    *,
    device: str,
    decoder: str | None,
    **more: Any,
) -> None:
    """Writes the card of a run that came to its end, and deletes what a stopped run would have gone on from.

    Args:
        run: names it; its `steps.csv` is complete.
        settings: see `write_card`.
        data: see `write_card`.
        model_card: see `write_card`.
        device: what it was made on.
        decoder: what wrote its actions; None for a model behind an endpoint.
        more: see `write_card`.
    """
    tried = integrity(pd.read_csv(run.folder / "steps.csv"))
    made = {"device": device, "decoder": decoder, "integrity": tried, **more}
    write_card(run, settings, data, model_card, status="finished", **made)
    run.state.unlink(missing_ok=True)
    run.begun.unlink(missing_ok=True)
