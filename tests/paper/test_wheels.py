"""One exact wheel, fetched with a pip that stands in for the real one."""

import hashlib
import subprocess
import sys

import pytest

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.wheels import fetch_wheel

CONTENT = b"x"
WHEEL, SHA256 = "p-1-cp311-cp311-manylinux_2_28_x86_64.whl", hashlib.sha256(CONTENT).hexdigest()
WRITES = "import sys, pathlib; p = sys.argv; pathlib.Path(p[p.index('--dest') + 1], {name!r}).write_bytes(b'x')"


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Lets a line of Python be what `pip download` does; returns the commands that were given."""
    monkeypatch.setattr(paths, "DOWNLOADS", tmp_path / "downloads")
    real, commands = subprocess.run, []

    def does(code):
        def run(command, **options):
            assert command[1:3] == ["-m", "pip"] and "--no-deps" in command
            commands.append(command)
            return real([sys.executable, "-c", code, *command[3:]], **options)

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    return does


def test_a_wheel_is_fetched_once_for_the_platform_in_its_name(pip):
    commands = pip(WRITES.format(name=WHEEL))
    path = fetch_wheel("p==1", WHEEL, SHA256)
    assert path.read_bytes() == CONTENT and fetch_wheel("p==1", WHEEL, SHA256) == path
    (command,) = commands
    places = [command.index(name) + 1 for name in ("--implementation", "--python-version", "--platform")]
    assert [command[place] for place in places] == ["cp", "311", "manylinux_2_28_x86_64"]


def test_a_wheel_for_all_platforms_asks_for_none(pip):
    commands = pip(WRITES.format(name="p-1-py3-none-any.whl"))
    fetch_wheel("p==1", "p-1-py3-none-any.whl", SHA256)
    assert "--platform" not in commands[0]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('WARNING: x\\nERROR: No matching distribution')", "No matching distribution.*network"),
        ("import sys; sys.exit('python: No module named pip')", "has no pip: install it"),
        ("pass", "no reason given"),
    ],
)
def test_a_wheel_that_cannot_be_had_is_one_line(pip, code, message):
    pip(code)
    with pytest.raises(UserError, match=message) as caught:
        fetch_wheel("p==1", WHEEL, SHA256)
    assert "\n" not in str(caught.value) and f"put {WHEEL} into" in str(caught.value)


def test_another_file_is_refused(pip):
    pip(WRITES.format(name=WHEEL))
    with pytest.raises(UserError, match="damaged or another version .1 bytes.*delete it and run again") as caught:
        fetch_wheel("p==1", WHEEL, "0" * 64)
    assert "\n" not in str(caught.value)
