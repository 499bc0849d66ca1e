"""What the streamed head costs, beside its matrix products alone and beside whole logits.

There are three workloads. "statistics" is KL[π‖ρ], and log π of the tokens with its gradient. "dueling" is everything
that ETPO's two losses need, with the gradients. "own dueling" is the same for a policy that has the critic's weights.
Each workload runs in four variants:

    products    its products with the head alone, at the block sizes of the head, into memory that is reused: the
                policy's logits in float32, the others in the dtype of the head
    narrow      the same products, all of them in the dtype of the head
    eager       `etpo_paper.model.head`; no part of it is compiled
    naive       whole float32 logits of every network, the pure functions of `etpo_core`, and autograd

The variants are run in turn, so that other work on the machine slows all of them alike. "of_products" and "of_naive"
are medians of the ratios within a turn. "cpu_of_products" and "cpu_of_narrow" compare the smallest CPU times; with
OMP_NUM_THREADS=1 they depend least on other work. "extra_mib" is measured in a fresh process for each variant: the peak
of resident memory (VmHWM, reset before the call) less what was resident before the call, or the peak of allocated
memory on a GPU. A second table has the times for several N and V, with the slope of log time over log size, and the
peak of memory for several N. The benchmark runs on a GPU if there is one.

    python -m benchmarks.head --csv head.csv
"""

import argparse
import csv
import functools
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from etpo_core import bellman, losses
from etpo_core.errors import one_line_errors
from etpo_paper.base.machine import use_fast_matmul
from etpo_paper.model import head

WIDTH, BETA = 576, 0.1  # hidden size of SmolLM2-135M
# How many products with the head each takes: for logits, and for gradients.
WORKLOADS = {"statistics": (2, 1), "dueling": (3, 3), "own dueling": (2, 2)}
VARIANTS = ("products", "narrow", "eager", "naive")


class Case:
    """Hidden states, head and tokens of one size, and what is measured on them.

    Args:
        positions: N.
        vocabulary: V.
        dtype: of the hidden states and the head.
        device: where the tensors live.
    """

    def __init__(self, positions: int, vocabulary: int, dtype: torch.dtype, device: str):
        torch.manual_seed(0)
        base, a, b = torch.randn(3, positions, WIDTH, device=device)
        self.weight = (0.1 * torch.randn(vocabulary, WIDTH, device=device)).to(dtype)
        self.policy, self.reference, self.critic = (h.to(dtype) for h in (base, base + 0.1 * a, base + 0.1 * b))
        self.policy.requires_grad_()
        self.critic.requires_grad_()
        self.tokens = torch.randint(0, vocabulary, (positions,), device=device)

    def run(self, workload: str, variant: str) -> None:
        """One call and its backward pass."""
        if variant in ("products", "narrow"):
            self._products(*WORKLOADS[workload], narrow=variant == "narrow")
            return
        terms = (self._naive if variant == "naive" else self._streamed)(workload)
        total = sum(t.sum() for t in terms if t.requires_grad)
        assert isinstance(total, torch.Tensor)
        total.backward()
        self.policy.grad = self.critic.grad = None

    def _streamed(self, workload: str) -> tuple[torch.Tensor, ...]:
        if workload == "statistics":
            return head.statistics(self.policy, self.weight, reference=self.reference, tokens=self.tokens)
        if workload == "own dueling":
            return head.own_dueling_terms(self.critic, self.reference, self.weight, self.tokens, BETA)
        return head.dueling_terms(self.policy, self.reference, self.critic, self.weight, self.tokens, BETA)

    def _naive(self, workload: str) -> list[torch.Tensor]:
        if workload == "statistics":
            policy, reference = ((h @ self.weight.T).float() for h in (self.policy, self.reference))
            with torch.no_grad():
                bellman.kl_divergence(policy, reference)
            return [policy.log_softmax(-1).gather(-1, self.tokens[:, None])]
        policy, reference, critic = self._logits()
        if workload == "own dueling":
            policy = critic.detach()
        with torch.no_grad():
            bellman.kl_divergence(policy, reference)
            policy.log_softmax(-1).gather(-1, self.tokens[:, None])
        q = losses.q_dueling(policy.new_zeros(len(policy)), critic, reference, policy, BETA)
        terms = [q.gather(-1, self.tokens[:, None]), (policy.detach().softmax(-1) * q.square()).sum(-1)]
        return terms if workload == "own dueling" else [losses.policy_loss(policy, reference, q, BETA), *terms]

    def _logits(self) -> list[torch.Tensor]:
        return [(h @ self.weight.T).float() for h in (self.policy, self.reference, self.critic)]

    def _products(self, forward: int, back: int, narrow: bool) -> None:
        blocks = head.CPU_BLOCKS if self.weight.device.type == "cpu" else head.GPU_BLOCKS
        rows = min(blocks.positions, len(self.policy))
        hidden = self.policy.detach()[:rows].repeat(forward, 1)
        policy, widened = hidden[:rows].float(), self.weight[: blocks.vocabulary].float()
        logits = hidden.new_ones(forward * rows, min(blocks.vocabulary, len(self.weight)))
        exact = policy.new_empty(rows, logits.shape[1])
        pulled = hidden.new_empty(back * rows, WIDTH)
        for _ in range(math.ceil(len(self.policy) / rows)):
            for part in self.weight.split(blocks.vocabulary):
                tile = logits.flatten()[: len(logits) * len(part)].view(len(logits), -1)
                if narrow:
                    torch.mm(hidden, part.T, out=tile)
                else:
                    torch.mm(policy, widened[: len(part)].T, out=exact.flatten()[: rows * len(part)].view(rows, -1))
                    torch.mm(hidden[rows:], part.T, out=tile[rows:])
                torch.mm(tile[: back * rows], part, out=pulled)


