"""The runs of `etpo fit` in a folder: how far each is, and how to go on with those that were stopped."""

import time
from pathlib import Path

from etpo_core.errors import UserError
from etpo_paper.use import folder

EVERY = 5.0  # seconds between two looks of `watch`


def watch(place: Path) -> None:
    """Prints the runs in a folder every few seconds, until no process is at any of them.

    Raises:
        UserError: there is no run.
    """
    while runs(place):
        time.sleep(EVERY)
        print()


def runs(place: Path) -> bool:
    """Prints the runs in a folder, and for each that was stopped the command that goes on with it.

    Args:
        place: the folder, or that of one run.

    Returns:
        Whether a process is at one of them.

    Raises:
        UserError: there is none.
    """
    inside = sorted(path for path in place.iterdir() if (path / "fit.json").is_file()) if place.is_dir() else []
    places = [place] if (place / "fit.json").is_file() else inside
    if not places:
        raise UserError(f"{place}: no runs there; `etpo fit TABLE.csv --target NAME --out {place}/NAME` makes one")
    rows = [("folder", "state", "method", "model", "seed", "steps", "last fifth", "best reward")]
    go_on, at_work = [], False
    for one in places:
        asked, _ = folder.read(one)
        state = folder.state_of(asked.run(one))
        last, best = ("-" if value is None else f"{value:.4f}" for value in (state.last_fifth, state.best))
        steps = f"{state.steps} of {asked.steps}"
        rows.append((str(one), state.state, asked.method, asked.model, str(asked.seed), steps, last, best))
        at_work = at_work or state.state == "held"
        if state.state == "begun":
            go_on.append(asked.command(one))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    for command in go_on:
        print(f"to go on: {command}")
    return at_work
