"""Stage `warm_start`: teaches a base model what a body of `build_model` looks like.

    python -m pipeline.warm_start --model smollm2

reads models/smollm2-base and writes models/smollm2, the experiments' "original language model", with a report in
warm_start.json beside the weights. Interrupted, it goes on where it was when started again with the same settings.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import torch

from etpo_core.errors import UserError, one_line_errors, unknown
from etpo_paper.base.machine import choose
from etpo_paper.base.paths import MODELS, TABLES
from etpo_paper.base.provenance import write_json
from etpo_paper.base.settings import read_params
from etpo_paper.data.tasks import TASKS, load_task
from etpo_paper.model.loading import check_files, load_model, save_model, write_card
from etpo_paper.warm_start.corpus import Corpus, good_bodies
from etpo_paper.warm_start.report import measure
from etpo_paper.warm_start.sft import WarmStartSettings, answer_ids, train
from pipeline.executor import open_executor


def warm_start(name: str) -> dict:
    """Trains models/{name}-base into models/{name} and measures it.

    Args:
        name: a model with an entry in the section `warm_start` of params.yaml.

    Returns:
        The report.
    """
    params = read_params()
    if name not in params["warm_start"]:
        raise unknown("model to warm-start", name, params["warm_start"])
    values = dict(params["warm_start"][name])
    report_samples = values.pop("report_samples")
    settings = WarmStartSettings(**values)
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
        "measured": _measure(model, tokenizer, card, tasks, params["sandbox"], report_samples, settings.seed),
    }
    write_json(MODELS / name / "warm_start.json", report)
    checkpoint.unlink(missing_ok=True)
    return report


def _measure(model, tokenizer, card: dict, tasks: list, sandbox: dict, samples: int, seed: int) -> dict:
    with open_executor(sandbox) as executor:
        dtype = getattr(torch, choose(card["dtype"]).precision)
        return measure(model, tokenizer, card, tasks, executor, samples, seed, dtype)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a model of the section warm_start, e.g. smollm2 or tiny")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        settings = read_params()["warm_start"]
        if arguments.model in settings and settings[arguments.model] is None:
            card = check_files(f"{arguments.model}-base")
            write_card(MODELS / arguments.model, card | {"name": arguments.model})
            print(f"{MODELS / arguments.model}: starts as it comes, without a warm start")
            return
        report = warm_start(arguments.model)
        shares = report["measured"]["all"]
        print(
            f"{MODELS / arguments.model}: {shares['runs_first_try']:.0%} of first tries run, "
            f"{shares['runs_after_one_reflection']:.0%} after one reflection"
        )


if __name__ == "__main__":
    main()
