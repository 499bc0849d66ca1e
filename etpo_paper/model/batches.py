"""Micro-batches of a language model: prompts and actions as padded token ids, and how many fit in memory at once.

A policy that has learnt writes the same program again and again. Equal sequences are therefore held, and computed,
once. What all prompts of a batch begin with is computed once as well. Token ids are kept from sampling to the loss:
text is decoded for the executor and never tokenised again.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from etpo_core.interfaces import Batch, Transition
from etpo_paper.model.decoder import shared_length


@dataclass(frozen=True, eq=False)
class Sequences:
    """Prompts followed by actions, padded on the right; where something lies is told by its position.

    The N action positions of a batch have M <= N distinct ones, and `each` gives all N positions what was computed for
    the distinct ones.

    The last token of an action is not among the ids, because nothing is drawn from the state behind it.

    Attributes:
        pairs: the distinct prompts with their actions, in the order of the rows of `ids`.
        prefix: token ids [P] that all sequences begin with.
        ids: token ids [distinct, S] of what follows.
        rows: index into `ids` of each distinct action position [M], one action after another.
        columns: index into S of the hidden state that the action token is drawn from [M].
        tokens: the action tokens [M].
        lengths: tokens of each action [B]; N is their sum.
        copies: index into the distinct positions of every action position [N], one action after another.
    """

    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    prefix: Tensor
    ids: Tensor
    rows: Tensor
    columns: Tensor
    tokens: Tensor
    lengths: Tensor
    copies: Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], actions: Sequence[Sequence[int]], device: torch.device | str
    ) -> "Sequences":
        """Pads prompts and actions. A prompt and an action must have at least one token each."""
        shared = shared_length(prompts)
        pairs = [(tuple(p), tuple(a)) for p, a in zip(prompts, actions, strict=True)]
        distinct = list(dict.fromkeys(pairs))
        whole = [[*p[shared:], *a[:-1]] for p, a in distinct]
        longest = max(map(len, whole))
        index = [(row, len(p) - shared - 1 + j, t) for row, (p, a) in enumerate(distinct) for j, t in enumerate(a)]
        rows, columns, tokens = torch.tensor(index, device=device).T
        starts = dict(zip(distinct, itertools.accumulate((len(a) for _, a in distinct), initial=0), strict=False))
        return cls(
            pairs=distinct,
            prefix=torch.tensor(prompts[0][:shared], dtype=torch.long, device=device),
            ids=torch.tensor([w + [0] * (longest - len(w)) for w in whole], device=device),
            rows=rows,
            columns=columns,
            tokens=tokens,
            lengths=torch.tensor([len(a) for a in actions], device=device),
            copies=torch.tensor([starts[pair] + j for pair in pairs for j in range(len(pair[1]))], device=device),
        )

    def each(self, values: Tensor) -> Tensor:
        """Gives every action position [N, ...] the values of its distinct one [M, ...]; gradients add up."""
        return values.index_select(0, self.copies)  # `values[copies]` adds them up in an order that threads decide


@dataclass(frozen=True, eq=False)
class LanguageBatch(Batch):
    """A micro-batch of a language model.

    Attributes:
        sequences: its token ids; row i is transition i.
    """

    sequences: Sequences

    @classmethod
    def of(cls, transitions: Sequence[Transition], device: torch.device | str) -> "LanguageBatch":
        """Puts transitions on a device."""
        sequences = Sequences.of([t.prompt for t in transitions], [t.action for t in transitions], device)
        return cls(
            transitions=transitions,
            lengths=sequences.lengths,
            reward=torch.tensor([t.reward for t in transitions], device=device),
            terminated=torch.tensor([t.terminated for t in transitions], device=device),
            sequences=sequences,
        )

    def spread(self, values: Tensor) -> Tensor:
        """[B, T, ...] from the values [M, ...] of distinct positions."""
        return self.padded(self.sequences.each(values))


def micro_batches(transitions: Iterable[Transition], tokens: int) -> Iterator[list[Transition]]:
    """Groups of transitions that take at most `tokens` tokens each, the longest sequences first.

    Padding counts. A beginning that all prompts of a group share counts once, and so do equal sequences, because they
    are computed once. Ordered by length, the sequences of a group are about equally long, so little is padded.
    Transitions whose next state was acted in come after all others: that state is then evaluated, with its own action,
    before its value is asked for. A transition too long for the limit goes alone.
    """
    transitions = list(transitions)
    acted = {t.prompt for t in transitions}

    def order(t: Transition) -> tuple[bool, int, tuple[int, ...], tuple[int, ...]]:
        return t.next_prompt not in acted, len(t.prompt) + len(t.action), t.action, t.prompt

    group: list[Transition] = []
    for t in sorted(transitions, key=order, reverse=True):
        if group:
            shared = shared_length([u.prompt for u in (*group, t)])
            longest = max(len(u.prompt) + len(u.action) for u in (*group, t))
            distinct = {(u.prompt, u.action) for u in (*group, t)}
            if shared + len(distinct) * (longest - shared) > tokens:
                yield group
                group = []
        group.append(t)
    if group:
        yield group


def alone(states: Iterable[tuple[int, ...]]) -> list[Transition]:
    """Transitions whose only position is the end of a state: its hidden state does not see the token behind it."""
    return [Transition(state, (0,), (0.0,), 0.0, True, None) for state in states]
