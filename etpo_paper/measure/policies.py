"""The perplexity of every model of a scale: the base model, the reference, and each policy trained from it.

A model to measure is a `Subject`; `find_subjects` lists them from the models and the run cards on this disk. The
results stand in a `PerplexityTable`, one row for each model and text. A row has a key made of what was measured: the
weights, the text, the windows and the precision. As long as its key is right, a row need not be measured again, even
where the policy's weights are no longer on this disk.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base import settings as typed
from etpo_paper.base.provenance import file_sha256, write_rows
from etpo_paper.data.corpora import CORPORA, Text
from etpo_paper.measure.perplexity import causal_log_likelihood, perplexity
from etpo_paper.model.loading import front, load_model, read_card
from etpo_paper.report import results

COLUMNS = [*results.PERPLEXITY_COLUMNS, "key"]

Place = tuple[str, str, str, str]
"""Which row of the table: model, task, seed and text."""


@dataclass(frozen=True)
class Subject:
    """Something to measure: a language model, or the reference with a trained adapter.

    Attributes:
        model: "base", "reference" or the method that trained the policy.
        task: the task that the policy was trained on; empty for base and reference.
        seed: the seed of the run; empty for base and reference.
        folder: the folder in `models/`.
        adapter: the policy's adapter folder; None for base and reference.
        weights: a hash that identifies the weights, or None where they cannot be measured here.
        reason: why they cannot.
    """

    model: str
    task: str
    seed: str
    folder: str
    adapter: Path | None = None
    weights: str | None = None
    reason: str = ""

    def place(self, text: str) -> Place:
        """Its row for a text."""
        return self.model, self.task, self.seed, text

    @property
    def name(self) -> str:
        """Its name in log lines."""
        return f"{self.model} {self.task} seed{self.seed}" if self.adapter else self.model


def find_subjects(settings: typed.Settings) -> list[Subject]:
    """Base, reference and the trained policies of a scale, in the order of the table's rows."""
    reference = read_card(settings.model)
    name = f"{settings.model}-base"
    if (paths.MODELS / name / "card.json").is_file():
        subjects = [Subject("base", "", "", name, weights=_short(_identity(read_card(name))))]
    elif reference.get("warm_start"):
        subjects = [Subject("base", "", "", name, reason=f"models/{name} is not there")]
    else:
        subjects = []  # without a warm start the reference is the base model
    subjects.append(Subject("reference", "", "", settings.model, weights=_short(_identity(reference))))
    cards = results.load_cards(settings.scale)
    cards = cards[(cards["status"] == "finished") & cards["seed"].isin(list(settings.perplexity.run_seeds))]
    updates = results.load_updates(settings.scale)
    updates = updates[updates["policy_loss"].notna()]
    trained = set(zip(updates["method"], updates["task"], updates["seed"], strict=True))
    for card in cards.to_dict("records"):
        method, task, seed, folder = card["method"], card["task"], card["seed"], Path(card["folder"])
        adapter = _adapter(folder)
        if (method, task, seed) not in trained and not adapter.is_dir():
            continue  # a method that does not train
        weights, reason = _adapter_weights(folder, adapter, reference)
        subjects.append(Subject(method, task, str(seed), settings.model, adapter, weights, reason))
    return subjects


class PerplexityTable:
    """evaluations/{scale}/perplexity.csv, written whole after every measurement."""

    def __init__(self, path: Path):
        """Reads the rows of the file; a missing file is an empty table."""
        self.path = path
        self.rows: dict[Place, dict[str, str]] = {}
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    if None in row.values() or not {*COLUMNS} <= row.keys():
                        continue  # a row of another version, or one that is cut short, is measured again
                    self.rows[row["model"], row["task"], row["seed"], row["corpus"]] = row

    def keep(self, places: set[Place]) -> None:
        """Forgets rows of models that the scale no longer has."""
        for place in set(self.rows) - places:
            print(f"{' '.join(filter(None, place))}: no longer part of this scale, row dropped")
            del self.rows[place]

    def put(self, place: Place, row: dict[str, str]) -> None:
        """Adds a row and writes the table."""
        self.rows[place] = row
        self.write()

    def write(self) -> None:
        """Writes the rows in a fixed order, so that the same rows give the same bytes."""
        rows = [self.rows[place] for place in sorted(self.rows, key=_rank)]
        write_rows(self.path, COLUMNS, [[row[column] for column in COLUMNS] for row in rows])


