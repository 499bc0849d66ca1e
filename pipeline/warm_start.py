"""Stage `warm_start`: teaches a base model what a body of `build_model` looks like.

    python -m pipeline.warm_start --model smollm2

reads models/smollm2-base and writes models/smollm2, the experiments' "original language model", with a report in
warm_start.json beside the weights. After an interruption the same command goes on from the last checkpoint.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from etpo_core.errors import UserError
from etpo_paper.base.machine import choose
from etpo_paper.base.paths import MODELS, TABLES
from etpo_paper.base.provenance import write_json
from etpo_paper.base.sections import unknown_name
from etpo_paper.base.settings import Sandbox, WarmStart, WarmStarts, load_defaults
from etpo_paper.data.tasks import TASKS, Task, load_task
from etpo_paper.model.loading import check_files, load_model, save_model, write_card
from etpo_paper.warm_start.corpus import Corpus, good_bodies
from etpo_paper.warm_start.report import measure
from etpo_paper.warm_start.sft import WarmStartSettings, answer_ids, train
from pipeline import entry
from pipeline.executor import open_executor


def warm_start(name: str, wanted: WarmStart, sandbox: Sandbox) -> dict[str, Any]:
    """Trains models/{name}-base into models/{name} and measures it.

    Args:
        name: the model.
        wanted: its section of the settings.
        sandbox: how the programs are executed that the model is measured by.

    Returns:
        The report.

    Raises:
        UserError: there are no tables to measure the model on, or the base model is missing or damaged.
    """
    settings = WarmStartSettings(**{k: v for k, v in wanted.plain().items() if k != "report_samples"})
    tasks = [load_task(task) for task in TASKS if (TABLES / f"{task}.csv").is_file()]
    if not tasks:
        raise UserError(f"no task tables in {TABLES} to measure the model on: run `python -m pipeline.data` first")
    base = check_files(f"{name}-base", whole=True)
    model, tokenizer, _ = load_model(f"{name}-base")

    bodies = good_bodies(settings.seed, lambda body: len(answer_ids(body, tokenizer, base)) <= settings.max_tokens)
    corpus = Corpus(bodies, settings.seed)
    checkpoint = MODELS / ".checkpoints" / f"{name}.pt"
    model, record = train(model, tokenizer, base, corpus, settings, checkpoint)
    card = base | {"name": name, "warm_start": asdict(settings) | {"bodies": len(bodies), "base": base["sha256"]}}
    save_model(model, tokenizer, MODELS / name, card, getattr(torch, base["dtype"]))

    model, tokenizer, card = load_model(name)  # what is measured is what later stages load
    report = {
        "settings": asdict(settings),
        "corpus": {
            "bodies": len(bodies),
            "failures_with_repair": len(corpus.failures),
            "median_tokens": statistics.median(len(answer_ids(b.text, tokenizer, card)) for b in bodies),
            "classifiers": dict(Counter(body.classifier for body in bodies).most_common()),
        },
        "training": record,
        "measured": _measure(model, tokenizer, card, tasks, sandbox, wanted.report_samples, settings.seed),
    }
    write_json(MODELS / name / "warm_start.json", report)
    checkpoint.unlink(missing_ok=True)
    return report


def _measure(
    model: Any, tokenizer: Any, card: dict[str, Any], tasks: list[Task], sandbox: Sandbox, samples: int, seed: int
) -> dict[str, Any]:
    with open_executor(sandbox) as executor:
        dtype = getattr(torch, choose(card["dtype"]).precision)
        return measure(model, tokenizer, card, tasks, executor, samples, seed, dtype)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    parser = entry.parser(__doc__)
    parser.add_argument("--model", required=True, help="a model of the section warm_start, e.g. smollm2 or tiny")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        settings = load_defaults()  # the same at every scale
        if arguments.model not in WarmStarts.model_fields:
            raise unknown_name("model", arguments.model, WarmStarts.model_fields)
        wanted = getattr(settings.warm_start, arguments.model)
        if wanted is None:
            card = check_files(f"{arguments.model}-base")
            write_card(MODELS / arguments.model, card | {"name": arguments.model})
            print(f"{MODELS / arguments.model}: starts as it comes, without a warm start")
            return
        report = warm_start(arguments.model, wanted, settings.sandbox)
        shares = report["measured"]["all"]
        print(
            f"{MODELS / arguments.model}: {shares['runs_first_try']:.0%} of first tries run, "
            f"{shares['runs_after_one_reflection']:.0%} after one reflection"
        )


if __name__ == "__main__":
    main()
