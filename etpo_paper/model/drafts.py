"""Guessing how a program goes on, so that one pass of the model checks several of its tokens.

A decoder reads all weights of the model for every token that it writes, which takes longer than multiplying a few more
rows with them. Programs repeat themselves: after `from sklearn.` comes one of a few modules, and a trained policy
writes much the same program again and again. `Drafts` remembers the last actions, and guesses that the last few tokens
are followed by what followed them there. The model alone decides which token is written (`decoder.sample`): a wrong
guess costs a little time and changes nothing.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence

REMEMBERED = 64  # actions: four batches of the default size
CONTEXTS = (8, 5, 3)  # how many of the last tokens must agree, tried in this order
LONGEST = 12  # tokens of a guess
LEAST = 0.4  # a guess is made no longer once the estimated probability that all of it is right would be below this
_BEFORE = -1  # stands for the positions before an action's first token


class Drafts:
    """Guesses tokens from the actions that were written last."""

    def __init__(self) -> None:
        self._actions: deque[tuple[int, ...]] = deque(maxlen=REMEMBERED)
        self._followers: dict[tuple[int, ...], Counter[int]] = {}

    def observe(self, actions: Iterable[Sequence[int]]) -> None:
        """Remembers actions, given as token ids, and forgets the oldest ones."""
        self._actions.extend(map(tuple, actions))
        self._followers = defaultdict(Counter)
        for action in self._actions:
            whole = (_BEFORE,) * CONTEXTS[0] + action
            for end in range(CONTEXTS[0], len(whole)):
                for length in CONTEXTS:
                    self._followers[whole[end - length : end]][whole[end]] += 1

    def guess(self, written: Sequence[int], most: int) -> list[int]:
        """How an action may go on.

        Args:
            written: the token ids of the action so far.
            most: the largest number of tokens to guess.

        Returns:
            Token ids; an empty list if there is no guess.
        """
        tail, chance = [_BEFORE] * CONTEXTS[0] + list(written[-CONTEXTS[0] :]), 1.0
        guess: list[int] = []
        while len(guess) < min(most, LONGEST):
            contexts = (tuple(tail[-length:]) for length in CONTEXTS)
            followers = next((self._followers[c] for c in contexts if c in self._followers), None)
            if followers is None:
                break
            # Of tokens seen equally often, the one seen first is taken, whatever else is remembered.
            token, count = followers.most_common(1)[0]
            chance *= count / (followers.total() + 0.5)  # never 1; two thirds for a token seen once
            if chance < LEAST:
                break
            guess.append(token)
            tail.append(token)
        return guess

    def get_state(self) -> list[list[int]]:
        """The remembered actions, for a checkpoint."""
        return [list(action) for action in self._actions]

    def set_state(self, state: Sequence[Sequence[int]]) -> None:
        """Restores what `get_state` returned."""
        self._actions.clear()
        self.observe(state)
