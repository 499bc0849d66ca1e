"""The words in which figures and tables speak of methods, tasks and counts.

Every method has one label and one place in the order of legends and tables, fixed here and nowhere else. Nothing here
draws, so that the readers of raw results can use the same words without loading matplotlib.
"""

import math
from collections.abc import Iterable

# In the order of every legend and table: baselines without training come first, ablations last.
LABELS = {
    "reflection_gpt4": "Reflection (GPT-4)",
    "reflection": "Reflection",
    "ppo_no_kl": "PPO without KL",
    "ppo_kl": "PPO-KL",
    "ppo_kl_memory": "PPO-KL with memory",
    "ntpo": "NTPO",
    "poad": "POAD",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "tbrm": "TBRM",
    "shiq": "ShiQ",
    "oreo": "OREO",
    "released": "Released code",
    "etpo": "ETPO",
    "etpo_tried": "ETPO with a change",
    "etpo_memory": "ETPO with memory",
    "etpo_center_memory": "ETPO centred, with memory",
    "etpo_no_reflection": "ETPO without reflection",
    "etpo_action_level": "ETPO without token-level backup",
}

# This project's own additions to the methods of the paper; figures show them apart.
ADDITIONS = ("ppo_kl_memory", "etpo_memory", "etpo_center_memory")

DAGGER = "†"
STAND_IN_NOTE = f"{DAGGER} stand-in data, not the paper's: the table is replaced by a declared substitute."


def ordered(methods: Iterable[str]) -> list[str]:
    """The methods in the order of every legend and table; methods without a label follow by name."""
    rank = {name: position for position, name in enumerate(LABELS)}
    return sorted(set(methods), key=lambda name: (rank.get(name, len(rank)), name))


def label(method: str) -> str:
    """The name that a reader sees, e.g. "PPO-KL" for `ppo_kl`."""
    return LABELS.get(method, method)


def task_label(task: str, stand_in: bool | str | float | None) -> str:
    """The task's name with a dagger if its data are a stand-in.

    Args:
        task: name of the task, or of a text that perplexity is measured on.
        stand_in: whether, or which text says that, a stand-in is used. None, NaN and "" say that none is.
    """
    own = not stand_in or (isinstance(stand_in, float) and math.isnan(stand_in))
    return task if own else f"{task}{DAGGER}"


def counted(number: int, thing: str) -> str:
    """A number with its noun, e.g. "1 task" or "4 tasks"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
