"""What a wheel brings: the commands find their settings, starts and tables in a folder that holds nothing."""

import os
import shutil
import subprocess
import sys

import pytest
from stages import CHECKOUT

pytest.importorskip("setuptools", reason="setuptools is not installed: pip install setuptools")

FOUND = """
from pathlib import Path
from etpo_paper.base import paths
from etpo_paper.base.settings import load_defaults
from etpo_paper.data.tasks import TASKS, prepare_task
from etpo_paper.model.models import card
assert Path(paths.__file__).is_relative_to(Path("../lib").resolve()), paths.__file__
assert load_defaults().environment.max_steps == 5
assert card("smollm2")["start"] and card("tiny")["start"]
print(paths.ROOT == Path.cwd(), len([prepare_task(name) for name in TASKS]))
"""


def test_settings_starts_and_tables_are_found_without_the_repository(tmp_path):
    listed = ["git", "ls-files", "setup.py", "pyproject.toml", "README.md", "LICENSE", "params.yaml"]
    kept = subprocess.run(
        [*listed, "starts", "data/embedded", "etpo_core", "etpo_paper"], cwd=CHECKOUT, capture_output=True, text=True
    )
    for name in kept.stdout.splitlines():
        if (CHECKOUT / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, tmp_path / "source" / name)
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", tmp_path / "lib"]
    done = subprocess.run(build, cwd=tmp_path / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "params.yaml").write_text("of: something else\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    environment.pop("ETPO_ROOT", None)
    done = subprocess.run(
        [sys.executable, "-c", FOUND], cwd=tmp_path / "empty", capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "14"]
