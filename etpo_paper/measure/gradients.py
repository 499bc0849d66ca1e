"""How well a small batch points where the policy should go, before any training is done.

Many actions of one policy, here the untrained model, tell a direction that is worth trusting; a batch of sixteen tells
it with noise. The cosine between the two says how much an estimate of the advantage is worth, at a hundredth of the
cost of a training run: with the return of the whole action less its mean, as PPO-KL weighs every token of an action
alike, with lambda-returns less a value V(prefix) that is fitted to other actions, as ETPO weighs each token, and as
each of the other methods would begin.

The direction is that of a linear map M of the last hidden state, logits W (h + M h): the sum over tokens of the weight
times (W_a - E_pi[W]) h^T, which needs no backward pass. Methods that square residuals of V = beta log sum exp z move
that level as well, along E_pi[W] h^T. The first step of the released code is left out: its target policy is that of the
logits as they are, whatever was earned.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from etpo_core.bellman import lambda_targets
from etpo_core.interfaces import Alone
from etpo_core.value import LeastSquaresValue


class Actions(NamedTuple):
    """Actions of one policy and what they earned, their N tokens one after another.

    Attributes:
        returns: reward, and the value of what follows, of each action [A].
        lengths: tokens of each [A].
        states: hidden state that each token was drawn from [N, H].
        scores: d log pi / d state of each token, W_a - E_pi[W] [N, H].
        means: d log sum exp z / d state at each token, E_pi[W] [N, H].
        levels: log sum exp z at each token, in nats [N].
        groups: number of the state that each action was taken in [A].
    """

    returns: Tensor
    lengths: Tensor
    states: Tensor
    scores: Tensor
    means: Tensor
    levels: Tensor
    groups: Tensor

    @property
    def firsts(self) -> Tensor:
        """Where the first token of each action stands among all tokens [A]."""
        return self.lengths.cumsum(0) - self.lengths

    @property
    def places(self) -> Tensor:
        """Which token of its action each token is, from 0 [N]."""
        return torch.arange(int(self.lengths.sum())) - self.firsts.repeat_interleave(self.lengths)

    def tokens_of(self, actions: Tensor) -> Tensor:
        """Which tokens belong to some actions, bool [N]."""
        chosen = torch.zeros(len(self.lengths), dtype=torch.bool).index_fill(0, actions, True)
        return chosen.repeat_interleave(self.lengths)


def fitted(actions: Actions, known: Tensor, ridge: float, discount: float = 1.0) -> Tensor:
    """V [N] at all tokens, fitted to the returns of the actions `known`; 0 if there are none.

    Args:
        actions: all of them.
        known: numbers of those that V is fitted to.
        ridge: see `LeastSquaresValue`.
        discount: between the tokens of an action.
    """
    value, features = LeastSquaresValue(1.0, ridge), actions.states * actions.states.shape[1] ** -0.5
    if len(known):
        of_known = actions.tokens_of(known)
        left = actions.lengths.repeat_interleave(actions.lengths) - 1 - actions.places
        returns = actions.returns.repeat_interleave(actions.lengths) * discount**left
        value.observe(features[of_known], returns[of_known])
        value.fit(Alone())
    return value(features)


def advantages(actions: Actions, value: Tensor, lam: float, discount: float = 1.0) -> Tensor:
    """lambda-return of each token less the value before it [N]; the KL is left out, as it is 0 at the start."""
    inside = torch.arange(int(actions.lengths.max())) < actions.lengths[:, None]
    padded = torch.zeros(inside.shape).masked_scatter(inside, value)
    targets = lambda_targets(
        padded,
        torch.zeros_like(padded),
        actions.lengths,
        reward=actions.returns,
        terminated=torch.ones(len(actions.returns), dtype=torch.bool),
        next_soft_value=torch.zeros_like(actions.returns),
        beta=0.0,
        gamma=1.0,
        lam=lam,
        inner_discount=discount,
    )
    return targets[inside] - value


def direction(actions: Actions, weights: Tensor, chosen: Tensor, levels: Tensor | None = None) -> Tensor:
    """The gradient [H, H] of some actions, each token with its weight [N] of log pi, and of log sum exp z if given."""
    of = actions.tokens_of(chosen)
    moved = actions.scores[of] * weights[of, None]
    if levels is not None:
        moved = moved + actions.means[of] * levels[of, None]
    return moved.T @ actions.states[of]


def grouped(actions: Actions, chosen: Tensor, normalise: bool) -> Tensor:
    """The return of each chosen action compared with the others of its state [A]; 0 in a group of one.

    Args:
        actions: all of them.
        chosen: numbers of a batch's.
        normalise: as GRPO, less the mean and over the deviation of the group; else as RLOO, less the others' mean.
    """
    compared = torch.zeros_like(actions.returns)
    for group in actions.groups[chosen].unique():
        members = chosen[actions.groups[chosen] == group]
        if (count := len(members)) > 1:
            above = actions.returns[members] - actions.returns[members].mean()
            scale = 1 / (above.square().mean().sqrt() + 1e-8) if normalise else count / (count - 1)
            compared[members] = above * scale
    return compared


def without_value(actions: Actions, chosen: Tensor, beta: float) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Methods that have no value network: name, weights of log pi [N] and of log sum exp z [N] in a batch.

    Args:
        actions: all of them.
        chosen: numbers of the batch's.
        beta: of TBRM, whose V starts at beta log sum exp z of the reference.
    """

    def of_tokens(values: Tensor) -> Tensor:
        return values.repeat_interleave(actions.lengths)

    yield "rloo", of_tokens(grouped(actions, chosen, normalise=False)), None
    yield "grpo", of_tokens(grouped(actions, chosen, normalise=True) / actions.lengths), None
    residual = of_tokens(actions.returns - beta * actions.levels[actions.firsts])
    yield "tbrm", residual, residual * (actions.places == 0)
    # A token is moved by the residuals of its own prefix and of all before it.
    earned = of_tokens(actions.returns)
    yield "shiq", earned * (actions.places + 1), earned


