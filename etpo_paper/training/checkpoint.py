"""The checkpoint of a run: everything that decides what comes next, written whole after each update."""

from pathlib import Path
from typing import Any

import torch

from etpo_core.errors import UserError
from etpo_paper.base.provenance import write_tensors

FORMAT = 3  # of what `loop.train` puts into a checkpoint; a run does not go on from a checkpoint of another format


def write_checkpoint(path: Path, fingerprint: str, state: dict[str, Any]) -> None:
    """Puts a state in place of the one before, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, {"format": FORMAT, "fingerprint": fingerprint, **state})


def read_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state that a run stopped in, or None where there is none or it belongs to other settings.

    Raises:
        UserError: a file beside it has lost rows that the state counts on; nothing was changed.
    """
    state = _load(path)
    if state is None or (state.get("format"), state.get("fingerprint")) != (FORMAT, fingerprint):
        return None
    _check_lengths(path.parent.parent, state["lengths"])
    return state


def is_damaged(path: Path) -> bool:
    """Whether there is a file that holds no checkpoint, of these settings or of others."""
    return path.exists() and _load(path) is None


def _load(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=False)  # our own file, never from elsewhere
    except Exception:
        return None  # cannot happen to a file put in place whole; a damaged disk costs the run, not the user
    return state if isinstance(state, dict) else None


def _check_lengths(folder: Path, lengths: dict[str, int]) -> None:
    for name, expected in lengths.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else 0
        if size < expected:
            raise UserError(
                f"{file} has {size} bytes, but {expected} when the run stopped: restore the file, and the run goes on; "
                f"or rename {folder} and make the run again"
            )
