"""The stages of dvc.yaml: `dvc repro` fails as a whole where one of them needs what nobody makes."""

import re
import signal
import subprocess

import pytest
import yaml

from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings, read_params, scales
from pipeline import entry
from pipeline.select import selection

STAGES = yaml.safe_load((paths.ROOT / "dvc.yaml").read_text())["stages"]


def _paths(entries):
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def test_what_a_stage_needs_comes_with_the_project_or_is_made_by_another():
    listed = subprocess.run(["git", "ls-files"], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    kept = listed.stdout.splitlines()
    needed, made = {}, []
    for name, stage in STAGES.items():
        # What depends on the selected scale (`matrix`) is made by a stage of that scale.
        for item in stage.get("foreach", [""]):
            do = stage.get("do", stage)
            needed[f"{name}@{item}"] = [d.replace("${item}", item) for d in _paths(do["deps"])]
            made += [o.replace("${item}", item) for o in _paths(do["outs"])]
    missing = [
        (name, path)
        for name, deps in needed.items()
        for path in deps
        if "${" not in path and path not in made and not any(k == path or k.startswith(f"{path}/") for k in kept)
    ]
    assert not missing


def test_every_notebook_is_run_by_a_stage():
    drawn = {*STAGES["figures"]["matrix"]["notebook"], "tuning", "advantages"}
    assert drawn == {path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")}


def _resolved(text, selected, item):
    def value(match):
        first, *rest = match[1].split(".")
        if first == "selected":
            return str(selected[rest[0]])
        return str(item[rest[0]] if rest else item)

    return re.sub(r"\$\{([\w.]+)\}", value, text)


def _items(stage, selected):
    """The runs of a stage: one, or one for each entry of `foreach`, or for each value of each row of `matrix`."""
    if "foreach" in stage:
        return stage["foreach"]
    if "matrix" not in stage:
        return [{}]
    rows = {}
    for key, values in stage["matrix"].items():
        values = selected[values[len("${selected.") : -1]] if isinstance(values, str) else values
        rows[key] = [_resolved(str(value), selected, {}) for value in values]
    if not all(rows.values()):
        return []
    longest = max(map(len, rows.values()))
    return [{key: values[min(i, len(values) - 1)] for key, values in rows.items()} for i in range(longest)]


@pytest.mark.parametrize("scale", scales())
def test_the_settings_that_a_stage_depends_on_are_there(scale):
    selected, files = selection(load_settings(scale)), {}
    for name, stage in STAGES.items():
        do = stage.get("do", stage)
        for item in _items(stage, selected):
            for named in do.get("params", []):
                (file, keys) = ("params.yaml", [named]) if isinstance(named, str) else next(iter(named.items()))
                file = _resolved(file, selected, item)
                for key in keys:
                    found = files.setdefault(file, read_params(file))
                    for part in _resolved(key, selected, item).split("."):
                        assert part in found, f"{name}: {file} has no {key} ({item})"
                        found = found[part]


@pytest.mark.parametrize(("handler", "told"), [(signal.SIG_IGN, True), (signal.default_int_handler, False)])
def test_a_command_says_at_its_start_that_ctrl_c_is_off(capsys, handler, told):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with entry.one_line_errors():
            assert ("note: Ctrl-C has no effect here" in capsys.readouterr().err) == told
    finally:
        signal.signal(signal.SIGINT, before)
