"""The cost of executing programs: warm workers beside a new interpreter for each program, and two workers beside one.

Both score the same programs on the same splits of a table of 576 rows and 8 features. One split is one execution; five
splits give a reward of the paper (a new interpreter then imports once and fits five times). "cpu_ms" is the CPU time of
all processes involved, the figure that other load on the machine disturbs least. "wall_ms" is the time that a single
caller waits. Prints two tables; `--csv FILE` also saves the first.

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
from typing import Any

from sklearn.datasets import make_classification

from etpo_core.errors import one_line_errors
from etpo_core.sandbox import SandboxPool

ROWS, FEATURES = 576, 8
HEAD = "def build_model(x_train, y_train):\n"
LOGISTIC = "scaler + logistic regression"
PROGRAMS = {
    "does nothing": "import numpy as np\nclass Model:\n    classes_ = np.array([0, 1])\n"
    "    def predict_proba(self, x):\n        return np.tile([0.5, 0.5], (len(x), 1))\n"
    + HEAD
    + "    return Model()\n",
    LOGISTIC: "from sklearn.pipeline import make_pipeline\n"
    "from sklearn.preprocessing import StandardScaler\n"
    "from sklearn.linear_model import LogisticRegression\n" + HEAD + "    "
    "return make_pipeline(StandardScaler(), LogisticRegression()).fit(x_train, y_train)\n",
    "random forest": "from sklearn.ensemble import RandomForestClassifier\n"
    + HEAD
    + "    return RandomForestClassifier(random_state=0).fit(x_train, y_train)\n",
}
COLD = """
import sys
import numpy as np
from sklearn.datasets import make_classification
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
x, y = make_classification({rows}, {features}, random_state=0)
{program}
scores = []
for seed in range({splits}):
    a, b, c, d = train_test_split(x, y, test_size=0.5, random_state=seed)
    scores.append(roc_auc_score(d, build_model(a, c).predict_proba(b)[:, 1]))
print(sum(scores) / len(scores))
"""


def cpu_s(who: int) -> float:
    """CPU seconds of this process (RUSAGE_SELF) or of its children that have ended (RUSAGE_CHILDREN)."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def processes_cpu_s(pool: SandboxPool) -> float:
    """CPU seconds so far of this process, of the pool's zygotes, and of all their children that have ended."""
    total = cpu_s(resource.RUSAGE_SELF)
    for worker in pool._workers:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15]) / 100  # utime, stime, cutime and cstime in ticks of 10 ms
    return total


def warm(pool: SandboxPool, program: str, splits: int, repeats: int) -> tuple[list[float], float]:
    """Wall times of each score of a program by a warm worker, and the mean CPU time, in seconds."""
    x, y = make_classification(ROWS, FEATURES, random_state=0)
    pool.score(program, x, y, range(splits))
    before, walls = processes_cpu_s(pool), []
    for number in range(repeats):
        started = time.perf_counter()
        pool.score(
            f"{program}# {number}", x, y, range(splits)
        )  # a new text each time, whose score the pool does not know
        walls.append(time.perf_counter() - started)
    return walls, (processes_cpu_s(pool) - before) / repeats


def cold(program: str, splits: int, repeats: int) -> tuple[list[float], float]:
    """Wall times of each score of a program by a new interpreter, and the mean CPU time, in seconds."""
    script = COLD.format(rows=ROWS, features=FEATURES, splits=splits, program=program)
    before, walls = cpu_s(resource.RUSAGE_CHILDREN), []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        walls.append(time.perf_counter() - started)
    return walls, (cpu_s(resource.RUSAGE_CHILDREN) - before) / repeats


def programs_per_second(workers: int, count: int) -> float:
    """How many programs a pool executes in a second; each is scaler + logistic regression on one split."""
    x, y = make_classification(ROWS, FEATURES, random_state=0)
    with SandboxPool(workers) as pool:
        pool.score_many([f"{PROGRAMS[LOGISTIC]}# {n}" for n in range(-workers, 0)], x, y, [0])
        started = time.perf_counter()
        pool.score_many([f"{PROGRAMS[LOGISTIC]}# {n}" for n in range(count)], x, y, [0])
        return count / (time.perf_counter() - started)


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a table, given as rows with equal keys."""
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for line in ({key: key for key in rows[0]}, *rows):
        print("  ".join(str(line[key]).ljust(width) for key, width in widths.items()).rstrip())
    print()


def save(rows: list[dict[str, Any]], file: Path) -> None:
    """Writes a table, given as rows with equal keys, as CSV."""
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Measures, prints the tables and saves the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20, help="scores of each program by a warm worker")
    parser.add_argument("--cold-repeats", type=int, default=3, help="scores of each program by a new interpreter")
    parser.add_argument("--csv", type=Path, help="file to save the costs to")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with one_line_errors():
        started = time.perf_counter()
        with SandboxPool(1) as pool:
            print(f"tier {pool.tier}; a worker is ready after {time.perf_counter() - started:.2f} s\n")
            for name, program in PROGRAMS.items():
                for splits in (1, 5):
                    colds, cold_cpu = cold(program, splits, arguments.cold_repeats)
                    walls, cpu = warm(pool, program, splits, arguments.repeats)
                    rows.append(
                        {
                            "program": name,
                            "splits": splits,
                            "tier": str(pool.tier),
                            "warm_wall_ms_median": round(statistics.median(walls) * 1000, 1),
                            "warm_cpu_ms": round(cpu * 1000, 1),
                            "cold_wall_ms_median": round(statistics.median(colds) * 1000, 1),
                            "cold_cpu_ms": round(cold_cpu * 1000, 1),
                            "cpu_ratio": round(cold_cpu / cpu, 1),
                        }
                    )
        show(rows)
        count = 10 * arguments.repeats
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(3):
            for workers in rates:
                rates[workers].append(programs_per_second(workers, count))
        rate = {workers: statistics.median(found) for workers, found in rates.items()}
        show([{"workers": n, "programs_per_s": round(r, 1), "ratio": round(r / rate[1], 2)} for n, r in rate.items()])
        if arguments.csv:
            save(rows, arguments.csv)


if __name__ == "__main__":
    main()
