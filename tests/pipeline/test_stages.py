"""The stages of dvc.yaml: `dvc repro` fails as a whole where one of them needs what nobody makes."""

import ast
import fcntl
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings, read_params, scales
from pipeline import entry
from pipeline.select import selection

OURS = ("etpo_core", "etpo_paper", "pipeline")
OUTS = ("outs", "metrics", "plots")
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
            made += [o.replace("${item}", item) for o in _paths(sum((do.get(kind, []) for kind in OUTS), []))]
    missing = [
        (name, path)
        for name, deps in needed.items()
        for path in deps
        if "${" not in path and path not in made and not any(k == path or k.startswith(f"{path}/") for k in kept)
    ]
    assert not missing


def test_every_notebook_is_run_by_a_stage():
    drawn = {"tuning", "advantages"}
    for stage in ("figures", "world_figures", "table_figures", "environment_figures"):
        drawn |= {*STAGES[stage]["matrix"]["notebook"]}
    assert drawn == {path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")} - {"00_index"}  # which draws nothing


def _imported(source):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(name):
    path = paths.ROOT.joinpath(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _closure(sources):
    """Our files that some sources import, directly or not, wherever in a file the import stands."""
    waiting, found = list(sources), set()
    while waiting:
        for name in _imported(waiting.pop()):
            parts = name.split(".")
            if parts[0] not in OURS:
                continue
            for file in filter(None, (_file(".".join(parts[:end])) for end in range(1, len(parts) + 1))):
                if file not in found:
                    found.add(file)
                    waiting.append(file.read_text())
    without_code = {file for file in found if len(ast.parse(file.read_text()).body) == 1}  # a docstring
    no_number = {paths.ROOT / "pipeline" / "__init__.py", paths.ROOT / "etpo_core" / "__init__.py"}  # speed, a version
    return {str(file.relative_to(paths.ROOT)) for file in found - without_code - no_number}


def _code(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_all_code_that_it_imports_and_on_no_other(name):
    do = STAGES[name].get("do", STAGES[name])
    commands = do["cmd"] if isinstance(do["cmd"], list) else [do["cmd"]]
    scripts = {f"pipeline/{module}.py" for command in commands for module in re.findall(r"-m pipeline\.(\w+)", command)}
    deps = _paths(do["deps"])
    notebooks = STAGES[name].get("matrix", {}).get("notebook", [d for d in deps if d.startswith("notebooks/")])
    sources = [paths.ROOT.joinpath(script).read_text() for script in scripts]
    sources += [_code(paths.NOTEBOOKS / f"{Path(notebook).stem}.ipynb") for notebook in notebooks]
    needed = _closure(sources) | scripts
    code = [dep for dep in deps if dep.split("/")[0] in OURS]
    assert sorted(file for file in needed if not any(file == d or file.startswith(f"{d}/") for d in code)) == []
    assert [d for d in code if not any(file == d or file.startswith(f"{d}/") for file in needed)] == []


@pytest.mark.parametrize("name", STAGES)
def test_a_command_is_one_line_and_no_result_is_deleted_before_it(name):
    """DVC runs each line of a command in a shell of its own, and deletes outs that do not persist before a stage."""
    do = STAGES[name].get("do", STAGES[name])
    commands = do["cmd"] if isinstance(do["cmd"], list) else [do["cmd"]]
    assert all("\n" not in command.strip() and command.startswith("python -m pipeline.") for command in commands)
    outs = sum((do.get(kind, []) for kind in OUTS), [])
    assert outs and all(next(iter(out.values()))["persist"] is True for out in outs)


def test_a_clone_is_up_to_date():
    """After a change of code that moves no number, `dvc repro` or, if it cannot move one, `dvc commit --force`."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {}


def test_a_second_make_repro_is_told_in_one_line(tmp_path):
    makefile = (paths.ROOT / "Makefile").read_text()
    (tmp_path / "Makefile").write_text(re.search(r"^repro:.*?\n\n", makefile, re.MULTILINE | re.DOTALL)[0])
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    with (tmp_path / ".dvc" / "tmp" / "make-repro").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = subprocess.run(["make", "repro"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: another `make repro` is at work in this folder; wait for it"


def test_the_selection_in_git_is_the_laptop_scale_of_today():
    listed = subprocess.run(["git", "ls-files", "selected.yaml"], cwd=paths.ROOT, capture_output=True, text=True)
    assert listed.stdout == "selected.yaml\n"
    assert yaml.safe_load((paths.ROOT / "selected.yaml").read_text())["selected"] == selection(load_settings("laptop"))


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


@pytest.mark.parametrize(
    ("error", "first"),
    [("KeyboardInterrupt", "stopped before anything was done"), ("ValueError", "Traceback (most recent call last):")],
)
def test_ctrl_c_while_libraries_are_loaded_is_one_line(error, first):
    command = [sys.executable, "-c", f"import pipeline\nraise {error}"]
    done = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    lines = done.stderr.splitlines()
    assert lines[0] == first
    assert (len(lines) == 1) == (error == "KeyboardInterrupt")
