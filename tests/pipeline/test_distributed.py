"""Two processes against one with the same global batch, on a tiny model: the same run, but for rounding.

The processes are started as torchrun starts them, by environment variables; what they do is `play` and `lose` below.
"""

import copy
import csv
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from stub_executor import StubExecutor

from etpo_core.errors import UserError, one_line_errors
from etpo_paper.base import distributed, paths
from etpo_paper.base.settings import load_settings, read_params
from etpo_paper.data.tasks import TASKS, Task, prepare_task, save_task
from etpo_paper.methods import build_method
from etpo_paper.model.agent import Agent
from etpo_paper.model.loading import save_model
from etpo_paper.training.loop import train
from etpo_paper.training.run import Run, fingerprint, run_parameters

# A run's name, its method and its budget. Two updates: one of 8 actions and one of what is left. 13 leave 5, that is 3
# for one process and 2 for the other; 9 leave one, which the processes cannot share.
RUNS = {name: (name, 13) for name in ("etpo", "etpo_action_level", "etpo_memory", "released", "ppo_kl")}
RUNS |= {name: (name, 13) for name in ("ppo_kl_memory", "poad", "ntpo")}
RUNS |= {
    "center": ("etpo_center_memory", 13),
    "reflection": ("reflection", 13),
    "few": ("ppo_kl", 9),
    "top_k": ("etpo", 13),
}


def start(name, folder, stop_after=None):
    """One run of the tiny model in `folder`; yields its rows, then weights before and after it, programs executed."""
    method_name, budget = RUNS[name]
    settings = load_settings("smoke")
    training = {"env_steps": budget, "environments": 4, "steps_per_update": 2, "max_new_tokens": 9, "lora_rank": 4}
    training |= {"top_k": 20} if name == "top_k" else {}
    settings = settings.replace(training={**training, "micro_batch_tokens": 400})
    method = build_method(method_name, settings.methods[method_name])
    model, tokenizer, card, task = torch.load(folder / "model.pt", weights_only=False)
    agent = Agent(model, tokenizer, card, rank=4 if method.trains else None, alpha=8, seed=0, precision="float32")
    if method.trains:
        # Away from the start, where the policy is at its optimum and its gradient nothing but rounding.
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for adapter in ("policy", "critic", "target_critic"):
                for parameter in agent.parameters(adapter):
                    parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    before, executor = weights(agent), StubExecutor()
    run = Run("smoke", name, "diabetes", 0)
    mark = fingerprint(run_parameters(Run("smoke", method_name, "diabetes", 0), settings), agent.card, task)
    for count, row in enumerate(train(run, agent, method, task, executor, settings, mark), start=1):
        yield row
        if count == stop_after:
            return
    # What a process wrote is what it executes, begun as it was written.
    assert sorted(executor.started) == sorted(executor.seen)
    yield before, weights(agent), len(executor.seen)


def weights(agent):
    if not agent.trainable:
        return torch.empty(0)
    state = agent.get_state()
    adapters = [p for ps in state["adapters"].values() for p in ps]
    return torch.cat([p.flatten() for p in (*adapters, *state["value_heads"].values())])


# What the two processes do, one after another ---------------------------------------------------------------------


def lose(folder):
    """The second process is killed after its first update."""
    with one_line_errors(), distributed.joined():
        paths.RESULTS = folder / "lost"
        for _ in start("etpo", folder):
            if distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)


def fail(folder):
    """The second process makes a mistake."""
    with one_line_errors(), distributed.joined():
        if distributed.rank() == 1:
            raise UserError("the second one's disk is full")
        distributed.merge([1])


def misshare(folder):
    """Three environments are asked for; both processes find that."""
    command(folder, "odd")


def play(folder):
    """All runs, and the one that `lose` broke off goes on."""
    with distributed.joined():
        paths.RESULTS, me = folder / "two", distributed.rank()
        for length in (0, 1, 2, 7):
            whole = list(range(length))
            assert distributed.merge(list(distributed.share(whole))) == whole
        for name in RUNS:
            torch.save(list(start(name, folder)), folder / f"{name}{me}.pt")
        paths.RESULTS = folder / "lost"
        torch.save(list(start("etpo", folder)), folder / f"lost{me}.pt")


def command(folder, scale="two"):
    """`python -m pipeline.train` as a user starts it, with the real executor."""
    from pipeline import train

    sys.argv = ["train", "--scale", scale, "--method", "etpo", "--task", "kidney-stone", "--seed", "0"]
    train.main()


STAGES = (lose, fail, misshare, play, command)


def do(stage, folder, rank, port):
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    errors = (folder / f"{stage.__name__}{rank}.err").open("w")
    os.dup2(errors.fileno(), 2)
    stage(folder)


def main(folder):
    """Forks two processes for every stage, so that what they import is imported once."""
    for stage in STAGES:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        fork = multiprocessing.get_context("fork").Process
        both = [fork(target=do, args=(stage, folder, rank, port)) for rank in range(2)]
        for process in both:
            process.start()
        for rank, process in enumerate(both):
            process.join()
            (folder / f"{stage.__name__}{rank}.status").write_text(str(process.exitcode))


if __name__ == "__main__":
    main(Path(sys.argv[1]))


