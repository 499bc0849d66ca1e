"""How much reward a policy can earn at each distance from the language model: the notebook `frontier`.

Of all policies with the same KL(π ‖ ρ) in a state, π*(a) = ρ(a) exp(r(a) / β) / Z earns the most, where β is the price
of a nat. It is the policy that entropy-regularised learning looks for (arXiv 2402.06700), with a whole program as the
action. Programs that the untrained model wrote are draws from ρ, so weighting each by exp(r / β) estimates the mean
reward of π* and its KL without any training. For all β together these form a frontier that no policy can pass, except
by programs that ρ writes too rarely to be in the sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from etpo_core.errors import UserError
from etpo_paper.base.sections import Section
from etpo_paper.base.settings import load_settings
from etpo_paper.report import notebook, plotting, results
from etpo_paper.report.names import label, ordered, task_label
from etpo_paper.report.tables import Table, number_cell

LEAST_EFFECTIVE = 10.0  # programs; an estimate that rests on fewer says more about them than about the model
LEARNERS = ("ppo_kl", "etpo", "etpo_memory", "etpo_center_memory")
UNTRAINED = "reflection"  # does not learn, so that its first attempts are draws from the language model
PARTS = 8  # of training
_COLUMNS = 2  # panels side by side


class SoftOptimum(NamedTuple):
    """The best policy for one price of a nat.

    Attributes:
        reward: its mean reward.
        kl: its KL to the reference, nats per action.
        effective: effective sample size, the number of equally weighted programs that would estimate as well.
    """

    reward: float
    kl: float
    effective: float


def soft_optimum(rewards: np.ndarray, beta: float) -> SoftOptimum:
    """The policy ρ exp(r/β) / Z, estimated from programs of the reference.

    With weights wᵢ = exp(rᵢ/β) / Σⱼ exp(rⱼ/β): E[r] = Σ wᵢ rᵢ, KL = Σ wᵢ ln (N wᵢ), effective sample size 1 / Σ wᵢ².

    Args:
        rewards: rewards of the programs that the reference wrote in one state, failures included, [N].
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
    """The frontier from the reference itself (β = ∞) to where fewer than `LEAST_EFFECTIVE` programs count.

    Args:
        rewards: see `soft_optimum`.
        points: how many values of β are tried, evenly on a logarithmic scale from 100 to 0.001.

    Returns:
        Columns beta, reward and kl, a row for each point, sorted by rising kl.
    """
    rows = [(beta, *soft_optimum(rewards, beta)) for beta in np.geomspace(100.0, 0.001, points)]
    table = pd.DataFrame(rows, columns=["beta", "reward", "kl", "effective"])
    return table.loc[table["effective"] >= LEAST_EFFECTIVE, ["beta", "reward", "kl"]]


def kl_needed(table: pd.DataFrame, reward: float) -> float:
    """The KL at which a frontier earns a reward.

    Args:
        table: see `frontier`.
        reward: mean reward.

    Returns:
        Nats per action; 0 for a reward below the frontier's beginning, NaN for one beyond its end.
    """
    if not len(table) or reward > table["reward"].max():
        return float("nan")
    return float(np.interp(reward, table["reward"], table["kl"]))


def phases(updates: pd.DataFrame, count: int) -> pd.DataFrame:
    """The mean KL and reward of a method on a task in each of some equal parts of training.

    Args:
        updates: see `results.load_updates`; of one method and task.
        count: number of parts.

    Returns:
        Columns kl (per action) and reward, a row for each part: the mean over runs of the mean over a run's updates.
    """
    rows = []
    for _, run in updates.sort_values("update").groupby("seed"):
        part = np.arange(len(run)) * count // len(run)
        rows.append(run.groupby(part)[["kl_per_action", "mean_reward"]].mean())
    table = pd.concat(rows).groupby(level=0).mean()
    return table.rename(columns={"kl_per_action": "kl", "mean_reward": "reward"}).reset_index(drop=True)


@dataclass(frozen=True, eq=False)
class Distances:
    """What the notebook shows.

    Attributes:
        rewards: task -> rewards of the untrained model's first attempts, [N].
        frontiers: task -> see `frontier`.
        updates: updates of the methods that train.
        learners: methods that train and have finished runs.
        methods: the section `methods` of the settings, for each method's own β.
        stand_ins: see `results.stand_ins`.
        notes: see `results.notes`.
    """

    rewards: dict[str, np.ndarray]
    frontiers: dict[str, pd.DataFrame]
    updates: pd.DataFrame
    learners: list[str]
    methods: Section
    stand_ins: dict[str, str]
    notes: list[str]

    def paths(self, task: str) -> Iterator[tuple[str, pd.DataFrame, int]]:
        """Each method that has runs on a task, with its `phases` and the number of its seeds."""
        for method in self.learners:
            runs = self.updates[(self.updates["method"] == method) & (self.updates["task"] == task)]
            if len(runs):
                yield method, phases(runs, PARTS), runs["seed"].nunique()


