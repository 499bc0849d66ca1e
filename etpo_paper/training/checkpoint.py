"""The checkpoint of a run: everything that decides what comes next, written whole after each update."""

from pathlib import Path

import torch


def read_checkpoint(path: Path, mark: str) -> dict | None:
    """The state that a run stopped in, or None where there is none or it belongs to other settings."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=False)  # our own file, never from elsewhere
    except Exception:
        return None  # cannot happen to a file put in place whole; a damaged disk costs the run, not the user
    return state if state["fingerprint"] == mark else None
