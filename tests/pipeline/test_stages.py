"""The stages of dvc.yaml: `dvc repro` fails as a whole where one of them needs what nobody makes."""

import subprocess

import yaml

from etpo_paper.base import paths


def _paths(entries):
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def test_what_a_stage_needs_comes_with_the_project_or_is_made_by_another():
    stages = yaml.safe_load((paths.ROOT / "dvc.yaml").read_text())["stages"]
    listed = subprocess.run(["git", "ls-files"], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    kept = listed.stdout.splitlines()
    needed, made = {}, []
    for name, stage in stages.items():
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
