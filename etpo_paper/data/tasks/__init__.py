"""The fourteen tables that the agent writes classifiers for.

`TASKS` says what each task is, `prepare_task` gets its table from a source and preprocesses it as the paper does,
`save_task` and `load_task` keep it under data/tables. Every table is checked, on the way in and again on each load,
against the rows, class counts and fingerprint of the registry; a stand-in says so in `Task.stand_in`.
"""

from etpo_paper.data.tasks.registry import TASKS, StandIn, TaskSpec
from etpo_paper.data.tasks.sources import SOURCES, prepare_task
from etpo_paper.data.tasks.table import Task, load_task, save_task

__all__ = ["SOURCES", "TASKS", "StandIn", "Task", "TaskSpec", "load_task", "prepare_task", "save_task"]
