"""How the time of a rollout grows with the number of sequences and with the length of the actions.

Our decoder (`etpo_paper.model.decoder`) runs a model with the shape of SmolLM2-135M and random weights in bfloat16. All
sequences have the same prompt of 80 tokens and run to the length limit; this is the workload "equal" of
`benchmarks.rollout`, which says what the limit is. "cpu_s" is the least CPU time of a few rollouts, where the sizes
take turns. "exponent" is the slope of log time over log size. Run it with one thread, so that the CPU time and the
limit are comparable:

    OMP_NUM_THREADS=1 python -m benchmarks.growth --csv rollout_growth.csv
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pipeline  # noqa: F401  sets how threads wait, which torch reads when it is loaded

# isort: split
import torch

from benchmarks.executor import save, show
from benchmarks.head import exponent
from benchmarks.rollout import SMALL, SMOLLM2, Limits, build, ours, workload
from etpo_core.errors import one_line_errors
from etpo_paper.model.decoder import LlamaDecoder


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measures, prints the table and saves it; returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="turns of each size, after one to warm up")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--csv", type=Path, help="file to save the table to")
    chosen = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(SMALL if chosen.small else SMOLLM2, device)
    decoder, limits = LlamaDecoder(model, torch.bfloat16), Limits(model, 3, 10 if chosen.small else 500)
    few, long = (2, 4) if chosen.small else (16, 96)
    sizes = {
        "sequences": [(few * factor // 4, long) for factor in (2, 4, 8, 16)],
        "length": [(few, long * factor // 4) for factor in (1, 2, 4, 8)],
    }
    pairs = dict.fromkeys(pair for several in sizes.values() for pair in several)
    times: dict[tuple[int, int], list[tuple[float, float]]] = {pair: [] for pair in pairs}
    loads = {pair: workload("equal", *pair) for pair in pairs}
    ours(decoder, *workload("equal", few, 8), 8)  # warms up: what the first call allocates is not counted
    for _ in range(chosen.rounds):
        for (count, length), (prompts, lengths) in loads.items():
            wall, cpu = time.perf_counter(), time.process_time()
            ours(decoder, prompts, lengths, length)
            times[count, length].append((time.perf_counter() - wall, time.process_time() - cpu))
    rows: list[dict[str, Any]] = []
    for over, several in sizes.items():
        cpus = [min(cpu for _, cpu in times[pair]) for pair in several]
        slope = exponent([count * length for count, length in several], cpus)
        for (count, length), cpu in zip(several, cpus, strict=True):
            limit = limits.seconds(*loads[count, length])
            rows.append(
                {
                    "over": over,
                    "sequences": count,
                    "length": length,
                    "threads": torch.get_num_threads(),
                    "wall_s": f"{min(wall for wall, _ in times[count, length]):.3f}",
                    "cpu_s": f"{cpu:.3f}",
                    "limit_s": f"{limit:.3f}",
                    "cpu_ms_token": f"{cpu / count / length * 1000:.2f}",
                    "exponent": f"{slope:.2f}",
                }
            )
    show(rows)
    if chosen.csv:
        save(rows, chosen.csv)
    return rows


if __name__ == "__main__":
    with one_line_errors():
        main()
