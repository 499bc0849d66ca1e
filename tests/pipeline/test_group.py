"""Several runs in one process: the files of each are those of the run alone."""

import itertools
import shutil

import pytest
import yaml

from etpo_core.errors import UserError
from etpo_paper.base.lock import HELD, sole_maker
from etpo_paper.training.run import Run
from pipeline import group
from pipeline import train as made_by

FILES = ("steps.csv", "updates.csv", "samples.jsonl", "best_code.py", "checkpoint/policy/adapter_model.safetensors")
RUNS = [Run("smoke", m, "kidney-stone", s) for m, s in (("etpo", 0), ("ppo_kl", 0), ("etpo_action_level", 1))]


@pytest.fixture
def root(toy_project, tmp_path, at):
    """The project of the tests, with three updates to a run and without any run."""
    root = tmp_path / "project"
    shutil.copytree(toy_project, root)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["scales"]["smoke"]["training"] |= {"env_steps": 12, "lora_layers": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    at(root)
    return root


def made(runs):
    """The files of runs, which are then taken away."""
    found = {(run, name): (run.folder / name).read_bytes() for run in runs for name in FILES}
    for run in runs:
        assert run.card.exists() and not run.state.exists()
        shutil.rmtree(run.folder)
    return found


def alone():
    for run in RUNS:
        made_by.run_stage(run, made_by.resolve(run.scale, run.method))
    return made(RUNS)


def test_a_group_leaves_what_each_run_leaves_alone_however_it_was_made(root, stage, monkeypatch):
    expected = alone()
    assert group.make(RUNS) == [None] * 3
    assert made(RUNS) == expected
    # Two of them are stopped after an update, and all three are gone on with in another order.
    whole = made_by.train

    def stops(run, *given):  # the first one; which run is furthest then depends on the executor
        for row in whole(run, *given):
            yield row
            if run == RUNS[0]:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(made_by, "train", stops)
        with pytest.raises(KeyboardInterrupt):
            group.make(RUNS[:2])
    assert RUNS[0].state.exists() and not any(run.card.exists() for run in RUNS)
    assert group.make(RUNS[::-1]) == [None] * 3
    assert made(RUNS) == expected


def test_a_run_that_fails_or_is_held_leaves_the_others_to_be_finished(root, stage, monkeypatch):
    whole = made_by.train

    def fails(run, *given):
        yield from itertools.islice(whole(run, *given), 1)
        if run == RUNS[1]:
            raise UserError("the disk is full")
        yield from whole(run, *given)

    names = [f"{run.method}/{run.task}/{run.seed}" for run in RUNS]
    with monkeypatch.context() as patch, sole_maker(RUNS[2].folder):
        patch.setattr(made_by, "train", fails)
        done = stage("group", "--scale", "smoke", *names)
    assert done.returncode == 2 and f"{RUNS[1].folder}: the disk is full" in done.stderr
    assert "held by another process" in done.stderr and RUNS[0].card.exists() and RUNS[1].state.exists()
    with sole_maker(RUNS[2].folder):
        done = stage("group", "--scale", "smoke", *names)
    assert done.returncode == HELD and RUNS[1].card.exists() and not RUNS[2].card.exists()
    done = stage("group", "--scale", "smoke", *names)
    assert done.returncode == 0 and done.stdout.count("kept") == 2 and RUNS[2].card.exists()


@pytest.mark.parametrize(
    "names, message",
    [(["etpo/kidney-stone"], "expected METHOD/TASK/SEED"), (["etpo/kidney-stone/-1"], "expected METHOD/TASK/SEED"),
     (["etpo/kidney/0"], "kidney"), (["nothing/kidney-stone/0"], "nothing")],
)  # fmt: skip
def test_a_mistake_is_one_line(root, stage, names, message):
    done = stage("group", "--scale", "smoke", *names)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
