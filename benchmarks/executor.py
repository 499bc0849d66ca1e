"""What one execution costs: a warm pool against a cold interpreter for each program.

Both score the same programs - standardised logistic regression, naive Bayes, one that fails - on the same five splits
of a 576 x 8 table. "cpu_ms" is the CPU time of all processes involved, the figure that other load on the machine
disturbs least; "wall_ms" is what a single caller waits. Prints a table; `--csv FILE` also saves it.

    python -m benchmarks.executor --repeats 20 --csv executor.csv
"""

import argparse
import csv
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from sklearn.datasets import make_classification

from etpo_core.errors import one_line_errors
from etpo_core.sandbox import SandboxPool

ROWS, FEATURES, SPLITS = 576, 8, range(5)
HEAD = "def build_model(x_train, y_train):\n"
PROGRAMS = {
    "scaler + logistic regression": "from sklearn.pipeline import make_pipeline\n"
    "from sklearn.preprocessing import StandardScaler\n"
    "from sklearn.linear_model import LogisticRegression\n" + HEAD + "    "
    "return make_pipeline(StandardScaler(), LogisticRegression()).fit(x_train, y_train)\n",
    "naive Bayes": "from sklearn.naive_bayes import GaussianNB\n"
    + HEAD
    + "    return GaussianNB().fit(x_train, y_train)\n",
    "fails": HEAD + "    return X\n",
}
COLD = """
import sys
from sklearn.datasets import make_classification
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
x, y = make_classification({rows}, {features}, random_state=0)
{program}
scores = []
for seed in {splits}:
    a, b, c, d = train_test_split(x, y, test_size=0.5, random_state=seed)
    scores.append(roc_auc_score(d, build_model(a, c).predict_proba(b)[:, 1]))
print(sum(scores) / len(scores))
"""


def cpu_s(who: int) -> float:
    """CPU seconds of this process (RUSAGE_SELF) or of its ended children (RUSAGE_CHILDREN)."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def processes_cpu_s(pool: SandboxPool) -> float:
    """CPU seconds so far of this process, of the pool's zygotes and of all their ended children."""
    total = cpu_s(resource.RUSAGE_SELF)
    for worker in pool._workers:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15]) / 100  # utime, stime, cutime, cstime in ticks
    return total


def warm(pool: SandboxPool, program: str, repeats: int) -> tuple[list[float], float, float | None]:
    """Wall times [s], CPU time an execution [s] and the score of a program on a warm pool."""
    x, y = make_classification(ROWS, FEATURES, random_state=0)
    pool.score(program, x, y, SPLITS)
    before, walls = processes_cpu_s(pool), []
    for number in range(repeats):
        started = time.perf_counter()
        outcome = pool.score(
            f"{program}# {number}", x, y, SPLITS
        )  # a new text each time, so nothing is cached
        walls.append(time.perf_counter() - started)
    return walls, (processes_cpu_s(pool) - before) / repeats, outcome.score


def cold(program: str, repeats: int) -> tuple[list[float], float]:
    """Wall times [s] and CPU time an execution [s] of a program in an interpreter of its own."""
    script = COLD.format(rows=ROWS, features=FEATURES, splits=SPLITS, program=program)
    before, walls = cpu_s(resource.RUSAGE_CHILDREN), []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
        walls.append(time.perf_counter() - started)
    return walls, (cpu_s(resource.RUSAGE_CHILDREN) - before) / repeats


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20, help="warm executions of each program")
    parser.add_argument("--cold-repeats", type=int, default=3, help="cold executions of each program")
    parser.add_argument("--csv", type=Path, help="file to save the table to")
    arguments = parser.parse_args()
    rows = []

    def row(name: str, how: str, walls: list[float], cpu: float, score: float | None) -> None:
        rows.append(
            {
                "program": name,
                "how": how,
                "executions": len(walls),
                "wall_ms_min": round(min(walls) * 1000, 1),
                "wall_ms_median": round(statistics.median(walls) * 1000, 1),
                "cpu_ms": round(cpu * 1000, 1),
                "score": "" if score is None else score,
            }
        )

    with one_line_errors():
        started = time.perf_counter()
        with SandboxPool(1) as pool:
            print(f"tier {pool.tier}; a worker is ready after {time.perf_counter() - started:.2f} s\n")
            for name, program in PROGRAMS.items():
                row(name, "warm pool", *warm(pool, program, arguments.repeats))
        for name, program in PROGRAMS.items():
            row(name, "cold python -c", *cold(program, arguments.cold_repeats), None)
        widths = {key: max(len(key), *(len(str(r[key])) for r in rows)) for key in rows[0]}
        for line in ({key: key for key in rows[0]}, *rows):
            print("  ".join(str(line[key]).ljust(width) for key, width in widths.items()).rstrip())
        if arguments.csv:
            with arguments.csv.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    main()
