"""What ETPO's value says of a whole batch before anything is learnt, and what the batch earned instead."""

from collections.abc import Sequence

import torch
from torch import Tensor

from etpo_core.interfaces import Batch
from etpo_core.update.etpo import ETPO


@torch.no_grad()
def values_and_returns(
    method: ETPO, batches: Sequence[Batch], known: dict[tuple[int, ...], float]
) -> list[tuple[Tensor, Tensor]]:
    """V and the whole soft return at each prefix, where the values of all states acted in are known to one another.

    Args:
        method: whose value, temperature and discount they are.
        batches: all of an update.
        known: soft values of the next states in which nobody acted; the others are filled in.

    Returns:
        For each batch two tensors [B, T].
    """
    found = [(method._expected_q(batch), method.networks.evaluate(batch).kl) for batch in batches]
    for batch, (values, kl) in zip(batches, found, strict=True):
        states = method._state_values(batch, values, kl).tolist()
        known.update((t.prompt, v) for t, v in zip(batch.transitions, states, strict=True))
    return [
        (values, method._targets(batch, values, kl, method._next_soft_value(batch, known), lam=1.0))
        for batch, (values, kl) in zip(batches, found, strict=True)
    ]
