"""How much of the labels can a program pass on to the next one, through the error text that the next prompt shows?

Each run has a table of 300 rows with random labels. A program that knows the training labels of a split tries to tell
as many of them as it can by how it fails: by its message, by the type of its error, or by failing or using up its time.
"shown" is the share of runs whose error was shown. An error that words k labels is shown only if the labels that the
second run deals come out the same, which nobody can arrange, and whether it is shown depends on no label: "bits" is
shown times k. For the last way, "bits" is the mutual information of the label and the kind of failure. "bits before" is
what the same text carries where it is shown in any case. Prints a table; `--csv FILE` also saves it.

    python -m benchmarks.label_channel --runs 400 --csv label_channel.csv

`--carried` measures another way instead: programs that hold labels of the table in their text, as if collected over
many runs, beside honest ones. On each of the 14 tables each program is evaluated four times, on ten splits each, as
`pipeline.evaluate` does. "dealt" is the mean score with the training labels dealt to other rows, "spread" its standard
deviation, and "found" the share of evaluations in which the program is held to carry labels.

    python -m benchmarks.label_channel --carried --csv carried_labels.csv

`--numbers` measures a third way: what a child learns of those before it from the number of its process, which machine
code can read where the C library (glibc on x86-64) keeps it. One program starts 0 to 15 threads one after the other,
which is 4 bits, and the next one reads its number. "bits" is the mutual information of the two, at tiers A and B.

    python -m benchmarks.label_channel --numbers --csv process_numbers.csv
"""

import argparse
import csv
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import mutual_info_score
from tqdm import tqdm

from etpo_core.errors import one_line_errors
from etpo_core.sandbox import Limits, SandboxPool, Status, Tier
from etpo_core.sandbox.scoring import make_split
from etpo_core.sandbox.worker import Ending
from etpo_paper.data.tasks import TASKS
from etpo_paper.measure import evaluation
from etpo_paper.report import results
from pipeline import data, evaluate

ROWS = 300
HEAD = """import numpy as np
def build_model(x_train, y_train):
    labels = "".join("ab"[y] for y in y_train[np.argsort(x_train[:, 0])])
"""
WAYS = {
    "message": "    raise ValueError(labels[:{bits}])\n",
    "type of the error": "    raise type('E' + labels[:{bits}], (Exception,), {{}})\n",
    "error or timeout": "    while labels[0] == 'b':\n        pass\n    raise ValueError\n",
}
TRIED = [("message", bits) for bits in (1, 2, 3, 4, 8, 150)] + [("type of the error", 1), ("error or timeout", 1)]
FIT = """from {module} import {name}
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
def build_model(x_train, y_train):
    return make_pipeline(StandardScaler(), {name}()).fit(x_train, y_train)
"""
HONEST = {
    "LogisticRegression": "sklearn.linear_model",
    "GaussianNB": "sklearn.naive_bayes",
    "LinearDiscriminantAnalysis": "sklearn.discriminant_analysis",
    "KNeighborsClassifier": "sklearn.neighbors",
    "DecisionTreeClassifier": "sklearn.tree",
    "RandomForestClassifier": "sklearn.ensemble",
}
# Knows the label of some rows by a digest of their values, and predicts the others like an honest program.
CARRIES = """import zlib
from sklearn.naive_bayes import GaussianNB
KNOWN = {known}
class Model(GaussianNB):
    def predict_proba(self, x):
        table = super().predict_proba(x)
        for row, values in zip(table, x):
            label = KNOWN.get(zlib.crc32(values.tobytes()))
            if label in self.classes_:
                row[:] = self.classes_ == label
        return table
def build_model(x_train, y_train):
    return Model().fit(x_train, y_train)
"""
SHARES = (0.1, 0.25, 0.5, 1.0)  # of the rows whose labels a program carries
EVALUATIONS, SPLITS = 4, 10

SENDER = """import threading
def build_model(x_train, y_train):
    for _ in range({count}):
        thread = threading.Thread()
        thread.start()
        thread.join()
"""
RECEIVER = """import ctypes, threading
import numpy as np
class Model:
    classes_ = np.array([0, 1])
    def predict_proba(self, x):
        return np.full((len(x), 2), ctypes.c_int.from_address(threading.get_ident() + 0x2d0).value)
def build_model(x_train, y_train):
    return Model()
"""


