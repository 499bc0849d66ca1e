"""Two processes against one with the same global batch, on a tiny model: the same run, but for rounding.

`two_processes.py` says what the processes do; here is what they leave, and what one process leaves.
"""

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes
import yaml
from stages import CHECKOUT

from etpo_paper.base import distributed
from etpo_paper.base.settings import read_params
from etpo_paper.data.tasks import prepare_task, save_task
from etpo_paper.model.loading import save_model

pytestmark = pytest.mark.nightly  # starts two processes that import everything

# Scales, each named after its method, and their budgets. An update takes 8 actions and the last one what is left: 13
# leave 5, that is 3 for one process and 2 for the other; 9 leave one, which the processes cannot share.
BUDGETS = {"etpo": 13, "ppo_kl_memory": 13, "ppo_kl-few": 9}
BUDGETS |= dict.fromkeys(
    ("etpo_action_level", "etpo_memory", "etpo_center_memory", "released", "ppo_kl", "poad", "ntpo", "reflection"), 13
)
SMALL = {"environments": 4, "steps_per_update": 2, "max_new_tokens": 9, "micro_batch_tokens": 400}
SMALL |= {"lora_rank": 4, "lora_alpha": 8, "lora_layers": 0, "precision": "float32"}


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_language_model):
    """A folder with a scale for each run, and a model that ends its actions early."""
    model, tokenizer, card = copy.deepcopy(tiny_language_model)
    with torch.no_grad():
        # A row of the head that makes about every fifth token the last one, whatever stands before it: actions of
        # different lengths, so that the processes do not sample for equally long.
        ids = torch.randint(model.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
        hidden = model.model(ids).last_hidden_state.flatten(0, 1)
        row = torch.linalg.lstsq(hidden, torch.full((len(hidden), 1), 5.0)).solution
        model.lm_head.weight[card["eos_token_id"]] = row.squeeze(1)
    project, params = tmp_path_factory.mktemp("distributed") / "project", read_params()
    small = params["scales"]["smoke"] | {"tasks": [two_processes.TASK], "seeds": [0]}
    params["scales"] = {
        scale: small
        | {
            "methods": [scale.partition("-")[0]],
            "training": SMALL | {"env_steps": budget},
        }
        for scale, budget in (BUDGETS | {"etpo-failed": 13, "etpo-odd": 12}).items()
    }
    params["scales"]["etpo-odd"]["training"]["environments"] = 3
    params.pop("studies", None)
    project.mkdir()
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    save_task(prepare_task(two_processes.TASK), project / "data" / "tables")
    save_model(model, tokenizer, project / "models" / "tiny", {**card, "name": "tiny"}, model.dtype)
    return project


@pytest.fixture(scope="module")
def played(project):
    """The folder that the two processes leave."""
    folder = project.parent
    # torch's store complains when the process that holds it, here the first, leaves first; torchrun holds it itself.
    environment = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "ETPO_ROOT": str(project)}
    environment["PYTHONPATH"] = os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "tests")))
    command = [sys.executable, two_processes.__file__, folder, *BUDGETS]
    subprocess.run(command, env={**os.environ, **environment}, cwd=CHECKOUT, check=True, timeout=600)
    return folder


def ends(folder, stage):
    """Exit status and standard error of the two processes in a stage; of a progress bar's line, what it shows last."""
    return [
        (
            int((folder / f"{stage}{rank}.status").read_text()),
            (folder / f"{stage}{rank}.err").read_text().strip().rpartition("\n")[2].rpartition("\r")[2],
        )
        for rank in range(2)
    ]


def results(folder, scale):
    return folder / scale / scale.partition("-")[0] / two_processes.TASK / "seed0"


def same_files(one, two):
    """Equal but for the clock and, in updates.csv and the credit of samples, rounding."""
    for name in ("steps.csv", "best_code.py"):
        assert (two / name).read_text() == (one / name).read_text()
    samples = [
        [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()] for folder in (one, two)
    ]
    assert len(samples[0]) == len(samples[1])
    for a, b in zip(*samples, strict=True):
        # Three digits are written: rounding may move the last one.
        assert b.pop("credit", []) == pytest.approx(a.pop("credit", []), rel=2e-2, abs=1e-5)
        assert a == b
    rows = [
        [[float(cell or 0) for cell in line.split(",")[:-2]] for line in lines[1:]]
        for lines in ((folder / "updates.csv").read_text().splitlines() for folder in (one, two))
    ]
    assert len(rows[0]) == len(rows[1]) > 1
    for a, b in zip(*rows, strict=True):
        assert b == pytest.approx(a, rel=2e-5, abs=5e-6)
    assert {p.relative_to(one) for p in one.rglob("*")} == {p.relative_to(two) for p in two.rglob("*")}