def seconds(call: Callable[[], None]) -> tuple[float, float]:
    """Wall time of a call, the device's work included, and CPU time of this process."""
    started = time.process_time()
    if torch.cuda.is_available():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000, time.process_time() - started
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin, time.process_time() - started


def timed(calls: dict, rounds: int) -> dict[object, tuple[list[float], list[float]]]:
    """Wall and CPU times of each call, run in turn, after one call of each that is not counted."""
    for call in calls.values():
        call()
    times = {key: ([], []) for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            for found, one in zip(times[key], seconds(call), strict=True):
                found.append(one)
    return times


def resident_mib(field: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def peak_here(case: Case, workload: str, variant: str) -> float:
    """MiB that one call needs beyond what was in memory before it."""
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        case.run(workload, variant)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    small = Case(2, 64, case.weight.dtype, "cpu")
    small.run(workload, variant)  # so that what the libraries allocate once is not counted
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = resident_mib("VmRSS")
    case.run(workload, variant)
    return resident_mib("VmHWM") - before


def peak(workload: str, variant: str, positions: int, vocabulary: int, dtype: str) -> float:
    """The same in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.head", "--peak", workload, variant, str(positions), str(vocabulary)]
    done = subprocess.run([*command, "--dtype", dtype], capture_output=True, text=True, check=True, cwd=os.getcwd())
    return float(done.stdout)


def exponent(sizes: list[int], times: list[float]) -> float:
    """Slope of log time over log size, by least squares."""
    x, y = [math.log(s) for s in sizes], [math.log(t) for t in times]
    return statistics.covariance(x, y) / statistics.variance(x)


def show(rows: list[dict]) -> None:
    """Prints rows as a table."""
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    for row in ({key: key for key in rows[0]}, *rows):
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()).rstrip())
    print()


def compare(arguments: argparse.Namespace, device: str) -> list[dict]:
    """Times, ratios and peaks of every workload and variant at one size."""
    case = Case(arguments.positions, arguments.vocabulary, getattr(torch, arguments.dtype), device)
    pairs = [(w, v) for w in arguments.workloads for v in VARIANTS]
    times = timed({pair: functools.partial(case.run, *pair) for pair in pairs}, arguments.rounds)

    def ratio(one: tuple[str, str], other: tuple[str, str]) -> float:
        """Median of the ratios of wall times within a turn."""
        return round(statistics.median(a / b for a, b in zip(times[one][0], times[other][0], strict=True)), 3)

    rows = []
    for (workload, variant), (wall, cpu) in times.items():
        key, products, narrow = (workload, variant), (workload, "products"), (workload, "narrow")
        inputs = (arguments.positions, arguments.vocabulary, arguments.dtype)
        rows.append(
            {
                "workload": workload,
                "variant": variant,
                "positions": arguments.positions,
                "vocabulary": arguments.vocabulary,
                "ms_median": round(statistics.median(wall) * 1000, 2),
                "ms_min": round(min(wall) * 1000, 2),
                "cpu_ms_min": round(min(cpu) * 1000, 2),
                "of_products": ratio(key, products),
                "cpu_of_products": round(min(cpu) / min(times[products][1]), 3),
                "cpu_of_narrow": round(min(cpu) / min(times[narrow][1]), 3),
                "of_naive": ratio(key, (workload, "naive")),
                "extra_mib": round(peak(workload, variant, *inputs), 1),
            }
        )
    return rows


def growth(arguments: argparse.Namespace, device: str) -> list[dict]:
    """The smallest times of the streamed head over N and over V, and the peak of memory over N."""
    factors, rows = (0.25, 0.5, 1, 2)[: 2 if arguments.small else 4], []
    sizes = {
        "positions": [(int(arguments.positions * f), arguments.vocabulary) for f in factors],
        "vocabulary": [(arguments.positions // 4, int(arguments.vocabulary * f)) for f in factors],
    }
    for over, pairs in sizes.items():
        cases = {pair: Case(*pair, getattr(torch, arguments.dtype), device) for pair in pairs}
        for workload in arguments.workloads:
            calls = {p: lambda c=c, w=workload: c.run(w, "eager") for p, c in cases.items()}
            times = timed(calls, min(5, arguments.rounds))
            least = [min(wall) for wall, _ in times.values()]
            slope = exponent([p[over == "vocabulary"] for p in pairs], least)
            for (positions, vocabulary), second in zip(pairs, least, strict=True):
                memory = ""
                if over == "positions":
                    memory = round(peak(workload, "eager", positions, vocabulary, arguments.dtype), 1)
                rows.append(
                    {
                        "workload": workload,
                        "over": over,
                        "positions": positions,
                        "vocabulary": vocabulary,
                        "ms_min": round(second * 1000, 2),
                        "exponent": round(slope, 3),
                        "extra_mib": memory,
                    }
                )
    return rows


def main() -> None:
    """Measures, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=1024, help="hidden states, N")
    parser.add_argument("--vocabulary", type=int, default=49152, help="size of the vocabulary, V")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of states and head")
    parser.add_argument("--rounds", type=int, default=7, help="turns that are timed")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="which")
    parser.add_argument("--small", action="store_true", help="sizes that take seconds, to see that it runs")
    parser.add_argument("--csv", type=Path, help="file to save the table to; the growth goes to NAME_growth.csv")
    parser.add_argument("--peak", nargs=4, metavar=("WORKLOAD", "VARIANT", "N", "V"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.small:
        arguments.positions, arguments.vocabulary, arguments.rounds = 8, 256, 1
        arguments.workloads = ["dueling"]
    with one_line_errors():
        use_fast_matmul()
        if arguments.peak:
            workload, variant, *size = arguments.peak
            case = Case(*map(int, size), getattr(torch, arguments.dtype), device)
            print(peak_here(case, workload, variant))
            return
        name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
        print(f"{device}, {name}, torch {torch.__version__}, {arguments.dtype}, H = {WIDTH}\n")
        table = compare(arguments, device)
        show(table)
        grown = growth(arguments, device)
        show(grown)
        if arguments.csv:
            for file, rows in (
                (arguments.csv, table),
                (arguments.csv.with_stem(f"{arguments.csv.stem}_growth"), grown),
            ):
                with file.open("w", newline="") as stream:
                    writer = csv.DictWriter(stream, rows[0])
                    writer.writeheader()
                    writer.writerows(rows)


if __name__ == "__main__":
    main()
