"""The command line `etpo`: training on a table of one's own, going on after a stop, proposals, lists, scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stages import CHECKOUT, move, nothing_is_timed, run_module, stop_after_an_update
from stub_executor import StubExecutor

from etpo_core.errors import UserError
from etpo_paper.base.lock import HELD, sole_maker
from etpo_paper.environment import executor as opened
from etpo_paper.environment.prompts import program
from etpo_paper.use import command, folder, propose, runs, score
from etpo_paper.use.table import read_table

TRAIN = ("--target", "left", "--model", "tiny", "--steps", "12")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The folder in which the commands run, with a table."""
    here = tmp_path_factory.mktemp("here")
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"age": rng.integers(18, 80, 60), "town": rng.choice(["Ulm", "Bonn"], 60)})
    table.assign(left=np.arange(60) % 2).to_csv(here / "staff.csv", index=False)
    return here


@pytest.fixture(scope="module")
def etpo(here, tmp_path_factory):
    """Runs the command there, with the toy model and an executor that scores programs by their text."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(CHECKOUT / "starts" / "tiny", project / "starts" / "tiny")
    shutil.copy(CHECKOUT / "params.yaml", project)
    with pytest.MonkeyPatch.context() as patch, nothing_is_timed():
        move(patch, project)
        patch.chdir(here)
        patch.setattr(opened, "SandboxPool", StubExecutor)
        yield lambda *arguments: run_module(command.__name__, *arguments)


@pytest.fixture(scope="module")
def whole(etpo, here):
    """What the command printed of a run that was not stopped, in the folder `whole`."""
    before = files(here)
    done = etpo("fit", "staff.csv", *TRAIN, "--out", "whole")
    assert done.returncode == 0, done.stderr
    made = files(here)
    assert {name for name in made if made[name] != before.get(name) and not name.startswith("whole/")} == set()
    return done


def files(place):
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def lines(text):
    return text.strip().splitlines()


def test_fit_ends_with_the_best_program_its_scores_and_the_policy(etpo, whole, here):
    assert "60 rows, 2 columns as 2 numbers; left: 0 30, 1 30" in whole.stdout and "12/12" in whole.stderr
    made = files(here / "whole")
    best = made["run/best_code.py"].decode()
    outcome = StubExecutor().score_many([best], None, None, [])[0]
    assert f"5 splits that gave a reward: mean ROC AUC {outcome.score:.4f}" in whole.stdout
    assert "10 held-out splits: mean ROC AUC" in whole.stdout and best.strip() in whole.stdout
    assert made["best_program.py"].decode().partition("\n\n")[2].startswith(best)
    assert "run/checkpoint/policy/adapter_model.safetensors" in made
    again = etpo("fit", "staff.csv", *TRAIN, "--out", "whole")
    assert again.returncode == 0 and "finished and was kept" in again.stdout
    assert lines(again.stdout)[-4:] == lines(whole.stdout)[-4:]
    ours = {name: content for name, content in files(here / "whole").items() if name.startswith("run/")}
    assert ours == {name: content for name, content in made.items() if name.startswith("run/")}


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(etpo, whole, here, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after_an_update(patch)
        done = etpo("fit", "staff.csv", *TRAIN)
    assert done.returncode == 130 and "the same command goes on" in done.stderr
    listed = etpo("runs")
    assert "runs/staff  begun" in listed.stdout and "8 of 12" in listed.stdout
    [go_on] = [line for line in lines(listed.stdout) if line.startswith("to go on: etpo ")]
    assert etpo("propose", "runs/staff").returncode == 2
    done = etpo(*go_on.removeprefix("to go on: etpo ").split())
    assert done.returncode == 0, done.stderr
    for name in ("steps.csv", "updates.csv", "best_code.py", "checkpoint/policy/adapter_model.safetensors"):
        assert (here / "runs/staff/run" / name).read_bytes() == (here / "whole/run" / name).read_bytes(), name
    assert "finished" in etpo("runs", "whole").stdout and "to go on" not in etpo("runs").stdout
    with sole_maker(here / "runs/staff/run"):
        assert "runs/staff  held" in etpo("runs").stdout
        assert etpo("fit", "staff.csv", *TRAIN).returncode == HELD


def test_the_trained_policy_proposes(etpo, whole, here, monkeypatch):
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    (here / "staff.csv").rename(here / "elsewhere.csv")  # the folder is enough
    agents, make = [], propose.Common.agent
    monkeypatch.setattr(propose.Common, "agent", lambda *given: agents.append(make(*given)) or agents[0])
    done = etpo("propose", "whole", "--count", "5")
    (here / "elsewhere.csv").rename(here / "staff.csv")
    assert done.returncode == 0, done.stderr
    assert "program 1: " in done.stdout and lines(done.stdout)[-1].startswith("5 programs, ")
    loaded = get_peft_model_state_dict(agents[0].networks.model, adapter_name="policy")
    kept = load_file(here / "whole/run/checkpoint/policy/adapter_model.safetensors")
    assert loaded.keys() == kept.keys() and all((loaded[key] == kept[key]).all() for key in kept)
    assert any(key.endswith("lora_B.weight") and kept[key].abs().max() > 0 for key in kept)
    ran = sum("held-out" in line for line in lines(done.stdout))
    assert len(list((here / "whole/proposed").iterdir())) == ran > 0


@pytest.mark.parametrize(
    "arguments, line",
    [
        (("fit", "gone.csv", *TRAIN), "gone.csv: no such file"),
        (("fit", "staff.csv", "--target", "lef", "--model", "tiny"), "no such column; it has 'left'"),
        (("fit", "staff.csv", *TRAIN, "--method", "eptx"), "unknown method"),
        (("fit", "staff.csv", *TRAIN, "--method", "reflection"), "trains no model"),
        (("fit", "staff.csv", *TRAIN, "--model", "gpt"), "unknown model"),
        (("fit", "staff.csv", *TRAIN, "--steps", "0"), "--steps 0"),
        (("fit", "staff.csv", *TRAIN, "--seed", "-1"), "--seed -1"),
        (("fit", "staff.csv", *TRAIN, "--out", "."), "holds other files"),
        (("fit", "staff.csv", *TRAIN, "--out", "staff.csv"), "is a file"),
        (("fit", "staff.csv", *TRAIN, "--out", "whole", "--seed", "1"), "holds a run with seed 0"),
        (("fit", "staff.csv", *TRAIN[2:], "--target", "town", "--out", "whole"), "holds a run with target left"),
        (("fit", "staff.csv"), "--target"),
        (("propose", "nowhere"), "no folder of `etpo fit`"),
        (("runs", "nowhere"), "no runs there"),
        (("score", "gone.py", "staff.csv", "--target", "left"), "gone.py: no such file"),
    ],
)
def test_a_mistake_is_one_line(etpo, whole, here, arguments, line):
    before = files(here)
    done = etpo(*arguments)
    assert done.returncode == 2 and line in done.stderr and len(lines(done.stderr)) == 1, done.stderr
    assert files(here) == before


def body(ran):
    """A body of build_model that runs, or fails, as the stub has it."""
    bodies = [f"    model = {number}\n" for number in range(20)]
    outcomes = StubExecutor().score_many([program(body) for body in bodies], None, None, [])
    return next(b for b, outcome in zip(bodies, outcomes, strict=True) if (outcome.score is not None) == ran)


def test_a_score_or_an_error_is_printed(etpo, here, monkeypatch):
    seen, whole = [], score.score_many
    monkeypatch.setattr(score, "score_many", lambda *given: seen.append(given[-1]) or whole(*given))
    (here / "p.py").write_text(body(True))
    done = etpo("score", "p.py", "staff.csv", "--target", "left", "--splits", "3")
    assert done.returncode == 0 and "3 reward splits: mean ROC AUC" in done.stdout
    assert seen == [(0, 1, 2), (100, 101, 102)]
    (here / "p.py").write_text(body(False))
    done = etpo("score", "p.py", "staff.csv", "--target", "left")
    assert (
        done.returncode == 1
        and "5 reward splits: fails, snippet_error: NameError: name 'z' is not defined (line 1)" in done.stdout
    )
    assert "10 held-out splits: fails" in done.stdout


def test_the_doctor_is_that_of_the_executor(etpo, monkeypatch):
    from etpo_core.sandbox import doctor

    found = {"healthy": False, "tier": "D"}
    monkeypatch.setattr(doctor, "examine", lambda: found)
    done = etpo("doctor", "--json")
    assert done.returncode == 1 and json.loads(done.stdout) == found


def test_the_table_comes_back_from_the_folder(etpo, tmp_path):
    own = read_table(Path("staff.csv"), "left")
    asked = folder.Asked("staff.csv", "left", "etpo", 12, "tiny", 0)
    folder.write(tmp_path / "f", asked, own)
    back = folder.read_table(tmp_path / "f")
    assert back.task.spec == own.task.spec and back.plan == own.plan and back.labels == own.labels
    assert np.array_equal(back.task.x, own.task.x) and back.task.sha256 == own.task.sha256
    (tmp_path / "f" / "table.npz").write_bytes(b"")
    with pytest.raises(UserError, match="missing or damaged"):
        folder.read_table(tmp_path / "f")


def test_runs_are_watched_until_no_process_is_at_one(etpo, whole, here, monkeypatch):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        folder.lock_of(here / "watched" / "one" / "run").unlink()

    monkeypatch.setattr(runs.time, "sleep", sleep)
    shutil.copytree(here / "whole", here / "watched" / "one")
    lock = folder.lock_of(here / "watched" / "one" / "run")
    lock.parent.mkdir(exist_ok=True)
    lock.touch()
    done = etpo("runs", "watched", "--watch")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert looks == [runs.EVERY] and [line[1] for line in lines if line[:1] == ["watched/one"]] == ["held", "finished"]
    assert lines[0][5:] == ["steps", "last", "fifth", "best", "reward"]
    rewards = pd.read_csv(here / "whole" / "run" / "steps.csv")["reward"]
    assert f"{rewards.iloc[-2:].mean():.4f}" in lines[1]
