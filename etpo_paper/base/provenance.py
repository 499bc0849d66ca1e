"""Where a result comes from: hashes, versions, device and commit; and files that are written whole or not at all.

Every run has a run card beside its raw results. It says all that is needed to make them again or to doubt them: the
parameters, the source of the data and whether it is a stand-in, the weights, and what this module finds out.
"""

import csv
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from etpo_paper.base import paths

PACKAGES = ("torch", "transformers", "peft", "numpy", "scikit-learn")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def device_name(device: torch.device) -> str:
    """What a device is, e.g. "NVIDIA H200" or "cpu (AVX512)"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})"


def commit() -> str | None:
    """The commit of the checkout, with "+changes" where tracked code differs from it; None outside git."""
    git = ["git", "-C", str(paths.ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        code = ["etpo_core", "etpo_paper", "pipeline", "params.yaml", "studies"]
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changed else "")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
    os.replace(part, path)


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Writes a file for `torch.load` whole or not at all; the folder must exist."""
    # The bytes are made in memory first, because torch's own writer hides that a full disk was the reason.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    part = path.with_name(path.name + ".part")
    part.write_bytes(buffer.getbuffer())
    os.replace(part, path)
