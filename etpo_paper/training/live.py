"""The learning curves of a run while it goes on, for TensorBoard.

    ETPO_TENSORBOARD=1 make repro              # or any other command of the pipeline that trains
    tensorboard --logdir build/tensorboard     # beside it: all runs that were trained in this way

    etpo fit churn.csv --target churn --tensorboard
    tensorboard --logdir runs

It needs TensorBoard: `pip install tensorboard`. What is shown are the columns of `updates.csv` and the clock, over the
environment steps. Nothing of a run depends on it.

Whoever else wants to hear of each update of the runs that this process makes adds a function to `listeners`.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.training.run import Run

SWITCH = "ETPO_TENSORBOARD"
listeners: list[Callable[[Run], None]] = []  # told which run has made an update, when its checkpoint is in place


@contextmanager
def curves(run: Run, shown: bool = True) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Gives a function that adds a row of `training.loop.train` to the run's curves, and tells the listeners.

    Without the switch, or if not `shown`, nothing is drawn. The curves of a run that was interrupted go on with it.

    Raises:
        UserError: the switch is set and TensorBoard is not installed.
    """
    with _drawn(run, shown) as draw:

        def add(row: Mapping[str, Any]) -> None:
            draw(row)
            for listener in listeners:
                listener(run)

        yield add


@contextmanager
def _drawn(run: Run, shown: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    if not (shown and os.environ.get(SWITCH)):
        yield lambda row: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        message = (
            "the curves that were asked for need TensorBoard, which is not installed; run: pip install tensorboard"
        )
        raise UserError(message) from None
    place = run.folder / "tensorboard"
    if run.folder.is_relative_to(paths.RESULTS):  # where nothing but results belongs
        place = paths.ROOT / "build" / "tensorboard" / run.folder.relative_to(paths.RESULTS)
    if not run.state.exists():
        shutil.rmtree(place, ignore_errors=True)
    writers: list[SummaryWriter] = []

    def add(row: Mapping[str, Any]) -> None:
        if not writers:  # points at this step and later ones are of a process that was killed
            writers.append(SummaryWriter(str(place), purge_step=row["steps"]))
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("update", "steps"):
                writers[0].add_scalar(name, value, row["steps"])
        writers[0].flush()

    try:
        yield add
    finally:
        for writer in writers:
            writer.close()
