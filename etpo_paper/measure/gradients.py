"""How well a small batch points where the policy should go, before any training is done.

Many actions of one policy, here the untrained model, tell a direction that is worth trusting; a batch of sixteen tells
it with noise. The cosine between the two says how much an estimate of the advantage is worth, at a hundredth of the
cost of a training run: with the return of the whole action less its mean, as PPO-KL weighs every token of an action
alike, or with lambda-returns less a value V(prefix) that is fitted to other actions, as ETPO weighs each token.

The direction is that of a linear map M of the last hidden state, logits W (h + M h): the sum over tokens of the weight
times (W_a - E_pi[W]) h^T, which needs no backward pass.
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
    """

    returns: Tensor
    lengths: Tensor
    states: Tensor
    scores: Tensor

    def tokens_of(self, actions: Tensor) -> Tensor:
        """Which tokens belong to some actions, bool [N]."""
        chosen = torch.zeros(len(self.lengths), dtype=torch.bool).index_fill(0, actions, True)
        return chosen.repeat_interleave(self.lengths)


def fitted(actions: Actions, known: Tensor, ridge: float) -> Tensor:
    """V [N] at all tokens, fitted to the returns of the actions `known`; 0 if there are none."""
    value, features = LeastSquaresValue(1.0, ridge), actions.states * actions.states.shape[1] ** -0.5
    if len(known):
        of_known = actions.tokens_of(known)
        value.observe(features[of_known], actions.returns.repeat_interleave(actions.lengths)[of_known])
        value.fit(Alone())
    return value(features)


def advantages(actions: Actions, value: Tensor, lam: float) -> Tensor:
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
    )
    return targets[inside] - value


def direction(actions: Actions, weights: Tensor, chosen: Tensor) -> Tensor:
    """The policy gradient [H, H] of some actions, each token with its weight [N]."""
    of = actions.tokens_of(chosen)
    return (actions.scores[of] * weights[of, None]).T @ actions.states[of]


def agreement(
    actions: Actions,
    *,
    known: Sequence[int],
    lams: Sequence[float],
    ridge: float,
    batch: int,
    draws: int,
    generator: torch.Generator,
) -> Iterator[dict]:
    """Cosines between the direction of small batches and that of a third of all actions, which none of them shares.

    One third of the actions is for fitting V, one for the direction to compare with (weights: the return less its
    mean), the batches are drawn from the last.

    Args:
        actions: of one policy.
        known: how many actions V is fitted to, each a row; 0 for none.
        lams: lambdas of the returns, each a row.
        ridge: see `LeastSquaresValue`.
        batch: actions of a batch.
        draws: batches.
        generator: of the thirds and the batches.

    Yields:
        known, lam, cosine (mean over batches) and error (its standard error). The first row, with known and lam None,
        weighs all tokens of an action by its return less the batch's mean.
    """
    count = len(actions.lengths)
    for_value, for_truth, rest = torch.randperm(count, generator=generator).tensor_split(3)
    whole = actions.returns - actions.returns[for_truth].mean()
    truth = direction(actions, whole.repeat_interleave(actions.lengths), for_truth)
    batches = [rest[torch.randperm(len(rest), generator=generator)[:batch]] for _ in range(draws)]

    def row(known: int | None, lam: float | None, weights: Sequence[Tensor]) -> dict:
        cosines = torch.stack(
            [
                torch.cosine_similarity(direction(actions, w, chosen).flatten(), truth.flatten(), dim=0)
                for w, chosen in zip(weights, batches, strict=True)
            ]
        )
        return {"known": known, "lam": lam, "cosine": float(cosines.mean()), "error": float(cosines.std() / draws**0.5)}

    means = [actions.returns[chosen].mean() for chosen in batches]
    yield row(None, None, [(actions.returns - m).repeat_interleave(actions.lengths) for m in means])
    for number in known:
        value = fitted(actions, for_value[:number], ridge)
        for lam in lams:
            yield row(number, lam, [advantages(actions, value, lam)] * draws)