def load(scale: str) -> Distances:
    """Reads the runs of a scale.

    Raises:
        UserError: no task has finished runs both of the untrained model and of a method that trains.
    """
    settings, steps, updates = load_settings(scale), results.load_steps(scale), results.load_updates(scale)
    # The first step of an episode starts from one state, the task; later ones from that of a failed program.
    untrained = steps[(steps["method"] == UNTRAINED) & (steps["episode_step"] == 1)]
    updates = updates[updates["method"].isin(LEARNERS)]
    tasks = sorted(set(untrained["task"]) & set(updates["task"]))
    if not tasks:
        raise UserError(f"no task of scale {scale} has finished runs of reflection and of a trained method")
    shown = pd.concat([untrained, updates])
    rewards = {task: untrained.loc[untrained["task"] == task, "reward"].to_numpy() for task in tasks}
    return Distances(
        rewards=rewards,
        frontiers={task: frontier(of_task) for task, of_task in rewards.items()},
        updates=updates,
        learners=results.finished_methods(updates, LEARNERS),
        methods=settings.methods,
        stand_ins=results.stand_ins(results.load_cards(scale)),
        notes=results.notes(scale, shown[shown["task"].isin(tasks)], [UNTRAINED, *LEARNERS], intervals=False),
    )


def ends(data: Distances) -> pd.DataFrame:
    """Where each method ends on each task, and what the best policy would pay for the same reward.

    Returns:
        Columns task, method, seeds, reward and kl (of the last part of training), kl_needed (see there), beta (the
        method's own), best_reward and best_kl (of the best policy for that β) and programs (that the frontier rests
        on); a row for each task and method.
    """
    rows = []
    for task, rewards in data.rewards.items():
        for method, path, seeds in data.paths(task):
            reward, kl, beta = float(path["reward"].iloc[-1]), float(path["kl"].iloc[-1]), data.methods[method].beta
            optimum = soft_optimum(rewards, beta)
            rows.append(
                {
                    "task": task,
                    "method": method,
                    "seeds": seeds,
                    "reward": reward,
                    "kl": kl,
                    "kl_needed": kl_needed(data.frontiers[task], reward),
                    "beta": beta,
                    "best_reward": optimum.reward,
                    "best_kl": optimum.kl,
                    "programs": len(rewards),
                }
            )
    return pd.DataFrame(rows)


def answer(data: Distances, ends: pd.DataFrame) -> str:
    """Reward and distance of each method beside those of the best policies, means over tasks.

    Args:
        data: what the notebook shows.
        ends: see `ends`.
    """
    by_method = ends.groupby("method")[["reward", "kl", "kl_needed", "best_reward", "best_kl"]].mean()
    texts = [
        f"{label(method)} {row['reward']:.2f} at {row['kl']:.1f} nats per action, which the best policy earns at "
        f"{row['kl_needed']:.1f}; the best for its own β would earn {row['best_reward']:.2f} at {row['best_kl']:.1f}"
        for method, row in ((method, by_method.loc[method]) for method in ordered(by_method.index))
    ]
    return notebook.answer(f"At the end of training (last eighth), mean over tasks: {'; '.join(texts)}.", data.notes)


def figure(data: Distances) -> Figure:
    """The frontier of each task, and the path of each method from the language model to where it ends."""
    count = len(data.frontiers)
    width = (plotting.PAGE_WIDTH - 0.4) / min(_COLUMNS, count)
    figure, used = plotting.panels(count, _COLUMNS, width, 1.9, "mean reward", extra_height=0.3, sharex=True)
    for axes, (task, best) in zip(used, data.frontiers.items(), strict=True):
        axes.plot(best["kl"], best["reward"], color="black", linewidth=1.6, label="best possible (estimate)")
        for method, path, _ in data.paths(task):
            axes.plot(path["kl"], path["reward"], marker="o", markersize=3, **plotting.line(method))
            axes.plot(path["kl"].iloc[-1:], path["reward"].iloc[-1:], "o", markersize=7, color=plotting.colour(method))
        axes.set_title(task_label(task, task in data.stand_ins))
    for size, name in ((3, "mean of an eighth of training"), (7, "the last eighth")):
        used[0].plot([], [], "o", markersize=size, color="#555555", label=name)
    plotting.label_lowest(used, _COLUMNS, "KL per action, nats")
    figure.tight_layout()
    plotting.legend_above(figure, used[:1])
    plotting.footnote(figure, data.notes)
    return figure


def table(data: Distances, ends: pd.DataFrame) -> Table:
    """Where each method ends, beside the frontier.

    Args:
        data: what the notebook shows.
        ends: see `ends`.
    """
    rows = ends.to_dict("records")
    shown = pd.DataFrame(
        {
            "Task": [task_label(row["task"], row["task"] in data.stand_ins) for row in rows],
            "Method": [label(row["method"]) for row in rows],
            "Reward": [f"{row['reward']:.2f}" for row in rows],
            "KL": [f"{row['kl']:.1f}" for row in rows],
            "KL needed": [number_cell(row["kl_needed"], ".1f") for row in rows],
            "β": [f"{row['beta']:g}" for row in rows],
            "Best reward at β": [f"{row['best_reward']:.2f}" for row in rows],
            "Its KL": [f"{row['best_kl']:.1f}" for row in rows],
        }
    )
    caption = "Mean reward and KL per action (nats) at the end of training, beside the best policies."
    return Table(ends, caption, shown, data.notes)
