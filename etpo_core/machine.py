"""Settings of the machine that change speed but not results beyond rounding, chosen by trying them."""

import torch

_FAST_ENOUGH_TO_TRUST = 1e-5  # relative error of a float32 product; rounding to bfloat16 would give about 3e-3


def use_fast_matmul() -> bool:
    """Switches float32 products on CPU to the faster library where that costs no accuracy.

    PyTorch's "medium" precision selects another library on CPU: twice as fast on many machines and as exact, except on
    those where it rounds to bfloat16. One product, compared with float64, decides.

    Returns:
        Whether it was switched.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 576, generator=generator), torch.randn(576, 1536, generator=generator)
    exact = a.double() @ b.double()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = ((a @ b).double() - exact).norm() / exact.norm()
    if error > _FAST_ENOUGH_TO_TRUST:
        torch.set_float32_matmul_precision(before)
        return False
    return True
