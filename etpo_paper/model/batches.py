"""Micro-batches of a language model: prompts and actions as token ids, and how many fit in memory at once.

A policy that has learnt writes the same program again and again, all programs answer a few prompts, and a prompt after
a failure begins with the program that failed. A token's hidden state depends on the tokens before it alone. The tokens
of a batch therefore form a tree, in which every distinct beginning of a sequence is one node, held and computed once.
Nothing is padded. Token ids are kept from sampling to the loss: text is decoded for the executor and never tokenised
again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from etpo_core.interfaces import Batch, Transition


class Tree:
    """The distinct beginnings of sequences of tokens; a node is a beginning and stands for its last token.

    Nodes are numbered as they come, so those that a sequence adds are its last ones and follow one another.
    """

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}  # the number of each pair of the node before and a token

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, tokens: Iterable[int]) -> list[int]:
        """Adds a sequence; returns the node of each of its tokens."""
        path, node = [], -1
        for token in tokens:
            node = self._nodes.setdefault((node, token), len(self._nodes))
            path.append(node)
        return path

    @property
    def tokens(self) -> list[int]:
        """The token of each node."""
        return [token for _, token in self._nodes]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Prompts followed by actions as a tree of T nodes (`Tree`).

    The N action positions of a batch have M <= N distinct ones, each a pair of a node and the token drawn behind it;
    `each` gives all N positions what was computed for the distinct ones.

    The last token of an action is not among the nodes, because nothing is drawn from the state behind it.

    Attributes:
        pairs: the prompts with their actions that add nodes to the tree.
        ids: token ids [T] of the nodes.
        positions: [T] how many tokens stand before each node in its sequence.
        paths: for each pair the nodes [L] of its tokens, in order.
        own: how many of them, the last ones, the pair adds to the tree; those of all pairs in order are all nodes.
        places: the nodes [M] that the action tokens are drawn from.
        tokens: the action tokens [M].
        lengths: tokens of each action [B]; N is their sum.
        copies: index into the distinct positions of every action position [N], one action after another.
    """

    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    ids: Tensor
    positions: Tensor
    paths: Sequence[Tensor]
    own: Sequence[int]
    places: Tensor
    tokens: Tensor
    lengths: Tensor
    copies: Tensor

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], actions: Sequence[Sequence[int]], device: torch.device | str
    ) -> "Sequences":
        """Puts prompts and actions into a tree. A prompt and an action must have at least one token each."""
        pairs = [(tuple(p), tuple(a)) for p, a in zip(prompts, actions, strict=True)]
        tree, paths, own = Tree(), {}, {}
        for pair in dict.fromkeys(pairs):
            before = len(tree)
            paths[pair] = tree.add((*pair[0], *pair[1][:-1]))
            if len(tree) > before:
                own[pair] = len(tree) - before
        drawn: dict[tuple[int, int], int] = {}  # the number of each distinct action position
        copies = [
            drawn.setdefault(position, len(drawn))
            for prompt, action in pairs
            for position in zip(paths[prompt, action][len(prompt) - 1 :], action, strict=True)
        ]
        positions = [i for pair, new in own.items() for i in range(len(paths[pair]) - new, len(paths[pair]))]
        places, tokens = torch.tensor(list(drawn), device=device).T
        return cls(
            pairs=list(own),
            ids=torch.tensor(tree.tokens, device=device),
            positions=torch.tensor(positions, device=device),
            paths=[torch.tensor(paths[pair], device=device) for pair in own],
            own=list(own.values()),
            places=places,
            tokens=tokens,
            lengths=torch.tensor([len(a) for a in actions], device=device),
            copies=torch.tensor(copies, device=device),
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

    Tokens that are computed once count once (`Sequences`). Transitions whose next state was acted in come after all
    others: that state is then evaluated, with its own action, before its value is asked for. A transition too long for
    the limit goes alone.
    """
    transitions = list(transitions)
    acted = {t.prompt for t in transitions}

    def order(t: Transition) -> tuple[bool, int, tuple[int, ...], tuple[int, ...]]:
        return t.next_prompt not in acted, len(t.prompt) + len(t.action), t.action, t.prompt

    group: list[Transition] = []
    tree = Tree()
    for t in sorted(transitions, key=order, reverse=True):
        sequence = (*t.prompt, *t.action[:-1])
        tree.add(sequence)
        if group and len(tree) > tokens:
            yield group
            group, tree = [], Tree()
            tree.add(sequence)
        group.append(t)
    if group:
        yield group


def alone(states: Iterable[tuple[int, ...]]) -> list[Transition]:
    """Transitions whose only position is the end of a state: its hidden state does not see the token behind it."""
    return [Transition(state, (0,), (0.0,), 0.0, True, None) for state in states]
