"""What a wheel brings and asks for: files that the commands need, two packages, and no tool of the paper."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
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


REQUIRED = {"torch", "transformers", "peft", "safetensors", "gguf", "huggingface-hub", "numpy", "scipy", "pandas"}
REQUIRED |= {"scikit-learn", "threadpoolctl", "pydantic", "pyyaml", "tqdm", "filelock", "pyseccomp"}


@pytest.fixture
def source(tmp_path):
    """A copy of what a wheel is built from, so that nothing is left in the checkout."""
    listed = ["git", "ls-files", "setup.py", "pyproject.toml", "README.md", "LICENSE", "params.yaml"]
    kept = subprocess.run(
        [*listed, "starts", "data/embedded", "etpo_core", "etpo_paper"], cwd=CHECKOUT, capture_output=True, text=True
    )
    for name in kept.stdout.splitlines():
        if (CHECKOUT / name).is_file():
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, tmp_path / "source" / name)
    return tmp_path / "source"


def test_settings_starts_and_tables_are_found_without_the_repository(source, tmp_path):
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", tmp_path / "lib"]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True)
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


@pytest.mark.nightly
def test_the_wheel_holds_two_packages_and_asks_for_what_they_need(source, tmp_path):
    shutil.copytree(CHECKOUT / "pipeline", source / "pipeline")  # as in a checkout: it must not get into the wheel
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*build, "--wheel-dir", tmp_path, "."], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("etpo-*.whl"))) as wheel:
        tops = {name.partition("/")[0] for name in wheel.namelist()}
        (info,) = (top for top in tops if top.endswith(".dist-info"))
        assert tops - {info} == {"etpo_core", "etpo_paper"}
        texts = Parser().parsestr(wheel.read(f"{info}/METADATA").decode()).get_all("Requires-Dist", [])
        assert "etpo = etpo_paper.use.command:main" in wheel.read(f"{info}/entry_points.txt").decode()
    needs = [Requirement(text) for text in texts]
    plain = [n for n in needs if n.marker is None or n.marker.evaluate({"extra": "", "sys_platform": "linux"})]
    assert {canonicalize_name(need.name) for need in plain} == REQUIRED
    paper = {need.name for need in needs if need.marker and need.marker.evaluate({"extra": "paper"})}
    assert paper >= {"dvc", "jupyter", "openml", "matplotlib", "openai"}
