"""Checks of tensors and numbers, shared by everything in this package that computes.

Each check raises ValueError with one line: the argument, its shape, what was expected. Types, shapes and the range of
numbers are checked before anything is computed. NaN is looked for in results, which are smaller than what they were
computed from; only if there is one does `explain_logits` look for the argument that it came from.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Shape = Sequence[int | None]  # None stands for any size


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def shaped(name: str, tensor: Tensor, shape: Shape | None) -> None:
    """It is a tensor, of this shape; None allows any shape."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: got {type(tensor).__name__}, expected a tensor")
    if shape is None:
        return
    wrong = any(want not in (None, have) for have, want in zip(tensor.shape, shape, strict=False))
    if tensor.dim() != len(shape) or wrong:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected [{wanted}]")


def floats(name: str, tensor: Tensor, shape: Shape | None = None) -> None:
    """It holds floating-point numbers, in this shape."""
    shaped(name, tensor, shape)
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} of {tensor.dtype}, expected a floating dtype")


def integers(name: str, tensor: Tensor, shape: Shape | None, least: int, most: int) -> None:
    """It holds integers between `least` and `most`, in this shape."""
    shaped(name, tensor, shape)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} of {tensor.dtype}, expected an integer dtype")
    if tensor.numel() and not ((tensor >= least) & (tensor <= most)).all():
        held = f"{int(tensor.min())} to {int(tensor.max())}"
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} holds {held}, expected {least} to {most}")


def bools(name: str, tensor: Tensor, shape: Shape | None) -> None:
    """It holds True and False, in this shape."""
    shaped(name, tensor, shape)
    if tensor.dtype != torch.bool:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} of {tensor.dtype}, expected torch.bool")


def logits(name: str, tensor: Tensor, shape: Shape | None = None) -> None:
    """It holds floating-point numbers, the last dimension being a vocabulary of at least one token."""
    floats(name, tensor, shape)
    if tensor.dim() < 1 or tensor.shape[-1] < 1:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected [..., vocabulary of 1 or more]")


def number(name: str, value: float, least: float, most: float) -> None:
    """It is a finite number from `least` to `most`, both included."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value) or not least <= value <= most:
        span = f"of at least {least:g}" if math.isinf(most) else f"between {least:g} and {most:g}"
        raise ValueError(f"{name}: got {value!r}, expected a finite number {span}")


def positive(name: str, value: float) -> None:
    """It is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value!r}, expected a finite number above 0")


def finite(name: str, tensor: Tensor, where: Tensor | None = None) -> Tensor:
    """Gives the values in float32 or wider, 0 where `where` is False; those that are left must be finite."""
    kept = wide(tensor) if where is None else torch.where(where, wide(tensor), 0)
    if not torch.isfinite(kept).all():
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} holds NaN or infinity, expected finite values")
    return kept


def below_infinity(name: str, tensor: Tensor) -> None:
    """It holds numbers, or -inf for a token that is forbidden."""
    if not (tensor < math.inf).all():  # a comparison with NaN is False
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} holds NaN or +inf, expected numbers or -inf (forbidden)")


def explain_logits(**arguments: Tensor) -> None:
    """Each holds numbers or -inf, and forbids no row's every token: otherwise its softmax is NaN."""
    for name, tensor in arguments.items():
        below_infinity(name, tensor)
        if torch.isneginf(tensor).all(dim=-1).any():
            held = f"shape {tuple(tensor.shape)} has a row of -inf only"
            raise ValueError(f"{name}: {held}, expected an allowed token in each")
