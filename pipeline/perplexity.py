"""Stage `perplexity`: what training did to the model's general language ability.

    python -m pipeline.perplexity --scale laptop

Measures the perplexity of the base model (before the warm start), of the reference (where training begins, the paper's
"original language model") and of every trained policy on the three texts of the stage `corpora`, and writes
evaluations/{scale}/perplexity.csv with one row for each model and text. What has a valid row is not measured again, so
a stage that was killed goes on where it stopped, and a policy whose weights are not on this disk keeps its row. A
policy's row also holds the loss of the reference that it was trained from (`before_nll`): the runs of a scale may start
from several references, each made on its own machine, and the table has a row for the last one only.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings
from etpo_paper.measure.policies import Loader, PerplexityTable, find_subjects, measure, text_key
from etpo_paper.model import models
from pipeline import corpora, entry


def run(scale: str) -> Path:
    """Measures what has no valid row yet and returns the path of the table."""
    settings = load_settings(scale)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    texts = corpora.texts(scale)
    models.model(settings.model)
    table = PerplexityTable(paths.EVALUATIONS / scale / "perplexity.csv")
    subjects = find_subjects(settings)
    table.keep({subject.place(text.name) for subject in subjects for text in texts})
    loader = Loader(dtype, device)
    for subject in subjects:
        if subject.weights is None:
            kept = [text.name for text in texts if subject.place(text.name) in table.rows]
            print(f"{subject.name}: {subject.reason}; " + (f"rows kept: {', '.join(kept)}" if kept else "no row"))
            continue
        for text in texts:
            place = subject.place(text.name)
            key = f"{subject.weights}-{text_key(text, settings.perplexity, dtype)}"
            if table.rows.get(place, {}).get("key") == key:
                continue
            with loader.use(subject) as (model, tokenizer):
                row = measure(subject, text, model, tokenizer, settings.perplexity)
            before = table.rows["reference", "", "", text.name]["nll"] if subject.adapter else ""
            table.put(place, row | {"before_nll": before, "key": key})
    table.write()
    print(f"{len(table.rows)} rows: {table.path}")
    return table.path


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    entry.run_scale(run, __doc__, argv)


if __name__ == "__main__":
    main()
