"""The whole corpus of the executor once more, as an ordinary user: the rights of root make no difference."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from unprivileged import CHECKOUT, NOBODY, command_as_nobody

pytestmark = pytest.mark.nightly


@pytest.fixture
def home():
    """A folder that the ordinary user owns and can reach, which pytest's own folders are not."""
    folder = Path(f"/tmp/etpo-nobody-{os.getpid()}")
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="these tests run as an ordinary user already")
def test_the_corpus_as_an_ordinary_user(home):
    drop, why_not = command_as_nobody()
    if drop is None:
        pytest.skip(why_not)
    sandbox = CHECKOUT / "tests" / "sandbox"
    corpus = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", "--confcutdir", sandbox, "-m", ""]
    corpus += ["--basetemp", home / "pytest", sandbox / "test_sandbox_corpus.py"]
    ours = os.pathsep.join(map(str, (CHECKOUT, CHECKOUT / "tests")))  # the conftest above the folder is cut off
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(home), "COLUMNS": "200", "PYTHONPATH": ours}
    ended = subprocess.run(
        [*drop, *corpus], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=1800
    )
    failures = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert ended.returncode == 0, "\n".join(failures) or (ended.stdout + ended.stderr)[-3000:]
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) > 700, ended.stdout[-300:]
