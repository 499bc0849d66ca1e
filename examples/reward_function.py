"""The executor as a reward function: the program in a completion earns its ROC AUC, or -1 if it fails.

    python examples/reward_function.py

The signature is that of TRL, whose trainers hand over a batch at a time and the columns of the dataset by name. Here
the column `table` names the table that a row's prompt is about:

    GRPOTrainer(model, reward_funcs=rewards(pool, tables), train_dataset=dataset)
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_wine

from etpo_core.sandbox import SandboxPool, Status

FENCED = re.compile(r"```(?:python|py)?\n(.*?)(?:```|\Z)", re.DOTALL)
Reward = Callable[..., list[float | None]]


def program_of(completion: str | list[dict[str, str]]) -> str:
    """The first fenced block of a text, or of a chat's last message; all of it if there is none."""
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    found = FENCED.search(text)
    return found[1] if found else text


def rewards(pool: SandboxPool, tables: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Reward:
    """A reward function that scores each completion on one of the tables: numbers [rows, columns], and labels."""

    def reward(prompts: list, completions: list, table: list[str], **columns: Any) -> list[float | None]:
        earned: dict[int, float | None] = {}
        for name in set(table):
            of_table = [i for i, wanted in enumerate(table) if wanted == name]
            programs = [program_of(completions[i]) for i in of_table]
            for i, outcome in zip(
                of_table, pool.score_many(programs, *tables[name], split_seeds=range(5)), strict=True
            ):
                # A fault of the executor says nothing about the program; TRL takes None for "no reward".
                failed = None if outcome.status is Status.INFRASTRUCTURE_FAULT else -1.0
                earned[i] = outcome.score if outcome.status is Status.OK else failed
        return [earned[i] for i in range(len(completions))]

    return reward


def awaited(reward: Reward) -> Callable[..., Any]:
    """The same as a coroutine function, which TRL runs side by side with others."""

    async def reward_async(prompts: list, completions: list, **columns: Any) -> list[float | None]:
        return await asyncio.to_thread(reward, prompts, completions, **columns)

    return reward_async


COMPLETIONS = [
    "```python\ndef build_model(x_train, y_train):\n    from sklearn.naive_bayes import GaussianNB\n"
    "    return GaussianNB().fit(x_train, y_train)\n```",
    "def build_model(x_train, y_train):\n    return open('/etc/passwd').read()",
    [{"role": "assistant", "content": "I would rather not."}],
]


def main() -> list[list[float | None]]:
    """Rewards three completions on two tables, called and awaited."""
    tables = {"cancer": load_breast_cancer(return_X_y=True), "wine": load_wine(return_X_y=True)}
    given = {"prompts": ["Write a classifier."] * 3, "completions": COMPLETIONS, "table": ["cancer", "wine", "wine"]}
    with SandboxPool(workers=2) as pool:
        reward = rewards(pool, tables)
        found = [reward(**given, completion_ids=[]), asyncio.run(awaited(reward)(**given, completion_ids=[]))]
    for line in found:
        print(line)
    return found


if __name__ == "__main__":
    main()
