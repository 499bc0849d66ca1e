"""The files of a run that grow while it goes on, and can be cut back to a checkpoint after a stop.

`steps.csv`, `updates.csv` and `samples.jsonl` are the raw results: repeated on a machine of the same kind, a run writes
the same bytes. What a clock or the state of the machine decides stands apart and is not in git: `clock.csv` says how
long each update took, `host.json` which machine and which commit made the run.
"""

import csv
import json
import os
from pathlib import Path

from etpo_paper.report.results import STEP_COLUMNS, UPDATE_COLUMNS

CLOCK_COLUMNS = ["update", "seconds", "tokens_per_second"]
HOST = "host.json"


class RunFiles:
    """The growing files of a run; each can be cut back to an earlier length."""

    NAMES = ("steps.csv", "updates.csv", "samples.jsonl", "clock.csv")

    def __init__(self, folder: Path, lengths: dict[str, int] | None):
        """Opens the files in `folder`, empty but for their headers, or cut back to `lengths` in bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        if lengths is None:
            lengths = {name: 0 for name in self.NAMES}
        for name in self.NAMES:
            path = folder / name
            path.touch()
            os.truncate(path, lengths[name])
        self._files = {name: (folder / name).open("a", newline="", encoding="utf-8") for name in self.NAMES}
        self._steps = csv.writer(self._files["steps.csv"], lineterminator="\n")
        self._updates = csv.writer(self._files["updates.csv"], lineterminator="\n")
        self._clock = csv.writer(self._files["clock.csv"], lineterminator="\n")
        if lengths["steps.csv"] == 0:
            self._steps.writerow(STEP_COLUMNS)
            self._updates.writerow(UPDATE_COLUMNS)
            self._clock.writerow(CLOCK_COLUMNS)
            self.lengths()

    def write(self, steps: list[dict], update: dict, samples: list[dict]) -> None:
        """Appends the rows of one batch."""
        self._steps.writerows([as_text(row[c]) for c in STEP_COLUMNS] for row in steps)
        self._updates.writerow([as_text(update.get(c)) for c in UPDATE_COLUMNS])
        self._clock.writerow([as_text(update.get(c)) for c in CLOCK_COLUMNS])
        for sample in samples:
            self._files["samples.jsonl"].write(json.dumps(sample, ensure_ascii=False) + "\n")

    def lengths(self) -> dict[str, int]:
        """Puts everything on disk, safe from a power cut, and returns the length of each file in bytes."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()


def as_text(value: object) -> object:
    """Floats with six significant digits, nothing for a missing value."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
