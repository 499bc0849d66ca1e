"""The checkpoint of a run: everything that decides what comes next, written whole after each update."""

from pathlib import Path
from typing import Any

import torch

from etpo_paper.base.provenance import write_tensors

FORMAT = 2  # of what `loop.train` puts into a checkpoint; a run does not go on from a checkpoint of another format


def write_checkpoint(path: Path, fingerprint: str, state: dict[str, Any]) -> None:
    """Puts a state in place of the one before, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, {"format": FORMAT, "fingerprint": fingerprint, **state})


def read_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state that a run stopped in, or None where there is none or it belongs to other settings."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=False)  # our own file, never from elsewhere
    except Exception:
        return None  # cannot happen to a file put in place whole; a damaged disk costs the run, not the user
    return state if (state.get("format"), state["fingerprint"]) == (FORMAT, fingerprint) else None