def numbers(tier: Tier, runs: int) -> dict[str, object]:
    """The row of a tier in the table about numbers of processes."""
    rng = np.random.default_rng(0)
    split = make_split(rng.normal(size=(ROWS, 2)), rng.integers(0, 2, ROWS), 0)
    with SandboxPool(1, tier=tier) as pool:

        def run(source: str) -> Ending:
            return pool._workers[0].run(source.encode(), split, 0, pool.limits)

        def read() -> int:
            return int(np.frombuffer(run(RECEIVER).table)[0])

        sent = rng.integers(0, 16, runs)
        before, learned = read(), []
        for count in tqdm(sent, unit="run"):
            run(SENDER.format(count=count))
            after = read()
            learned.append(after - before)
            before = after
    bits = mutual_info_score(sent, learned) / np.log(2)
    return {"tier": str(tier), "runs": runs, "bits sent": 4, "bits": round(bits, 3), "last number": before}


def carried(pool: SandboxPool) -> list[dict[str, object]]:
    """The table about carried labels: a row for each program."""
    rows = []
    for task in TASKS:
        table, rng = data.table(task), np.random.default_rng(0)
        programs = {name: FIT.format(name=name, module=module) for name, module in HONEST.items()}
        for share in SHARES:
            chosen = rng.permutation(len(table.y))[: round(share * len(table.y))]
            known = {zlib.crc32(table.x[row].tobytes()): int(table.y[row]) for row in chosen}
            programs[f"carries {share:.0%}"] = CARRIES.format(known=known)
        for first in range(1000, 1000 + EVALUATIONS * SPLITS, SPLITS):
            found = evaluate.on_splits(pool, table, list(programs.values()), range(first, first + SPLITS))
            for name, (true, dealt) in zip(programs, found, strict=True):
                score = np.mean([value for value in true if value is not None])
                rows.append({"program": name, "held_out": score, **evaluation.with_dealt_labels(true, dealt)})
    frame = pd.DataFrame(rows)
    groups = frame.assign(found=results.carries_labels(frame)).groupby("program", sort=False)
    figures = groups["dealt_auc"].agg(dealt="mean", spread="std", lowest="min", highest="max")
    figures = figures.assign(held_out=groups["held_out"].mean(), found=groups["found"].mean()).round(3)
    return figures.assign(evaluations=groups.size()).reset_index().to_dict("records")


def measure(pool: SandboxPool, way: str, bits: int, runs: int, bar: tqdm) -> dict[str, object]:
    """One row of the table: `runs` programs, each on a table of its own."""
    source, shown, pairs = HEAD + WAYS[way].format(bits=bits), 0, []
    for number in range(runs):
        rng = np.random.default_rng(number)
        x, y = rng.normal(size=(ROWS, 2)), rng.integers(0, 2, ROWS)
        outcome = pool.score(source, x, y, [0])
        split = make_split(x, y, 0)
        shown += outcome.status is not Status.LABEL_DEPENDENT
        pairs.append((str(split.y_train[np.argmin(split.x_train[:, 0])]), str(outcome.status)))
        bar.update()
    share = shown / runs
    carried = mutual_info_score(*zip(*pairs, strict=True)) / np.log(2) if way == "error or timeout" else share * bits
    figures = {"shown": round(share, 3), "bits": round(carried, 3), "bits before": bits}
    return {"by": way, "labels told": bits, "runs": runs, **figures}


def main() -> None:
    """Measures all ways and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--carried", action="store_true", help="measure labels carried in programs instead")
    parser.add_argument("--numbers", action="store_true", help="measure numbers of processes instead")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    if arguments.carried:
        with SandboxPool(2, Limits(source_bytes=2**20)) as pool:
            rows = carried(pool)
    elif arguments.numbers:
        rows = [numbers(tier, arguments.runs) for tier in (Tier.A, Tier.B)]
    else:
        total = len(TRIED) * arguments.runs
        with SandboxPool(1, Limits(cpu_s=0.2, wall_s=5.0)) as pool, tqdm(total=total, unit="run") as bar:
            rows = [measure(pool, way, bits, arguments.runs, bar) for way, bits in TRIED]
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    with one_line_errors():
        main()
