"""Guessing how a program goes on, so that several of its tokens are checked in one pass of the model.

A decoder reads all weights of the model for every token that it writes, and reading them takes longer than multiplying
a few rows with them. Programs repeat themselves: after `from sklearn.` comes one of a few modules, and a policy that
has learnt writes much the same program again and again. `Drafts` remembers the actions written last and proposes what
followed the last few tokens then. Whether a proposal is what the model writes, the model alone decides
(`decoder.sample`): a wrong guess costs a little time and changes nothing.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence

REMEMBERED = 64  # actions: four batches of the default size
CONTEXTS = (8, 5, 3)  # tokens that must agree, tried in this order
LONGEST = 12  # tokens of a guess
LEAST = 0.4  # chance of a whole guess, as far as it can be told, below which it is not made longer
_BEFORE = -1  # stands for what lies before an action's first token


class Drafts:
    """Proposes tokens from the actions written last."""

    def __init__(self):
        self._actions: deque[tuple[int, ...]] = deque(maxlen=REMEMBERED)
        self._followers: dict[tuple[int, ...], Counter[int]] = {}

    def observe(self, actions: Iterable[Sequence[int]]) -> None:
        """Remembers actions (token ids), and forgets the oldest."""
        self._actions.extend(map(tuple, actions))
        self._followers = defaultdict(Counter)
        for action in self._actions:
            whole = (_BEFORE,) * CONTEXTS[0] + action
            for end in range(CONTEXTS[0], len(whole)):
                for length in CONTEXTS:
                    self._followers[whole[end - length : end]][whole[end]] += 1

    def guess(self, written: Sequence[int], most: int) -> list[int]:
        """What may follow in an action that begins with the tokens `written`: at most `most` tokens, maybe none."""
        tail, guess, chance = [_BEFORE] * CONTEXTS[0] + list(written[-CONTEXTS[0] :]), [], 1.0
        while len(guess) < min(most, LONGEST):
            contexts = (tuple(tail[-length:]) for length in CONTEXTS)
            followers = next((self._followers[c] for c in contexts if c in self._followers), None)
            if followers is None:
                break
            # Of tokens that were seen equally often, the one seen first: the same whatever else is remembered.
            token, count = followers.most_common(1)[0]
            chance *= count / (followers.total() + 0.5)  # never certain: once seen is two thirds
            if chance < LEAST:
                break
            guess.append(token)
            tail.append(token)
        return guess

    def get_state(self) -> list[list[int]]:
        """What is remembered, for a checkpoint."""
        return [list(action) for action in self._actions]

    def set_state(self, state: Sequence[Sequence[int]]) -> None:
        """Restores what `get_state` returned."""
        self._actions.clear()
        self.observe(state)