# What is found afterwards ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played(tmp_path_factory, tiny_language_model):
    """The folder that the two processes leave."""
    folder = tmp_path_factory.mktemp("distributed")
    y = np.arange(40) % 2
    task = Task(replace(TASKS["diabetes"], description="Toy"), np.zeros((40, 3)), y, ("a", "b", "c"), "test", None, "0")
    model, tokenizer, card = copy.deepcopy(tiny_language_model)
    with torch.no_grad():
        # A row of the head that makes about every fifth token the last one, whatever stands before it: actions of
        # different lengths, so that the processes do not sample for equally long.
        ids = torch.randint(model.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0))
        hidden = model.model(ids).last_hidden_state.flatten(0, 1)
        row = torch.linalg.lstsq(hidden, torch.full((len(hidden), 1), 5.0)).solution
        model.lm_head.weight[card["eos_token_id"]] = row.squeeze(1)
    torch.save((model, tokenizer, card, task), folder / "model.pt")

    project, params = folder / "project", read_params()
    small = {"env_steps": 6, "environments": 2, "max_new_tokens": 4, "lora_rank": 4}
    one_worker = {**params["scales"]["smoke"], "sandbox": {"workers": 1, "preload": []}}
    params["scales"] |= {
        "two": {**one_worker, "training": small},
        "odd": {**one_worker, "training": {"environments": 3}},
    }
    project.mkdir()
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    save_task(prepare_task("kidney-stone"), project / "data" / "tables")
    save_model(model, tokenizer, project / "models" / "tiny", {**card, "name": "tiny"}, model.dtype)

    # torch's store complains when the process that holds it, here the first, leaves first; torchrun holds it itself.
    environment = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    environment |= {"PYTHONPATH": str(paths.ROOT), "ETPO_ROOT": str(project)}
    subprocess.run(
        [sys.executable, __file__, folder], env={**os.environ, **environment}, cwd=paths.ROOT, check=True, timeout=300
    )
    return folder


def ends(folder, stage):
    """Exit status and standard error of the two processes in a stage."""
    return [
        (int((folder / f"{stage}{rank}.status").read_text()), (folder / f"{stage}{rank}.err").read_text().strip())
        for rank in range(2)
    ]


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


def of_both(folder, name):
    """Rows without the clock, weights, and programs executed of a run in each of the two processes."""
    found = [torch.load(folder / f"{name}{rank}.pt") for rank in range(2)]
    return [([{k: v for k, v in row.items() if "second" not in k} for row in rows], w, n) for *rows, (_, w, n) in found]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_do_what_one_does(played, monkeypatch, name):
    assert ends(played, "play") == [(0, "")] * 2
    monkeypatch.setattr(paths, "RESULTS", played / "one")
    *_, (before, after, executed) = start(name, played)
    run = Path("smoke", name, "diabetes", "seed0")
    same_files(played / "one" / run, played / "two" / run)
    (rows, first, executed_first), (same_rows, second, executed_second) = of_both(played, name)
    assert rows == same_rows
    assert executed_first + executed_second == executed and abs(executed_first - executed_second) <= 1
    assert first.equal(second)  # else they would drift apart
    assert (first - after).norm() <= 1e-3 * (after - before).norm()
    assert (first - after).abs().max() < 1e-4 if len(after) else name == "reflection"


def test_a_process_that_sampled_less_long_draws_the_same_numbers_afterwards(played):
    with (played / "two" / "smoke" / "top_k" / "diabetes" / "seed0" / "steps.csv").open() as file:
        tokens = [int(row["tokens"]) for row in csv.DictReader(file)]
    # Else the comparison with one process would not see it.
    assert any(max(tokens[i : i + 4 : 2]) != max(tokens[i + 1 : i + 4 : 2]) for i in (0, 4))


def test_a_run_that_lost_a_process_says_so_and_goes_on_as_if_it_had_not(played):
    (status, line), (killed, _) = ends(played, "lose")
    assert killed == -signal.SIGKILL and status == 2
    assert line.startswith("error: another process of this run was lost") and "\n" not in line
    run = Path("smoke", "etpo", "diabetes", "seed0")
    (rows, lost, _), (whole_rows, whole, _) = of_both(played, "lost")[0], of_both(played, "etpo")[0]
    assert rows == whole_rows[1:]
    assert lost.equal(whole)
    same_files(played / "two" / run, played / "lost" / run)


def test_a_mistake_is_one_line_of_one_process(played):
    assert ends(played, "fail") == [(2, ""), (2, "error: the second one's disk is full")]
    found = ends(played, "misshare")
    assert [status for status, _ in found] == [2, 2]
    assert sorted(error for _, error in found) == [
        "",
        "error: 2 processes cannot share training.environments = 3 evenly; start a number of processes that divides it",
    ]


def test_the_stage_writes_one_card_that_counts_the_processes(played):
    (status, error), second = ends(played, "command")
    assert status == 0, error
    assert "6/6" in error and second == (0, "")
    run = played / "project" / "results" / "two" / "etpo" / "kidney-stone" / "seed0"
    card = json.loads((run / "run_card.json").read_text())
    assert card["status"] == "finished" and card["processes"] == 2
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
