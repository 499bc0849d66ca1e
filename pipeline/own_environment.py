"""Stage `own_environment`: trains a toy model in an environment that is not the paper's, with two methods.

    python -m pipeline.own_environment --scale laptop

The environment is `etpo_paper.environment.sql.Sql` with one question about a table of invented towns. The model is the
architecture of `tiny`. It is first taught by likelihood what a query looks like, with random queries that know nothing
of the question. Then `etpo_paper.use.learn` trains it five times with each method, for four times as many steps as runs
of the scale have, because a query takes milliseconds. The settings are those of params.yaml; nothing was tuned on these
runs. They lie in build/own_environment/, and a stage that was stopped goes on where it was. Writes
evaluations/{scale}/own_environment.csv, a row for each batch.
"""

import csv
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from etpo_paper.base import paths
from etpo_paper.base.provenance import write_rows
from etpo_paper.base.settings import load_defaults
from etpo_paper.environment.sql import Sql
from etpo_paper.model.loading import build_tiny, save_model
from etpo_paper.report.results import OWN_ENVIRONMENT_COLUMNS
from etpo_paper.use.learn import learn
from etpo_paper.warm_start.sft import loss_sum, pack
from pipeline import entry
from pipeline.resolve import resolve

TABLES = """
CREATE TABLE towns (name TEXT, country TEXT, people INTEGER, height INTEGER);
INSERT INTO towns VALUES ('Aldau', 'DE', 126, 478), ('Born', 'DE', 330, 60), ('Kell', 'DE', 247, 5),
  ('Jork', 'DE', 110, 143), ('Lion', 'FR', 522, 173), ('Nise', 'FR', 342, 10), ('Brez', 'FR', 139, 50),
  ('Nansi', 'FR', 104, 212), ('Grat', 'AT', 291, 353), ('Lins', 'AT', 207, 266), ('Wels', 'AT', 62, 317),
  ('Steir', 'AT', 38, 310);
"""  # invented; people in thousands, height in metres
QUESTION = "Which towns outside FR have more than 200 thousand people?"
ANSWER = "SELECT name FROM towns WHERE country != 'FR' AND people > 200"
NAME = "towns-1"  # of the environment; another one begins all runs anew

METHODS = ("etpo", "ppo_kl")
SEEDS = range(5)
LONGER = 4  # than runs of the scale
MAX_NEW_TOKENS = 40  # nearly twice the longest random query
START_STEPS, BATCH, RATE = 100, 16, 3e-3  # of teaching what a query looks like: steps, queries in each, highest rate


def towns() -> Sql:
    """The environment."""
    return Sql(TABLES, QUESTION, ANSWER)


def random_query(drawn: random.Random) -> str:
    """A query about the towns, without its first word, as the model is to write it."""

    def condition() -> str:
        column = drawn.choice(["country", "people", "height"])
        if column == "country":
            return f"country {drawn.choice(['=', '!='])} '{drawn.choice(['DE', 'FR', 'AT'])}'"
        return f"{column} {drawn.choice(['<', '>'])} {drawn.choice([50, 100, 200, 300, 400])}"

    query = f" {drawn.choice(['name', 'country', 'people', 'name, people', 'count(*)'])} FROM towns"
    if conditions := [condition() for _ in range(drawn.choice([0, 1, 1, 2, 2]))]:
        query += " WHERE " + f" {drawn.choice(['AND', 'OR'])} ".join(conditions)
    return query + (f" ORDER BY {drawn.choice(['name', 'people', 'height'])}" if drawn.random() < 0.2 else "")


def make_start(folder: Path, steps: int = START_STEPS) -> None:
    """Makes the model that all runs begin from; the same bytes every time on the same machine.

    Args:
        folder: where it goes, beside a folder for the model before it was taught.
        steps: of teaching, by AdamW with a rate that rises briefly and then falls.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # saving takes a moment
    seed, prompt = load_defaults().base_model.tiny.seed, towns().reset()[0]
    drawn, base = random.Random(seed), folder.with_name("base")
    card = build_tiny(base, [prompt, *(random_query(drawn) for _ in range(1000))], seed)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    for step in range(steps):
        packed = pack(ids(prompt), [[*ids(random_query(drawn)), tokenizer.eos_token_id] for _ in range(BATCH)])
        loss = loss_sum(model, [packed]) / len(packed.targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.param_groups[0]["lr"] = RATE * min((step + 1) / 10, 1 - 0.9 * step / steps)
        optimiser.step()
        optimiser.zero_grad()
    save_model(model, tokenizer, folder, card, torch.float32)
    print(f"{folder}: taught {steps} batches of queries, loss {loss.item():.2f} nats a token")


def rows(scale: str, place: Path) -> Iterator[tuple[Any, ...]]:
    """Makes the runs, or those that are not there; a row for each batch."""
    steps = LONGER * resolve(scale).training.env_steps
    make_start(place / "start")
    for method in METHODS:
        for seed in SEEDS:
            folder = place / scale / method / f"seed{seed}"
            sizes = {"steps": steps, "seed": seed, "max_new_tokens": MAX_NEW_TOKENS}
            run = learn(towns, folder, name=NAME, method=method, model=str(place / "start"), **sizes)
            with (run.folder / "updates.csv").open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    yield (method, seed, *(row[column] for column in OWN_ENVIRONMENT_COLUMNS[2:]))


def run(scale: str) -> None:
    """Writes the file."""
    torch.set_num_threads(1)  # the model is small
    path = paths.EVALUATIONS / scale / "own_environment.csv"
    write_rows(path, OWN_ENVIRONMENT_COLUMNS, rows(scale, paths.ROOT / "build" / "own_environment"))
    print(f"runs in an environment of one's own: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    entry.run_scale(run, __doc__, argv)


if __name__ == "__main__":
    main()
