"""How much reward a policy can earn at each distance from the language model, read off the untrained model's programs.

Of all policies with the same KL(pi || rho) in a state, pi*(a) = rho(a) exp(r(a) / beta) / Z earns the most, beta being
what a nat costs there: it is the policy that entropy-regularised learning looks for (arXiv 2402.06700), with a whole
program as the action. Programs that the untrained model wrote are draws from rho, so weighing each by exp(r / beta)
gives the mean reward of pi* and its KL without any training. Over all beta that is a frontier that no policy passes,
but by what a sample misses: programs that rho writes too rarely to be among them.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

LEAST_EFFECTIVE = 10.0  # programs; where fewer carry an estimate it says more about them than about the model


class SoftOptimum(NamedTuple):
    """The best policy for one price of a nat.

    Attributes:
        reward: its mean reward.
        kl: its KL to the reference, nats per action.
        effective: how many equally weighed programs the estimates are worth.
    """

    reward: float
    kl: float
    effective: float


def soft_optimum(rewards: np.ndarray, beta: float) -> SoftOptimum:
    """The policy ρ exp(r/β) / Z, estimated from programs of the reference.

    With weights wᵢ = exp(rᵢ/β) / Σⱼ exp(rⱼ/β): E[r] = Σ wᵢ rᵢ, KL = Σ wᵢ ln (N wᵢ), effective number 1 / Σ wᵢ².

    Args:
        rewards: [N] of programs that the reference wrote in one state, failures included.
        beta: weight of the KL, in units of reward per nat.

    Raises:
        ValueError: there are no rewards, or beta is not above 0.
    """
    rewards = np.asarray(rewards, dtype=float)
    if not len(rewards):
        raise ValueError("rewards are empty; expected those of programs of the untrained model")
    if not beta > 0:
        raise ValueError(f"beta is {beta}; expected a number above 0")
    exponents = (rewards - rewards.max()) / beta
    log_weights = exponents - np.log(np.exp(exponents).sum())
    weights = np.exp(log_weights)
    kl = float((weights * (log_weights + np.log(len(rewards)))).sum())
    return SoftOptimum(float(weights @ rewards), max(0.0, kl), float(1 / np.square(weights).sum()))


def frontier(rewards: np.ndarray, points: int = 200) -> pd.DataFrame:
    """The frontier from the reference itself (β = ∞) to where `LEAST_EFFECTIVE` programs carry the estimate.

    Args:
        rewards: see `soft_optimum`.
        points: how many values of β are tried, evenly on a logarithmic scale from 100 to 0.001.

    Returns:
        Columns beta, reward and kl, a row a point, kl rising.
    """
    rows = [(beta, *soft_optimum(rewards, beta)) for beta in np.geomspace(100.0, 0.001, points)]
    table = pd.DataFrame(rows, columns=["beta", "reward", "kl", "effective"])
    return table.loc[table["effective"] >= LEAST_EFFECTIVE, ["beta", "reward", "kl"]]


def kl_needed(table: pd.DataFrame, reward: float) -> float:
    """The KL at which a `frontier` earns a reward, nats per action; NaN for one beyond its end, 0 for one below it."""
    if not len(table) or reward > table["reward"].max():
        return float("nan")
    return float(np.interp(reward, table["reward"], table["kl"]))


def phases(updates: pd.DataFrame, count: int) -> pd.DataFrame:
    """Where the runs of a method on a task stood, on average, in each of some equal parts of training.

    Args:
        updates: of `results.load_updates`, for one method and task.
        count: how many parts.

    Returns:
        Columns kl (per action) and reward, a row a part, the mean over the runs of the means over their updates.
    """
    rows = []
    for _, run in updates.sort_values("update").groupby("seed"):
        part = np.arange(len(run)) * count // len(run)
        rows.append(run.groupby(part)[["kl_per_action", "mean_reward"]].mean())
    table = pd.concat(rows).groupby(level=0).mean()
    return table.rename(columns={"kl_per_action": "kl", "mean_reward": "reward"}).reset_index(drop=True)
