"""Stage `perplexity`: what training did to the model's general language ability.

    python -m pipeline.perplexity --scale laptop

Measures the perplexity of the base model (before the warm start), of the reference (where training begins, the paper's
"original language model") and of every trained policy on the three texts of the stage `corpora`, and writes
evaluations/{scale}/perplexity.csv with one row for each model and text. A row has a key made of what was measured: the
weights, the text, the window and the precision. A row whose key is still right is not measured again, so a stage that
was killed goes on where it stopped, and a policy whose weights are not on this disk keeps its row. A policy's row also
holds the loss of the reference that it was trained from (`before_nll`): the runs of a scale may start from several
references, each made on its own machine, and the table has a row for the last one only.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.provenance import file_sha256
from etpo_paper.base.settings import Perplexity, Settings
from etpo_paper.data.corpora import CORPORA, Text, load_corpus
from etpo_paper.measure.perplexity import causal_log_likelihood, perplexity
from etpo_paper.model.loading import load_model, read_card
from etpo_paper.report import results
from pipeline import entry

COLUMNS = [*results.PERPLEXITY_COLUMNS, "key"]


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

    @property
    def name(self) -> str:
        """Its name in log lines."""
        return f"{self.model} {self.task} seed{self.seed}" if self.adapter else self.model


def run(scale: str) -> Path:
    """Measures what has no valid row yet and returns the path of the table."""
    settings = entry.resolve(scale)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    texts = [load_corpus(name, scale) for name in CORPORA]
    what = {text.name: _text_key(text, settings.perplexity, dtype) for text in texts}
    table = Table(paths.EVALUATIONS / scale / "perplexity.csv")
    subjects = find_subjects(settings)
    table.keep({(s.model, s.task, s.seed, text.name) for s in subjects for text in texts})
    for subject in subjects:
        if subject.weights is None:
            kept = [name for name in what if (subject.model, subject.task, subject.seed, name) in table.rows]
            print(f"{subject.name}: {subject.reason}; " + (f"rows kept: {', '.join(kept)}" if kept else "no row"))
    loader = _Loader(dtype, device)
    for subject in subjects:
        for text in texts:
            place = (subject.model, subject.task, subject.seed, text.name)
            key = f"{subject.weights}-{what[text.name]}"
            if subject.weights is None or table.rows.get(place, {}).get("key") == key:
                continue
            with loader.use(subject) as (model, tokenizer):
                row = _measure(subject, text, model, tokenizer, settings.perplexity)
            before = table.rows["reference", "", "", text.name]["nll"] if subject.adapter else ""
            table.put(place, row | {"before_nll": before, "key": key})
    table.write()
    print(f"{len(table.rows)} rows: {table.path}")
    return table.path


def find_subjects(settings: Settings) -> list[Subject]:
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
    for card in cards.itertuples():
        adapter = _adapter(Path(card.folder))
        if (card.method, card.task, card.seed) not in trained and not adapter.is_dir():
            continue  # a method that does not train
        weights, reason = _adapter_weights(Path(card.folder), adapter, reference)
        subjects.append(Subject(card.method, card.task, str(card.seed), settings.model, adapter, weights, reason))
    return subjects


class Table:
    """evaluations/{scale}/perplexity.csv, written whole after every measurement."""

    def __init__(self, path: Path):
        """Reads the rows of the file; a missing file is an empty table."""
        self.path = path
        self.rows: dict[tuple[str, str, str, str], dict[str, str]] = {}
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as stream:
                for row in csv.DictReader(stream):
                    if None in row.values() or not {*COLUMNS} <= row.keys():
                        continue  # a row of another version, or one that is cut short, is measured again
                    self.rows[row["model"], row["task"], row["seed"], row["corpus"]] = row

    def keep(self, places: set[tuple[str, str, str, str]]) -> None:
        """Forgets rows of models that the scale no longer has."""
        for place in set(self.rows) - places:
            print(f"{' '.join(filter(None, place))}: no longer part of this scale, row dropped")
            del self.rows[place]

    def put(self, place: tuple[str, str, str, str], row: dict[str, str]) -> None:
        """Adds a row and writes the table."""
        self.rows[place] = row
        self.write()

    def write(self) -> None:
        """Writes the rows in a fixed order, so that the same rows give the same bytes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        with partial.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows[place] for place in sorted(self.rows, key=_rank))
        partial.replace(self.path)


def _rank(place: tuple[str, str, str, str]) -> tuple[int, str, str, int, int]:
    model, task, seed, corpus = place
    first = {"base": 0, "reference": 1}.get(model, 2)
    return (
        first,
        model,
        task,
        int(seed or 0),
        list(CORPORA).index(corpus) if corpus in CORPORA else len(CORPORA),
    )


def _measure(subject: Subject, text: Text, model: Any, tokenizer: Any, settings: Perplexity) -> dict[str, str]:
    start = tokenizer("").input_ids  # <s> where the tokenizer puts one before every text, otherwise nothing
    ids = torch.tensor(tokenizer(text.text, add_special_tokens=False, verbose=False).input_ids)
    bar: Callable = lambda places: tqdm(places, desc=f"{subject.name}: {text.name}", leave=False)  # noqa: E731
    measured = perplexity(
        causal_log_likelihood(model, start),
        ids,
        settings.window,
        settings.stride,
        settings.tokens,
        progress=bar,
    )
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


class _Loader:
    """Keeps one model in memory and puts one adapter at a time on it."""

    def __init__(self, dtype: torch.dtype, device: str):
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


def _text_key(text: Text, settings: Perplexity, dtype: torch.dtype) -> str:
    return _short(text.sha256, settings.tokens, settings.window, settings.stride, dtype)


def _short(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8")).hexdigest()[:12]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    arguments = entry.parser(__doc__, scale="laptop").parse_args(argv)
    with entry.one_line_errors():
        run(arguments.scale)


if __name__ == "__main__":
    main()
