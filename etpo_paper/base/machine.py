"""Settings of the machine that change speed but not results beyond rounding, chosen by trying them.

How many threads pay, which library multiplies fastest and whether bfloat16 is faster than float32 at all differ between
processors and containers. A tenth of a second at the start finds out: one product is multiplied in every way, compared
with float64 and timed. Nothing less exact than what the settings allow is ever chosen. What is usual is only left for
something clearly faster - bfloat16 where the processor has to emulate it, many threads where a container grants few
cores - so that other load on the machine does not change the choice, and with it the last digits, from run to run.
"""

import os
import time
from dataclasses import asdict, dataclass

import torch

from etpo_core.errors import unknown

_FAST_ENOUGH_TO_TRUST = 1e-5  # relative error of a float32 product; rounding to bfloat16 would give about 3e-3
_PRECISION_MARGIN, _THREAD_MARGIN = 1.5, 4.0  # how much faster another setting must be to be taken


@dataclass(frozen=True)
class Choice:
    """What was chosen and what it was chosen on.

    Attributes:
        precision: of the products: float32 or bfloat16.
        threads: of torch.
        fast_matmul: whether float32 products go to the faster library.
        gflops: measured rate of each candidate, in 10^9 operations a second.
        errors: relative error of a product in each precision, against float64.
    """

    precision: str
    threads: int
    fast_matmul: bool
    gflops: dict[str, float]
    errors: dict[str, float]

    def plain(self) -> dict:
        """The choice for a run card."""
        return asdict(self)


def choose(precision: str) -> Choice:
    """Chooses and sets threads and libraries of this process, for computing on the CPU.

    Args:
        precision: the least exact one allowed: float32, or bfloat16, which is left for float32 where it is slower.
    """
    if precision not in ("float32", "bfloat16"):
        raise unknown("training.precision", precision, ("float32", "bfloat16"))
    fast = use_fast_matmul()
    all_threads = torch.get_num_threads()
    candidates = ["float32"] if precision == "float32" else ["float32", "bfloat16"]
    counts = sorted({1, min(all_threads, len(os.sched_getaffinity(0))), all_threads})
    rates, errors = {}, {}
    for name in candidates:
        errors[name] = _error(getattr(torch, name))
        for count in counts:
            torch.set_num_threads(count)
            rates[name, count] = _rate(getattr(torch, name))

    def fastest(name: str) -> float:
        return max(rates[name, count] for count in counts)

    if precision != "float32" and fastest("float32") > _PRECISION_MARGIN * fastest(precision):
        precision = "float32"
    threads = max(counts, key=lambda count: rates[precision, count])
    if rates[precision, threads] < _THREAD_MARGIN * rates[precision, all_threads]:
        threads = all_threads
    torch.set_num_threads(threads)
    gflops = {f"{name}, threads={count}": round(rate, 1) for (name, count), rate in rates.items()}
    return Choice(precision, threads, fast, gflops, {name: float(f"{error:.2g}") for name, error in errors.items()})


def _operands(rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 576, generator=generator), torch.randn(576, 1536, generator=generator)


def _error(dtype: torch.dtype) -> float:
    a, b = _operands()
    exact = a.double() @ b.double()
    return float(((a.to(dtype) @ b.to(dtype)).double() - exact).norm() / exact.norm())


def _rate(dtype: torch.dtype) -> float:
    """Best of a few products, in 10^9 operations a second."""
    a, b = (t.to(dtype) for t in _operands(rows=512))
    a @ b
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * a.shape[0] * b.numel() / best / 1e9


def use_fast_matmul() -> bool:
    """Switches float32 products on CPU to the faster library where that costs no accuracy.

    PyTorch's "medium" precision selects another library on CPU: twice as fast on many machines and as exact, except on
    those where it rounds to bfloat16. One product, compared with float64, decides.

    Returns:
        Whether it was switched.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    if _error(torch.float32) > _FAST_ENOUGH_TO_TRUST:
        torch.set_float32_matmul_precision(before)
        return False
    return True