def with_value(
    actions: Actions, chosen: Tensor, value: Tensor, discounted: Tensor, gamma: float, lam: float
) -> Iterator[tuple[str, Tensor, None]]:
    """Methods whose value is a network of its own: name and weights of log pi [N] in a batch.

    Args:
        actions: all of them.
        chosen: numbers of the batch's.
        value: V [N].
        discounted: V [N] of returns that are discounted between tokens.
        gamma: that discount, of NTPO.
        lam: lambda of POAD and NTPO.
    """
    above = actions.returns - value[actions.firsts]
    yield "ppo_kl", (above - above[chosen].mean()).repeat_interleave(actions.lengths), None
    of = actions.tokens_of(chosen)
    for name, known, discount in (("poad", value, 1.0), ("ntpo", discounted, gamma)):
        found = advantages(actions, known, lam, discount)
        yield name, found - found[of].mean(), None
    yield "oreo", advantages(actions, value, 1.0) / actions.lengths.repeat_interleave(actions.lengths), None


def agreement(
    actions: Actions,
    *,
    known: Sequence[int],
    lams: Sequence[float],
    ridge: float,
    batch: int,
    draws: int,
    generator: torch.Generator,
    beta: float,
    gamma: float,
    lam: float,
) -> Iterator[dict]:
    """Cosines between the direction of small batches and that of a third of all actions, which none of them shares.

    One third of the actions is for fitting V, one for the direction to compare with (weights: the return less its
    mean), the batches are drawn from the last.

    Args:
        actions: of one policy.
        known: how many actions V is fitted to, each a row of ETPO for each lambda and one of each method with a value;
            0 for none, as before the first update.
        lams: lambdas of ETPO's returns, each a row.
        ridge: see `LeastSquaresValue`.
        batch: actions of a batch.
        draws: batches.
        generator: of the thirds and the batches.
        beta: of TBRM, see `without_value`.
        gamma: of NTPO, between tokens.
        lam: lambda of POAD and NTPO.

    Yields:
        method, known, lam, cosine (mean over batches) and error (its standard error). In the first row, with known and
        lam None, all tokens of an action are weighed by its return less the batch's mean: PPO-KL before it has a value.
        Methods without a value network have known None, and all but ETPO have lam None.
    """
    count = len(actions.lengths)
    for_value, for_truth, rest = torch.randperm(count, generator=generator).tensor_split(3)
    whole = actions.returns - actions.returns[for_truth].mean()
    truth = direction(actions, whole.repeat_interleave(actions.lengths), for_truth)
    batches = [rest[torch.randperm(len(rest), generator=generator)[:batch]] for _ in range(draws)]

    def row(method: str, known: int | None, lam: float | None, weights: Sequence[tuple[Tensor, Tensor | None]]) -> dict:
        cosines = torch.stack(
            [
                torch.cosine_similarity(direction(actions, w, chosen, level).flatten(), truth.flatten(), dim=0)
                for (w, level), chosen in zip(weights, batches, strict=True)
            ]
        )
        mean, error = float(cosines.mean()), float(cosines.std() / draws**0.5)
        return {"method": method, "known": known, "lam": lam, "cosine": mean, "error": error}

    def rows(known: int | None, found: Sequence[Iterator[tuple[str, Tensor, Tensor | None]]]) -> Iterator[dict]:
        for of_batches in zip(*found, strict=True):  # one method at a time
            yield row(of_batches[0][0], known, None, [(weights, level) for _, weights, level in of_batches])

    means = [actions.returns[chosen].mean() for chosen in batches]
    yield row("ppo_kl", None, None, [((actions.returns - m).repeat_interleave(actions.lengths), None) for m in means])
    yield from rows(None, [without_value(actions, chosen, beta) for chosen in batches])
    for number in known:
        value = fitted(actions, for_value[:number], ridge)
        for of_etpo in lams:
            yield row("etpo", number, of_etpo, [(advantages(actions, value, of_etpo), None)] * draws)
        discounted = fitted(actions, for_value[:number], ridge, gamma)
        yield from rows(number, [with_value(actions, c, value, discounted, gamma, lam) for c in batches])
