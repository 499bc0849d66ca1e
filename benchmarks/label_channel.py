"""How much of the labels can a program pass on to the next one, through the error text that the next prompt shows?

Each run has a table of 300 rows with random labels. A program that knows the training labels of a split tries to tell
as many of them as it can by how it fails: by its message, by the type of its error, or by failing or using up its time.
"shown" is the share of runs whose error was shown. An error that words k labels is shown only if the labels that the
second run deals come out the same, which nobody can arrange, and whether it is shown depends on no label: "bits" is
shown times k. For the last way, "bits" is the mutual information of the label and the kind of failure. "bits before" is
what the same text carries where it is shown in any case. Prints a table; `--csv FILE` also saves it.

    python -m benchmarks.label_channel --runs 400 --csv label_channel.csv
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from sklearn.metrics import mutual_info_score
from tqdm import tqdm

from etpo_core.errors import one_line_errors
from etpo_core.sandbox import Limits, SandboxPool, Status
from etpo_core.sandbox.scoring import make_split

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
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    with (
        SandboxPool(1, Limits(cpu_s=0.2, wall_s=5.0)) as pool,
        tqdm(total=len(TRIED) * arguments.runs, unit="run") as bar,
    ):
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
