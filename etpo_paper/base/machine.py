"""How this machine computes fastest: the number of threads, the library and the precision of products on the CPU.

None of these changes a result beyond rounding, and which is fastest differs between processors and containers. So they
are tried: at the start one product is computed in every way, compared with float64 and timed, which takes a tenth of a
second, or a few where bfloat16 is emulated. Nothing less exact than the settings allow is ever chosen. The usual choice
(the precision of the settings and all threads) is given up only for one that is much faster: for float32 where the
processor has to emulate bfloat16, and for fewer threads where a container grants few cores. Otherwise other load on the
machine would change the choice, and with it the last digits, from run to run.
"""

import ctypes
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from etpo_core.errors import unknown

_FAST_ENOUGH_TO_TRUST = 1e-5  # relative error of a float32 product; rounding to bfloat16 would give about 3e-3
_SLOW = 0.1  # seconds for a product; the faster candidates take a few milliseconds
_PRECISION_MARGIN, _THREAD_MARGIN = 1.5, 4.0  # how many times faster another choice must be to be taken


@dataclass(frozen=True)
class Choice:
    """What was chosen, and the measurements that it was chosen by.

    Attributes:
        precision: of products: float32 or bfloat16.
        threads: the number of threads of torch.
        gflops: the measured rate of each candidate, in 10⁹ operations a second.
        errors: the relative error of a product in each precision, compared with float64: in float32 about 4e-7, or 3e-3
            if it were rounded to bfloat16. The name of PyTorch's switch, "medium", tells neither.
    """

    precision: str
    threads: int
    gflops: dict[str, float]
    errors: dict[str, float]

    def plain(self) -> dict[str, Any]:
        """The choice as a dictionary, for a run card."""
        return asdict(self)


def choose(precision: str) -> Choice:
    """Chooses how this process computes on the CPU, and sets its threads and its library of products.

    Args:
        precision: the least exact precision that is allowed: float32, or bfloat16. Where bfloat16 is slower, float32 is
            chosen instead.

    Raises:
        UserError: another precision.
    """
    if precision not in ("float32", "bfloat16"):
        raise unknown("training.precision", precision, ("float32", "bfloat16"))
    use_fast_matmul()
    all_threads = torch.get_num_threads()
    candidates = ["float32"] if precision == "float32" else ["float32", "bfloat16"]
    counts = sorted({1, min(all_threads, len(os.sched_getaffinity(0))), all_threads})
    rates: dict[tuple[str, int], float] = {}
    errors: dict[str, float] = {}
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
    return Choice(precision, threads, gflops, {name: float(f"{error:.2g}") for name, error in errors.items()})


def _operands(rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 576, generator=generator), torch.randn(576, 1536, generator=generator)


def _error(dtype: torch.dtype) -> float:
    a, b = _operands()
    exact = a.double() @ b.double()
    return float(((a.to(dtype) @ b.to(dtype)).double() - exact).norm() / exact.norm())


def _rate(dtype: torch.dtype) -> float:
    """The highest rate of a few products, in 10⁹ operations a second; a slow product is timed only once."""
    a, b = (t.to(dtype) for t in _operands(rows=512))
    a @ b  # the first one may be slow for reasons of its own
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
        if best > _SLOW:
            break
    return 2 * a.shape[0] * b.numel() / best / 1e9


def use_fast_matmul() -> bool:
    """Lets float32 products on the CPU use the faster library, where that costs no accuracy.

    PyTorch's precision "medium" selects another library on the CPU. It is twice as fast on many machines and equally
    exact, except on machines where it rounds to bfloat16. One product is compared with float64 to find out.

    Returns:
        Whether the faster library is used.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # somebody has used torch.backends.*.fp32_precision, which this older switch cannot name
        before = "highest"
    torch.set_float32_matmul_precision("medium")
    if _error(torch.float32) > _FAST_ENOUGH_TO_TRUST:
        torch.set_float32_matmul_precision(before)
        return False
    return True


def one_heap() -> None:
    """Has all threads from here on use one heap, for threads that take turns.

    The C library of Linux gives each thread a heap of its own, and each keeps what its thread once needed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 1)  # M_ARENA_MAX
