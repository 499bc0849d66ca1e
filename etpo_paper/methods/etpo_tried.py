"""ETPO with one change at a time, each of which leaves the paper's equations as they are (ours).

The changes were candidates for a better ETPO; `studies/improving` says how each was tried and what came of it. With all
of them off, the method is `etpo`. Each is a way to learn more, or less, from a batch:

`cross_fit`: the V that an action is compared with is fitted to the batches so far and to the other actions of this one,
so that it does not lag behind the policy, and no action is compared with itself.

`replay`: the critic learns from the last batches as well. Off the policy a whole return with its KL is biased; what
holds for every path, whoever drew it, is path consistency (arXiv 1702.08892), V(s, w¹…wʲ) + A = r - β Σ_{k>j} log π/ρ.

`remember`: the critic also learns from the best program so far in every state of the batch, as if it had been drawn
once in all of them together (`etpo_memory` takes the most frequent state alone).

`anchor`: the weight of E_ρ[A²] in the critic's loss. E_π[A²] is 0 for a policy that is certain of one program, whatever
else the critic says; under the reference it is not, so tokens that are no longer drawn still pull back.

`first_kl`: in the first updates the critic's step is halved until KL[before ‖ after] is at most so many nats an action.

`first_beta`: β of the first update, from which it falls to `beta` linearly.

`low_lam`: λ of a batch if V explained a share `explained` of the variance of the returns of the batch before it, which
it had not been fitted to; λ is `lam` until then.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from etpo_core.interfaces import Batch, Networks, Reducer, Transition, UpdateResult
from etpo_core.update.etpo import ETPO
from etpo_core.value import LeastSquaresValue
from etpo_paper.methods.memory import Memory
from etpo_paper.methods.returns import values_and_returns

FIRST = 10  # updates for which `first_kl` and `first_beta` hold


class TriedETPO(ETPO):
    """ETPO with the changes that the module describes, each off by default.

    Args:
        cross_fit: whether V of an action is fitted to the other actions of its batch.
        replay: how many earlier batches are learnt from once more; 0 for none.
        remember: whether the critic learns from the best action so far.
        anchor: weight of E_ρ[A²]; 0 for none.
        first_kl: bound of the first steps in nats an action; 0 for none.
        first_beta: β of the first update; 0 for `beta` from the start.
        low_lam: λ where V is good; 1 for none.
        explained: share of the returns' variance from which V is good.
        settings: as `ETPO`.
    """

    def __init__(
        self,
        *,
        cross_fit: bool = False,
        replay: int = 0,
        remember: bool = False,
        anchor: float = 0.0,
        first_kl: float = 0.0,
        first_beta: float = 0.0,
        low_lam: float = 1.0,
        explained: float = 0.3,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.cross_fit, self.remember, self.anchor = cross_fit, remember, anchor
        self.first_kl, self.first_beta, self.low_lam, self.explained = first_kl, first_beta, low_lam, explained
        self.last_beta, self.updates = self.beta, 0
        self.earlier: deque[list[Transition]] = deque(maxlen=replay)
        self.high_lam, self.seen = self.lam, [0.0, 0.0, 0.0, 0.0]

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """See `Method.start`."""
        super().start(networks, reducer)
        self.memory = Memory()

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """See `ETPO.update`."""
        if self.first_beta:
            share = max(0.0, 1 - self.updates / FIRST)
            self.beta = self.last_beta + share * (self.first_beta - self.last_beta)
        networks, share_of = self.networks, self.reducer.share
        self.older = [networks.batches(share_of(batch)) for batch in self.earlier]
        best = self.memory.keep(transitions) if self.remember else []
        states = list(dict.fromkeys(t.prompt for t in transitions))
        everywhere = [replace(t, prompt=state) for t in best for state in states]
        self.remembered, self.states = networks.batches(share_of(everywhere)), len(states)
        result = super().update(transitions)
        self.earlier.append(list(transitions))
        self.updates += 1
        return result

    def _learn_besides(self, total: int) -> None:
        """Adds the gradients of what is learnt from besides the batch. See `ETPO._learn_besides`."""
        for batches in self.older if self.value.fitted else []:
            count = sum(int(batch.lengths.sum()) for batch in batches)
            for batch in batches:
                self._regress_paths(batch, 1 / count, only_up=False)
        for batch in self.remembered if self.value.fitted else []:
            self._regress_paths(batch, 1 / (total * self.states), only_up=True)
        for batch in self._batches if self.anchor else []:
            (self.anchor * self._square_under_reference(batch).sum() / total).backward()

    def _regress_paths(self, batch: Batch, weight: float, only_up: bool) -> None:
        """The critic's loss at actions of any policy: a path-consistency target, or only where Q is below it."""
        terms = self.networks.terms(batch, self.beta, policy="fixed")
        expected_q = self._expected_q(batch)
        following = self._next_soft_value(batch, {})
        outcome = batch.reward + self.gamma * following
        paid = terms.log_prob - self.networks.log_prob(batch, "reference")
        later = paid.flip(1).cumsum(1).flip(1) - paid
        q = expected_q + terms.advantage
        target = outcome[:, None] - self.beta * later
        if only_up:
            target = torch.maximum(target, q.detach())
        (self._critic_loss(q, torch.where(batch.mask, target, 0), batch.mask).sum() * weight).backward()

    def _square_under_reference(self, batch: Batch) -> Tensor:
        """[B, T] E_ρ[(A - E_π[A])²], with a gradient into the critic."""

        def square(logits: dict[str, Tensor], tokens: Tensor) -> list[Tensor]:
            advantage = self.beta * (logits["critic"] - logits["reference"])
            mean = (logits["policy"].softmax(-1) * advantage).sum(-1, keepdim=True)
            return [(logits["reference"].softmax(-1) * (advantage - mean) ** 2).sum(-1)]

        return self.networks.map_logits(batch, square, ["policy", "reference", "critic"], "critic")[0]

    def _values_of_new_states(self, batches: Sequence[Batch]) -> dict[tuple[int, ...], float]:
        """See `ETPO._values_of_new_states`; what needs the whole batch is found here."""
        self._batches = batches
        known = super()._values_of_new_states(batches)
        if self.cross_fit:
            self._fit_without_each(batches, dict(known))
        return known

    def _level(self, batch: Batch, expected_q: Tensor) -> Tensor:
        """See `ETPO._level`: V fitted without the action itself."""
        return (
            batch.padded(torch.cat([self._others[id(t)] for t in batch.transitions])) if self.cross_fit else expected_q
        )

    @torch.no_grad()
    def _fit_without_each(self, batches: Sequence[Batch], known: dict[tuple[int, ...], float]) -> None:
        """V of each action's prefixes, fitted to all batches so far and to the other actions of this one."""
        rows: dict[int, tuple[Tensor, Tensor]] = {}
        for batch, (_, returns) in zip(batches, values_and_returns(self, batches, known), strict=True):
            lengths = batch.lengths.tolist()
            features = batch.flat(self.networks.features(batch)).split(lengths)
            for t, x, y in zip(batch.transitions, features, batch.flat(returns).split(lengths), strict=True):
                rows[id(t)] = x, y
        self._others = {}
        for key in rows:
            value = LeastSquaresValue(self.value.decay, self.value.ridge)
            value.set_state(self.value.get_state())
            for other, (x, y) in rows.items():
                if other != key:
                    value.observe(x, y)
            if len(rows) > 1:
                value.fit(self.reducer)
            self._others[key] = value(rows[key][0])

    def _regressed(self, batch: Batch, expected_q: Tensor, kl: Tensor, next_soft_value: Tensor) -> Tensor:
        """See `ETPO._regressed`; how well V knew the returns is added up."""
        if self.low_lam < 1 and self.value.fitted:
            returns = batch.flat(self._targets(batch, expected_q, kl, next_soft_value, 1.0)).double()
            errors = returns - batch.flat(expected_q).double()
            more = [float(len(returns)), *(float(t.sum()) for t in (returns, returns**2, errors**2))]
            self.seen = [a + b for a, b in zip(self.seen, more, strict=True)]
        return super()._regressed(batch, expected_q, kl, next_soft_value)

    def _finish(self) -> None:
        """See `ETPO._finish`."""
        if self.first_kl and self.updates < FIRST:
            self._shorten()
        count, total, squares, errors = self.seen
        if count:
            variance = squares - total**2 / count
            self.lam = self.low_lam if variance > 0 and 1 - errors / variance > self.explained else self.high_lam
            self.seen = [0.0, 0.0, 0.0, 0.0]
        super()._finish()

    @torch.no_grad()
    def _shorten(self) -> None:
        """Halves the critic's step until the policy that follows from it is near enough to the one that acted."""

        def divergence(logits: dict[str, Tensor], tokens: Tensor) -> list[Tensor]:
            before, after = logits["policy"].log_softmax(-1), logits["critic"].log_softmax(-1)
            return [(before.exp() * (before - after)).sum(-1)]

        actions = sum(len(batch.transitions) for batch in self._batches)
        pairs = list(zip(self.networks.parameters("critic"), self.networks.parameters("policy"), strict=True))
        for _ in range(10):
            found = [self.networks.map_logits(b, divergence, ["policy", "critic"])[0] for b in self._batches]
            if sum(float(kl.sum()) for kl in found) / actions <= self.first_kl:
                return
            for critic, policy in pairs:
                critic.copy_((critic + policy) / 2)

    def get_state(self) -> dict[str, Any]:
        """See `Method.get_state`."""
        earlier = [[t.__dict__ for t in batch] for batch in self.earlier]
        more = {"updates": self.updates, "lam": self.lam, "earlier": earlier}
        return {**super().get_state(), **self.memory.get_state(), **more}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `Method.set_state`."""
        super().set_state(state)
        self.memory.set_state(state)
        self.updates, self.lam = state["updates"], state["lam"]
        self.earlier.extend([Transition(**t) for t in batch] for batch in state["earlier"])
