"""Kinds of worlds that tell methods apart: a benchmark of update rules whose answers are known.

Each kind isolates one thing that makes learning from actions of several tokens hard. A seed draws one world of the
kind: its reference policy and which tokens are good; rewards differ by about one unit. All are small enough to be
enumerated, so `World.action_optimum` knows V*, Q* and π*, and `learning.regret` how far a policy is from it. To try an
update rule, hand it to `learning.learn` with a world of each kind; `pipeline.worlds` does that for all methods.

    from etpo_paper.tabular.kinds import KINDS
    kind = KINDS["early"]
    world = kind.world(seed=1)
    curve = learn(method, world, updates=40, count=32, steps=1, seed=0, beta=0.3, gamma=0.9,
                  behaviour=kind.behaviour(world, seed=1))
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from etpo_paper.tabular.worlds import World, laid_out, random_policy, random_world


@dataclass(frozen=True)
class Kind:
    """A kind of world.

    Attributes:
        title: a few words for tables and figures.
        meaning: what is hard in it, a sentence.
        world: draws one from a seed.
        off_policy: whether another policy than the one that learns draws the actions.
    """

    title: str
    meaning: str
    world: Callable[[int], World]
    off_policy: bool = False

    def behaviour(self, world: World, seed: int) -> Tensor | None:
        """[S, P, V] logits of the policy that acts; None for the one that learns."""
        return random_policy(world, seed) if self.off_policy else None


def _one_turn(seed: int, vocabulary: int, length: int, reward: Callable[[Tensor, torch.Generator], Tensor]) -> World:
    """One state; all actions have the same length and end the episode.

    Args:
        seed: of the world.
        vocabulary: V.
        length: T.
        reward: maps the tokens [A, T] of all actions to their rewards [A].
    """
    generator = torch.Generator().manual_seed(seed)
    tokens, lengths, prefixes, count = laid_out(list(itertools.product(range(vocabulary), repeat=length)))
    return World(
        tokens=tokens,
        lengths=lengths,
        prefixes=prefixes,
        transition=torch.ones(1, len(tokens), 1, dtype=torch.float64),
        reward=reward(tokens, generator).double()[None],
        terminated=torch.ones(1, len(tokens), dtype=torch.bool),
        reference_logits=torch.randn(1, count, vocabulary, generator=generator, dtype=torch.float64),
    )


def _levels(count: int, generator: torch.Generator) -> Tensor:
    """[count] different rewards from -0.5 to 0.5 in random order."""
    return torch.linspace(-0.5, 0.5, count)[torch.randperm(count, generator=generator)]


def _early(seed: int, length: int = 5) -> World:
    return _one_turn(seed, 3, length, lambda tokens, generator: _levels(3, generator)[tokens[:, 0]])


def _filler(seed: int) -> World:
    """As `early`, but the end token may come at any time after the first: actions of 1 to 4 tokens."""
    world = random_world(seed, states=1, vocabulary=4, longest=4, done_share=1.1)
    levels = _levels(4, torch.Generator().manual_seed(seed))
    return replace(world, reward=levels.double()[world.tokens[:, 0]][None])


def _fork(seed: int) -> World:
    """The second token opens a branch in which one of nine endings earns 1 and the others -0.5; elsewhere it is 0."""

    def reward(tokens: Tensor, generator: torch.Generator) -> Tensor:
        fork, *ending = (int(torch.randint(3, (1,), generator=generator)) for _ in range(3))
        inside = tokens[:, 1] == fork
        right = (tokens[:, 2:] == torch.tensor(ending)).all(-1)
        return torch.where(inside, torch.where(right, 1.0, -0.5), 0.0)

    return _one_turn(seed, 3, 4, reward)


def _long(seed: int, length: int = 8) -> World:
    """Eight tokens out of two, or another number; every one that is as in a hidden pattern earns its share of 1."""

    def reward(tokens: Tensor, generator: torch.Generator) -> Tensor:
        pattern = torch.randint(2, (tokens.shape[1],), generator=generator)
        return (tokens == pattern).double().mean(-1)

    return _one_turn(seed, 2, length, reward)


def _offset(seed: int) -> World:
    def reward(tokens: Tensor, generator: torch.Generator) -> Tensor:
        return 5 + torch.rand(len(tokens), generator=generator) - 0.5

    return _one_turn(seed, 3, 3, reward)


def _random(seed: int) -> World:
    def reward(tokens: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(len(tokens), generator=generator) - 0.5

    return _one_turn(seed, 3, 3, reward)


def _repairs(seed: int) -> World:
    """Two states, a task and its error message. A quarter of the actions run, others in each state, and earn 0 to 1;
    the rest earn -1. In the task a failure leads to the message, whence every action ends the episode."""
    world = random_world(seed, states=2, vocabulary=4, longest=3)
    generator = torch.Generator().manual_seed(seed)
    runs = torch.rand(world.reward.shape, generator=generator) < 0.25
    earned = torch.where(runs, torch.rand(world.reward.shape, generator=generator), -1.0).double()
    to_message = torch.zeros_like(world.transition)
    to_message[..., 1] = 1.0
    terminated = runs.clone()
    terminated[1] = True
    return replace(world, transition=to_message, reward=earned, terminated=terminated)


KINDS = {
    "early": Kind("early token", "The first of five tokens decides; the others earn nothing.", _early),
    "filler": Kind("filler", "The first token decides, and one to four tokens follow it or none.", _filler),
    "fork": Kind("fork", "One token leads where most endings are bad and one is best of all.", _fork),
    "long": Kind("long action", "Eight tokens, each of which adds an eighth of the reward.", _long),
    "offset": Kind("shared offset", "All actions earn about 5, and differ by less than 1.", _offset),
    "off_policy": Kind("off-policy", "Another policy, that never learns, draws the actions.", _random, True),
    "repairs": Kind("repairs", "A failure costs 1 and leads to a second and last try.", _repairs),
}

# Those that can be had with actions of any length, to see what grows with it: a world from a seed and a length.
BY_LENGTH: dict[str, Callable[[int, int], World]] = {"early": _early, "long": _long}
