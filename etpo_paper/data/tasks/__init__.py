"""The fourteen tables that the agent writes classifiers for.

`TASKS` says what each task is. `prepare_task` gets the table of a task from a source and preprocesses it as the paper
does; `save_task` writes it to data/tables and `load_task` reads it from there. Each table is compared with the row
count, class counts and fingerprint in the registry, both when it is prepared and whenever it is loaded. Where a
stand-in replaces the paper's table, `Task.stand_in` says so.
"""

from etpo_paper.data.tasks.registry import TASKS, StandIn, TaskSpec, check_task
from etpo_paper.data.tasks.sources import SOURCES, prepare_task
from etpo_paper.data.tasks.table import Task, load_task, save_task

__all__ = ["SOURCES", "TASKS", "StandIn", "Task", "TaskSpec", "check_task", "load_task", "prepare_task", "save_task"]