@pytest.mark.parametrize("scale", BUDGETS)
def test_two_processes_do_what_one_does(project, played, at, scale):
    assert [status for status, _ in ends(played, scale)] == [0, 0], ends(played, scale)
    at(project)
    before, after, executed = two_processes.run(scale, played / "one")
    same_files(results(played / "one", scale), results(played / "two", scale))
    (_, first, executed_first), (_, second, executed_second) = (
        torch.load(played / f"{scale}{rank}.pt") for rank in range(2)
    )
    assert executed_first + executed_second == executed and abs(executed_first - executed_second) <= 1
    assert first.equal(second)  # else they would drift apart
    assert (first - after).norm() <= 1e-3 * (after - before).norm()
    assert (first - after).abs().max() < 1e-4 if len(after) else scale == "reflection"


def test_a_process_that_sampled_less_long_draws_the_same_numbers_afterwards(played):
    lines = (results(played / "two", "etpo") / "steps.csv").read_text().splitlines()
    place = lines[0].split(",").index("tokens")
    tokens = [int(line.split(",")[place]) for line in lines[1:]]
    # Else the comparison with one process would not see it.
    assert any(max(tokens[i : i + 4 : 2]) != max(tokens[i + 1 : i + 4 : 2]) for i in (0, 4, 8))


def test_work_that_is_dealt_is_put_together_in_its_order(played):
    assert ends(played, "deal") == [(0, "")] * 2


def test_a_run_that_lost_a_process_says_so_and_goes_on_as_if_it_had_not(played):
    (status, line), (killed, _) = ends(played, "lose")
    assert killed == -signal.SIGKILL and status == 2
    assert line.startswith("error: another process of this run ended without an error message")
    assert [status for status, _ in ends(played, "resume")] == [0, 0]
    whole, lost = (torch.load(played / f"{name}0.pt") for name in ("etpo", "resume"))
    assert lost[1].equal(whole[1]) and lost[2] < whole[2]
    same_files(results(played / "two", "etpo"), results(played / "lost", "etpo"))


def test_a_mistake_is_one_line_of_one_process(played):
    (first, _), second = ends(played, "fail")
    assert (first, second) == (2, (2, "error: the second one's disk is full"))
    found = ends(played, "misshare")
    assert [status for status, _ in found] == [2, 2]
    assert sorted(error for _, error in found) == [
        "",
        "error: 2 processes cannot share training.environments = 3 evenly; start a number of processes that divides it",
    ]


def test_the_stage_writes_one_card_that_counts_the_processes(played):
    run = results(played / "two", "etpo")
    card, host = (json.loads((run / name).read_text()) for name in ("run_card.json", "host.json"))
    assert card["status"] == "finished" and host["processes"] == 2


def test_torchrun_starts_the_stage_with_the_real_executor(toy_project, tmp_path):
    (tmp_path / "params.yaml").write_text((toy_project / "params.yaml").read_text())
    for folder in ("data", "models"):
        (tmp_path / folder).symlink_to(toy_project / folder)
    command = [Path(sys.executable).parent / "torchrun", "--nproc-per-node", "2", "-m", "pipeline.train"]
    command += ["--scale", "smoke", "--method", "etpo", "--task", "kidney-stone", "--seed", "0"]
    environment = os.environ | {"ETPO_ROOT": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6/6" in done.stderr
    run = tmp_path / "results" / "smoke" / "etpo" / "kidney-stone" / "seed0"
    card = json.loads((run / "run_card.json").read_text())
    host = json.loads((run / "host.json").read_text())
    assert card["status"] == "finished" and host["processes"] == 2 and host["executor"]["tier"] in "ABC"
    assert (run / "steps.csv").read_text().count("\n") == 7


def test_one_process_shares_with_nobody():
    items, generator = [1, 2, 3], torch.Generator().manual_seed(0)
    before = generator.get_state()
    distributed.align(generator, 5)
    assert generator.get_state().equal(before)
    assert distributed.share(items) is items and distributed.merge(items) is items
    assert distributed.from_first(lambda: 7) == 7
    with distributed.joined():
        assert (distributed.size(), distributed.rank()) == (1, 0)
