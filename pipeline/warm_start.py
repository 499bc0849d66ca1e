"""Stage `warm_start`: teaches a pretrained model what a body of `build_model` looks like.

    python -m pipeline.warm_start --model smollm2
    python -m pipeline.warm_start --model smollm2 --again

writes starts/smollm2, what the experiments' "original language model" is made from, with a report in warm_start.json
beside it. The start comes with the project, so that all runs begin from the same weights: while the settings are those
that it was made with, nothing is done. With `--again` the training is repeated and compared with it; the new start is
then in build/starts. After an interruption the same command goes on from the last checkpoint.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.machine import choose
from etpo_paper.base.provenance import write_json
from etpo_paper.base.settings import WarmStart, load_defaults
from etpo_paper.data.tasks import TASKS
from etpo_paper.environment.executor import open_executor
from etpo_paper.model import models, starts
from etpo_paper.model.loading import check_files, load_model
from etpo_paper.model.output import output_weight
from etpo_paper.warm_start.corpus import Corpus, good_bodies
from etpo_paper.warm_start.report import measure
from etpo_paper.warm_start.sft import WarmStartSettings, answer_ids, train
from pipeline import base_model, data, entry


def train_start(name: str, recipe: dict[str, Any], place: Path) -> dict[str, Any]:
    """Trains a pretrained model and writes what the training added to it.

    Args:
        name: the model.
        recipe: the settings of the training.
        place: the folder that the start is written to.

    Returns:
        What the report says of the corpus and of the training.

    Raises:
        UserError: the pretrained model is damaged or has a head that is not one matrix, or a setting makes no sense.
    """
    settings = WarmStartSettings(**recipe)
    if (paths.MODELS / f"{name}-base" / "card.json").is_file():
        models.base(name)  # makes it again if it is not that of the settings
    else:
        base_model.make(name)
    base = check_files(f"{name}-base", whole=True)
    model, tokenizer, _ = load_model(f"{name}-base")
    output_weight(model)
    bodies = good_bodies(settings.seed, lambda body: len(answer_ids(body, tokenizer, base)) <= settings.max_tokens)
    corpus = Corpus(bodies, settings.seed)
    checkpoint = paths.MODELS / ".checkpoints" / f"{name}.pt"
    trained, record = train(model, tokenizer, base, corpus, settings, checkpoint)
    card = base | {"name": name, "warm_start": recipe | {"bodies": len(bodies), "base": base["sha256"]}}
    starts.write_start(name, trained, tokenizer, card, place)
    checkpoint.unlink(missing_ok=True)
    return {
        "settings": recipe,
        "corpus": {
            "bodies": len(bodies),
            "failures_with_repair": len(corpus.failures),
            "median_tokens": statistics.median(len(answer_ids(b.text, tokenizer, base)) for b in bodies),
            "classifiers": dict(Counter(body.classifier for body in bodies).most_common()),
        },
        "training": record,
    }


def measured(name: str, samples: int, seed: int) -> dict[str, Any]:
    """The share of programs of models/{name} that run on each task, see `etpo_paper.warm_start.report`."""
    model, tokenizer, card = load_model(name)
    tasks, settings = [data.table(task) for task in TASKS], load_defaults()
    with open_executor(settings.sandbox) as executor:
        dtype = getattr(torch, choose(settings.training.precision).precision)  # as in the runs
        return measure(model, tokenizer, card, tasks, executor, samples, seed, dtype)


def make(name: str, section: WarmStart) -> None:
    """Makes starts/{name} and the model, and writes the report."""
    recipe, place = models.recipe(name), starts.folder(name)
    report = train_start(name, recipe, place)
    made = starts.make(name, lambda: None)
    starts.complete(name, made)
    report["measured"] = measured(name, section.report_samples, section.seed)
    write_json(place / "warm_start.json", report)
    shares = report["measured"]["all"]
    print(
        f"{place}: {shares['runs_first_try']:.0%} of first tries run, "
        f"{shares['runs_after_one_reflection']:.0%} after one reflection"
    )


def repeat(name: str) -> None:
    """Repeats the training and says how far the result is from the start that comes with the project.

    Raises:
        UserError: there is no such start.
    """
    kept, again = starts.folder(name), paths.ROOT / "build" / "starts" / name
    if starts.read_start(name) is None:
        raise UserError(f"{kept}: nothing to compare with; leave --again out to make it")
    train_start(name, models.recipe(name), again)
    apart = starts.difference(kept, again)
    if apart == 0:
        print(f"{again}: the same weights as {kept}")
    else:
        print(f"{again}: not the same weights as {kept}; the difference has {apart:.2%} of their norm")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    parser = entry.parser(__doc__)
    parser.add_argument("--model", required=True, help="a model of the section warm_start, e.g. smollm2 or tiny")
    parser.add_argument("--again", action="store_true", help="repeat the training and compare, see above")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        name, sections = arguments.model, load_defaults().warm_start  # the same at every scale
        if name in type(sections).model_fields and getattr(sections, name) is None:
            starts.write_plain(name)
            print(f"{starts.folder(name)}: {name} starts as it comes, without a warm start")
            return
        recipe = models.recipe(name)
        if arguments.again:
            repeat(name)
            return
        start = starts.read_start(name)
        if start is not None and recipe.items() <= start["warm_start"].items():
            print(f"{starts.folder(name)}: made with these settings, kept")
            return
        make(name, getattr(sections, name))


if __name__ == "__main__":
    main()
