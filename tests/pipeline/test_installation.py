"""One source of versions: what is locked serves all dependencies, and the hashes are those of the locked versions."""

import importlib.metadata
import re
import tomllib

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from etpo_paper.base import paths

PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def pins(name):
    found = [(canonicalize_name(package), version) for package, version in PIN.findall((paths.ROOT / name).read_text())]
    assert len(dict(found)) == len(found), "a package is pinned twice"
    return dict(found)


def test_every_dependency_is_locked_to_a_version_that_it_allows():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    extras, locked = project["optional-dependencies"], pins("requirements.lock")
    texts = [*project["dependencies"], *extras["paper"], *extras["test"], *extras["docs"]]
    wanted = [Requirement(text) for text in texts]
    wrong = [
        str(need)
        for need in wanted
        if need.name != "etpo" and not need.specifier.contains(locked.get(canonicalize_name(need.name), "0"))
    ]
    assert not wrong


def test_the_hashes_are_of_the_locked_versions():
    locked = pins("requirements.lock")
    del locked["torch"]  # its builds differ from index to index
    assert pins("requirements.hashes") == locked, "write them again: make hashes"
    entries = re.split(r"^(?=\S)", (paths.ROOT / "requirements.hashes").read_text(), flags=re.MULTILINE)
    assert [entry for entry in entries if entry.strip() and "--hash=sha256:" not in entry] == []


def test_what_is_locked_can_be_installed_for_every_version_of_python_that_the_project_allows():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
    oldest, locked = project["requires-python"].removeprefix(">="), pins("requirements.lock")
    # Another version may be installed here than the one that is locked; it says nothing about that one.
    installed = {canonicalize_name(d.name): d for d in importlib.metadata.distributions()}
    here = [installed[n] for n, version in locked.items() if n in installed and installed[n].version == version]
    newer = [d.name for d in here if oldest not in SpecifierSet(d.metadata.get("Requires-Python", ""))]
    assert len(here) > 100 and newer == []