def _rank(place: Place) -> tuple[int, str, str, int, int]:
    model, task, seed, corpus = place
    first = {"base": 0, "reference": 1}.get(model, 2)
    return first, model, task, int(seed or 0), list(CORPORA).index(corpus) if corpus in CORPORA else len(CORPORA)


def measure(subject: Subject, text: Text, model: Any, tokenizer: Any, settings: typed.Perplexity) -> dict[str, str]:
    """The row of a subject and a text, without its key and the loss of its reference."""
    start = front(tokenizer)
    ids = torch.tensor(tokenizer(text.text, add_special_tokens=False, verbose=False).input_ids)
    bar: Callable = lambda places: tqdm(places, desc=f"{subject.name}: {text.name}", leave=False)  # noqa: E731
    score = causal_log_likelihood(model, start)
    measured = perplexity(score, ids, settings.window, settings.stride, settings.tokens, progress=bar)
    return {
        "model": subject.model,
        "task": subject.task,
        "seed": subject.seed,
        "corpus": text.name,
        "source": text.source,
        "stand_in": text.stand_in or "",
        "tokens": str(measured.tokens),
        "nll": f"{measured.nll:.6f}",
        "perplexity": f"{measured.perplexity:.6f}",
    }


class Loader:
    """Keeps one model in memory and puts one adapter at a time on it."""

    def __init__(self, dtype: torch.dtype, device: str):
        """Loads nothing yet."""
        self._dtype, self._device = dtype, device
        self._folder: str | None = None
        self._model: Any = None
        self._tokenizer: Any = None

    @contextmanager
    def use(self, subject: Subject) -> Iterator[tuple[Any, Any]]:
        """The model and the tokenizer of a subject."""
        if self._folder != subject.folder:
            self._model = self._tokenizer = None  # freed before the next one is loaded
            self._model, self._tokenizer, _ = load_model(subject.folder, self._dtype, self._device)
            self._folder = subject.folder
        if subject.adapter is None:
            yield self._model, self._tokenizer
            return
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(self._model, subject.adapter).eval()
        except Exception as error:  # peft, safetensors and torch each raise errors of their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise UserError(
                f"{subject.adapter} does not fit models/{subject.folder} ({reason}); delete the run and train again"
            ) from None
        try:
            yield model, self._tokenizer
        finally:
            self._model = model.unload()


def _adapter(folder: Path) -> Path:
    """The folder of a run's policy; peft puts an adapter that has a name one folder deeper."""
    place = folder / "checkpoint" / "policy"
    return place / "policy" if (place / "policy" / "adapter_config.json").is_file() else place


def _adapter_weights(folder: Path, adapter: Path, reference: dict[str, Any]) -> tuple[str | None, str]:
    """A hash that identifies the policy's weights, or None and the reason why they cannot be measured here."""
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    if not weights.is_file() or not config.is_file():
        return None, f"its weights are not in {adapter.relative_to(paths.ROOT)}"
    trained_from = (json.loads((folder / "run_card.json").read_text(encoding="utf-8")).get("model") or {}).get("sha256")
    if trained_from and reference.get("sha256") and trained_from != reference["sha256"]:
        return None, f"it was trained from other weights than models/{reference['name']}"
    scale = json.loads(config.read_text(encoding="utf-8"))
    return _short(_identity(reference), file_sha256(weights), scale.get("r"), scale.get("lora_alpha")), ""


def _identity(card: dict[str, Any]) -> str:
    return str(card.get("sha256") or card.get("path") or card["name"])


def text_key(text: Text, settings: typed.Perplexity, dtype: torch.dtype) -> str:
    """The end of a row's key: the text, how much of it is scored in which windows, and the precision."""
    return _short(text.sha256, settings.tokens, settings.window, settings.stride, dtype)


def _short(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8")).hexdigest()[:12]
