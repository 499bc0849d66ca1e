"""Several processes share one run: who computes what, and what they tell each other.

`torchrun --nproc-per-node N -m pipeline.train ...` starts N processes that all go through the same run with the same
adapters. Whatever there is to do - prompts to answer, programs to execute, transitions to learn from - process r takes
items r, r + N, r + 2N, ... (`share`). The results are put together again (`merge`), so every process knows every action
and every reward. Gradients are summed before an optimiser steps (`sum_gradients`), so all processes hold the same
weights: those that one process alone would have arrived at, up to the rounding of sums. The first process writes the
files. In a single process every function here returns what it was given.

The module itself is an `etpo_core.interfaces.Reducer`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from etpo_core.errors import UserError

T = TypeVar("T")
_alone = False  # see `whole_work_if_fewer`


def size() -> int:
    """How many processes share the work; 1 when the run was not started by torchrun."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def device() -> torch.device:
    """What this process computes on: a GPU of its own, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if size() > 1 else torch.device("cuda")


# Beginning and end --------------------------------------------------------------------------------------------------


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that torchrun started, by the variables it sets; does nothing in a process of its own.

    Objects and numbers travel over gloo, gradients on GPUs over nccl. When a process fails, it raises its exception;
    the others lose their connection to it and exit with status 2 without printing anything.

    Raises:
        UserError: the machine has fewer GPUs than processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    store, number, count = next(dist.rendezvous("env://"))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("run", store), rank=number, world_size=count)
    try:
        if torch.cuda.is_available():
            wanted, there = int(os.environ.get("LOCAL_WORLD_SIZE", count)), torch.cuda.device_count()
            if wanted > there:
                raise UserError(f"{wanted} processes on a machine with {there} GPUs; start one for each GPU")
            torch.cuda.set_device(device())
        yield
    except BaseException:
        if not _first_to_fail(store):
            raise SystemExit(2) from None
        raise
    finally:
        dist.destroy_process_group()


def _first_to_fail(store: dist.Store) -> bool:
    try:
        return store.add("failures", 1) == 1
    except RuntimeError:
        return False  # the process that held the store is gone


def check_share(environments: int) -> None:
    """Checks that the processes can share the environments evenly.

    Raises:
        UserError: they cannot.
    """
    if environments % size():
        raise UserError(
            f"{size()} processes cannot share training.environments = {environments} evenly; start a number of "
            "processes that divides it"
        )


@contextmanager
def whole_work_if_fewer(items: int) -> Iterator[None]:
    """With fewer items than processes, each process does inside what one process alone would do: all of the work."""
    global _alone
    before, _alone = _alone, _alone or items < size()
    try:
        yield
    finally:
        _alone = before


# Dealing work ------------------------------------------------------------------------------------------------------


def share(items: Sequence[T]) -> Sequence[T]:
    """The items of a list that are this process's: every `size()`-th, beginning with its rank."""
    return items[rank() :: size()] if size() > 1 else items


def together(count: int) -> int:
    """How many items all processes have, if each has `count`."""
    return count * size()


def merge(items: list[T]) -> list[T]:
    """Undoes `share`: the results of all processes, in the order of the whole list."""
    if size() == 1:
        return items
    parts = _gathered(items)
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def align(generator: torch.Generator, drawn: int) -> None:
    """Brings the generators of all processes to the state of the one that was asked most often.

    Args:
        generator: one that was in the same state in all processes.
        drawn: how often it was asked here since.
    """
    if size() > 1:
        _, state = max(_gathered((drawn, generator.get_state())), key=lambda pair: pair[0])
        generator.set_state(state)


# Messages ----------------------------------------------------------------------------------------------------------


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process of this run ended without an error message (killed, out of memory, machine down); "
            "the same command goes on from the last checkpoint"
        ) from error


def _gathered(thing: T) -> list[T]:
    """The things of all processes, in their order."""
    things: list[Any] = [None] * size()
    with _connected():
        dist.all_gather_object(things, thing)
    return things


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, told to all."""
    if size() == 1:
        return make()
    box: list[Any] = [make() if rank() == 0 else None]
    with _connected():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def total(sums: dict[str, float]) -> dict[str, float]:
    """Sums over processes."""
    if size() == 1:
        return sums
    parts = _gathered(sums)
    return {key: sum(part[key] for part in parts) for key in sums}


def summed(values: Tensor) -> Tensor:
    """The sum of all processes' tensors, added up in the same order everywhere."""
    if size() == 1:
        return values
    first, *rest = (t.to(values.device) for t in _gathered(values.detach().cpu()))
    return sum(rest, first)


def concatenated(values: Tensor) -> Tensor:
    """The vectors [n] of all processes one after another; n may differ. There is no gradient to them."""
    return values if size() == 1 else torch.cat(_gathered(values.detach().cpu())).to(values.device)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces each gradient by its sum over processes; a missing one counts as 0."""
    if size() == 1:
        return
    parameters = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    with _connected():
        dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
