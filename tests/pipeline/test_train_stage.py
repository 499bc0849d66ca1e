"""The stage `train` and the matrix of runs: mistakes answered in one line, the card, resumption.

All but one of the runs are made in this process; the one in a process of its own is killed, and goes on here.
"""

import csv
import gc
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from etpo_paper.base.lock import HELD, sole_maker
from etpo_paper.report import results
from pipeline.matrix import complete

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def root(toy_project, tmp_path, at):
    """The project of the tests, without any run."""
    shutil.copytree(toy_project, tmp_path / "project")
    at(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def train(stage, monkeypatch):
    """Starts the stage for one run."""
    for name in [name for name in os.environ if name.startswith("OPENAI")]:
        monkeypatch.delenv(name)

    def start(method="etpo", task="kidney-stone", scale="smoke", seed=0):
        return stage("train", "--scale", scale, "--method", method, "--task", task, "--seed", seed)

    return start


def change(root, edit):
    """Edits the settings of a project."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    edit(params)
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def folder(root, method="etpo"):
    return root / "results" / "smoke" / method / "kidney-stone" / "seed0"


def card(root, method="etpo"):
    return json.loads((folder(root, method) / "run_card.json").read_text())


def test_a_run_leaves_its_card_and_a_finished_one_is_kept(root, train):
    done = train()
    assert done.returncode == 0, done.stderr
    found = card(root)
    assert found["status"] == "finished"
    host = json.loads((folder(root) / "host.json").read_text())  # what may differ the next time stands apart
    assert host["executor"]["tier"] in "ABCD" and host["threads"] >= 1 and not host.keys() & found.keys()
    assert found["data"]["stand_in"] and found["model"]["name"] == "tiny"
    assert {"python", "torch", "scikit-learn"} <= set(found["versions"])
    assert [path.name for path in (folder(root) / "checkpoint").iterdir()] == ["policy"]
    again = train()
    assert again.returncode == 0 and "kept" in again.stdout
    assert card(root) == found


def test_a_run_that_is_killed_goes_on_to_the_same_results(root, train, tmp_path, at):
    change(root, lambda params: params["scales"]["smoke"]["training"].update(env_steps=12))
    arguments = ["--scale", "smoke", "--method", "etpo", "--task", "kidney-stone", "--seed", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline.train", *arguments]
    process = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stderr=subprocess.PIPE, text=True)
    checkpoint = folder(root) / "checkpoint" / "state.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == -signal.SIGKILL and checkpoint.exists(), said
    assert not (folder(root) / "run_card.json").exists()

    whole = tmp_path / "whole"
    shutil.copytree(root, whole, ignore=shutil.ignore_patterns("results"))
    resumed = train()
    assert resumed.returncode == 0, resumed.stderr
    at(whole)
    assert train().returncode == 0
    for name in ("steps.csv", "best_code.py", "samples.jsonl"):
        assert (folder(root) / name).read_bytes() == (folder(whole) / name).read_bytes(), name
    assert (folder(whole) / "steps.csv").read_text().count("\n") == 13


def stopped(root, train, monkeypatch):
    """Makes the first two updates of a run and stops."""
    from pipeline import train as made_by

    whole = made_by.train
    change(root, lambda params: params["scales"]["smoke"]["training"].update(env_steps=12))
    with monkeypatch.context() as patch:
        patch.setattr(made_by, "train", lambda *given: [*itertools.islice(whole(*given), 2), *stop()])
        assert train().returncode == 130
    return (folder(root) / "steps.csv").read_bytes()


def stop():
    raise KeyboardInterrupt


def told_of_policy(root):
    """What the stage prints at the end of a run."""
    policy = folder(root) / "checkpoint" / "policy"
    return f"{policy}: the trained policy, an adapter of peft, with a card that says how to load it"


def test_rows_of_other_settings_are_kept_aside_and_the_settings_are_named(root, train, monkeypatch):
    rows = stopped(root, train, monkeypatch)
    assert rows.count(b"\n") == 1 + 8
    before = (root / "params.yaml").read_text()
    change(root, lambda params: params["sandbox"].update(memory_mb=params["sandbox"]["memory_mb"] + 1))
    change(root, lambda params: params["methods"]["etpo"].update(beta=0.3))
    old = yaml.safe_load(before)
    done = train()
    assert done.returncode == 0, done.stderr
    aside = folder(root).with_name("seed0.before-1")
    beta, memory = old["methods"]["etpo"]["beta"], old["sandbox"]["memory_mb"]
    policy = told_of_policy(root)
    assert done.stdout.splitlines() == [
        f"{folder(root)}: begins anew, because its 8 steps were made with methods.etpo.beta {beta} instead of 0.3, "
        f"sandbox.memory_mb {memory} instead of {memory + 1}; they are kept in {aside}; with what was "
        "before and that folder renamed back, the run goes on",
        policy,
    ]
    assert (aside / "steps.csv").read_bytes() == rows
    assert [path.name for path in (folder(root) / "checkpoint").iterdir()] == ["policy"]
    # A finished run is kept as well, under the next name, and neither counts as a result.
    change(root, lambda params: params["methods"]["etpo"].update(beta=0.4))
    done = train()
    assert " because its 12 steps were made with methods.etpo.beta 0.3 instead of 0.4; they are kept" in done.stdout
    assert done.stdout.splitlines()[0].endswith("seed0.before-2")
    assert set(results.load_steps("smoke")["seed"]) == {0} and len(results.load_steps("smoke")) == 12
    # With the former settings and the former folder, the run goes on.
    (root / "params.yaml").write_text(before)
    shutil.rmtree(folder(root))
    aside.rename(folder(root))
    assert train().stdout.splitlines() == [policy] and (folder(root) / "steps.csv").read_bytes().startswith(rows)
    assert card(root)["status"] == "finished"


@pytest.mark.nightly
def test_a_run_that_goes_on_or_is_made_again_keeps_nothing_aside(root, train, monkeypatch):
    stopped(root, train, monkeypatch)
    assert train().returncode == 0
    whole = (folder(root) / "steps.csv").read_bytes()
    change(root, lambda params: params["scales"]["smoke"]["runs"].update(keep_finished=False))
    done = train()
    assert done.returncode == 0 and done.stdout.splitlines() == [told_of_policy(root)]
    assert (folder(root) / "steps.csv").read_bytes() == whole
    assert [path.name for path in folder(root).parent.iterdir()] == ["seed0"]


@pytest.mark.nightly
def test_a_damaged_card_beside_a_checkpoint_costs_no_rows(root, train, monkeypatch):
    rows = stopped(root, train, monkeypatch)
    damaged = folder(root) / "run_card.json"
    for keep_finished in (True, False):
        change(root, lambda params, keep=keep_finished: params["scales"]["smoke"]["runs"].update(keep_finished=keep))
        for text in ("", "{}", '{"status": "finished", "parameters": [1]}'):
            damaged.write_text(text)
            assert is_one_line(train(), f"{damaged} is not a run card; delete this file and start the run again")
    damaged.unlink()
    assert train().returncode == 0 and card(root)["status"] == "finished"
    assert (folder(root) / "steps.csv").read_bytes().startswith(rows)


@pytest.mark.nightly
def test_a_checkpoint_that_cannot_be_read_costs_no_rows(root, train, monkeypatch):
    rows = stopped(root, train, monkeypatch)
    (folder(root) / "checkpoint" / "state.pt").write_bytes(b"damaged")
    change(root, lambda params: params["methods"]["etpo"].update(beta=0.3))  # it would not go on with the former one
    aside = folder(root).with_name("seed0.before-1")
    assert train().stdout.splitlines() == [
        f"{folder(root)}: begins anew, because its checkpoint is damaged; its 8 steps are kept in {aside}",
        told_of_policy(root),
    ]
    assert (aside / "steps.csv").read_bytes() == rows


@pytest.mark.parametrize(
    "name", ["updates.csv", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("steps.csv", "samples.jsonl"))]
)
def test_a_run_that_lost_rows_does_not_go_on_and_nothing_is_changed(root, train, monkeypatch, name):
    stopped(root, train, monkeypatch)
    path = folder(root) / name
    whole = path.read_bytes()
    for rest in (whole[:-5], b"", None):
        path.unlink() if rest is None else path.write_bytes(rest)
        before = contents(folder(root))
        done = train()
        size = 0 if rest is None else len(rest)
        assert done.returncode == 2 and done.stderr.splitlines()[-1] == (
            f"error: {path} has {size} bytes, but {len(whole)} when the run stopped: restore the file, and the run "
            f"goes on; or rename {folder(root)} and make the run again"
        )
        assert contents(folder(root)) == before
    path.write_bytes(whole)
    assert train().returncode == 0 and card(root)["status"] == "finished"


def contents(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_what_is_kept_aside_is_no_result_for_git_and_dvc():
    for name in ("seed0.before-1/steps.csv", "seed0.before-12/run_card.json"):
        path = f"results/study/etpo/diabetes/{name}"
        assert subprocess.run(["git", "check-ignore", path], cwd=CHECKOUT, capture_output=True).returncode == 0
    assert "results/*/*/*/*.before-*" in (CHECKOUT / ".dvcignore").read_text().splitlines()


def test_without_a_key_the_chat_baseline_says_not_run(root, train):
    done = train(method="reflection_gpt4")
    assert done.returncode == 0, done.stderr
    found, run = card(root, "reflection_gpt4"), folder(root, "reflection_gpt4")
    assert (found["status"], found["reason"]) == ("not run", "OPENAI_API_KEY is not set")
    assert (run / "steps.csv").read_text().count("\n") == 1
    # A run that was begun with a key is left as it is.
    (run / "checkpoint").mkdir()
    (run / "checkpoint" / "state.pt").touch()
    (run / "steps.csv").write_text("rows")
    done = train(method="reflection_gpt4")
    assert done.returncode == 2 and "was begun with it: set it" in done.stderr
    assert (run / "steps.csv").read_text() == "rows"


def is_one_line(done, message):
    lines = [line for line in done.stderr.strip().splitlines() if "error" in line.lower()]
    return done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "huge"}, "unknown scale 'huge'; choose one of: "),
        ({"method": "sac"}, "unknown method 'sac'; choose one of: etpo"),
        ({"task": "iris"}, "unknown task 'iris'; choose one of: airlines"),
        ({"task": "diabetes"}, "task diabetes: no source gave its table"),
        ({"scale": "laptop"}, "python -m pipeline."),
    ],
)
def test_a_mistake_is_one_line(root, train, arguments, message):
    done = train(**arguments)
    assert is_one_line(done, message), done.stderr


def test_a_missing_model_is_one_line(root, train):
    shutil.rmtree(root / "models" / "tiny")
    done = train()
    assert is_one_line(done, "python -m pipeline."), done.stderr


def test_a_chat_server_that_is_down_is_one_line(root, train, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    change(root, lambda params: params["chat"].update(retries=1))  # the default of 5 takes 13 s
    done = train(method="reflection_gpt4")
    assert is_one_line(done, "127.0.0.1:9"), done.stderr


@pytest.fixture
def server(monkeypatch):
    """A chat server whose answers are `says`: (content, finish reason, usage) one after another, the last for ever."""

    class Handler(BaseHTTPRequestHandler):
        says = ()

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            (content, reason, usage), *later = type(self).says
            type(self).says = later or type(self).says
            choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": content}}
            body = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield Handler, server.server_port
    server.shutdown()
    server.server_close()


def test_the_card_of_a_chat_run_says_what_was_asked_and_how_answers_ended(root, train, server, monkeypatch):
    handler, port = server
    code = "class Model:\n    def predict_proba(self, X):\n        return np.full((len(X), 2), 0.5)\n\n\n"
    code += "def build_model(X, y):\n    return Model()\n"
    handler.says = [(None, "length", {"prompt_tokens": 9, "completion_tokens": 4}), (code, "stop", None)]
    change(root, lambda params: params["chat"].update(at_once=1))
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:secret@127.0.0.1:{port}/v1?key=secret")
    done = train(method="reflection_gpt4")
    assert done.returncode == 0, done.stderr
    assert "some answers were empty (finish reason length: 1)" in done.stdout
    found, run = card(root, "reflection_gpt4"), folder(root, "reflection_gpt4")
    assert found["status"] == "finished" and "secret" not in json.dumps(found)
    assert found["chat"] == {
        "endpoint": f"http://127.0.0.1:{port}/v1",
        "refused": [],
        "prompt_tokens": None,
        "completion_tokens": None,
        "answers": {"length": 1, "stop": 5},
        "empty": {"length": 1},
    }
    rows = list(csv.DictReader((run / "steps.csv").open()))
    assert [row["tokens"] for row in rows] == ["4", *[""] * 5]
    assert [row["status"] for row in rows] == ["snippet_error", *["ok"] * 5]
    best = (run / "best_code.py").read_text()
    assert best == f"import numpy as np\n\n\n{code}"


def test_a_chat_run_without_any_code_stops(root, train, server, monkeypatch):
    handler, port = server
    handler.says = [(None, "length", None)]
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
    done = train(method="reflection_gpt4")
    assert is_one_line(done, "all answers of gpt-4 are empty (finish reason length: 4)"), done.stderr
    assert not (folder(root, "reflection_gpt4") / "run_card.json").exists()
    # A run of a single round stops as well, and leaves nothing that another would go on from.
    change(root, lambda params: params["scales"]["smoke"]["training"].update(env_steps=2))
    done = train(method="reflection_gpt4")
    assert is_one_line(done, "all answers of gpt-4 are empty (finish reason length: 2)"), done.stderr
    assert not (folder(root, "reflection_gpt4") / "checkpoint" / "state.pt").exists()


def test_a_run_that_another_process_makes_is_left_alone(root, train):
    with sole_maker(folder(root)):
        done = train()
    assert done.returncode == HELD and done.stderr.count("error: ") == 1, done.stderr
    assert f"{folder(root)} is held by another process (host " in done.stderr and "delete" in done.stderr
    assert not folder(root).exists()
    assert train().returncode == 0 and not folder(root).with_name("seed0.lock").exists()


def test_an_unwritable_results_folder_is_one_line(root, train):
    (root / "results").write_text("a file where a folder should be")
    done = train()
    assert is_one_line(done, "results"), done.stderr


# The matrix ----------------------------------------------------------------------------------------------------------


def test_a_matrix_is_completed_several_runs_at_a_time(root, stage, no_processes):
    def two_methods(params):
        params["methods"]["variant"] = {**params["methods"]["ppo_kl"], "method": "ppo_kl", "beta": 0.5}
        params["scales"]["smoke"]["methods"] = ["variant", "reflection"]

    change(root, two_methods)
    done = stage("matrix", "--scale", "smoke", "--workers", 2)
    assert done.returncode == 0 and "2 runs done" in done.stdout, done.stderr
    assert len(no_processes) == 2 and all(command[2] == "pipeline.group" for command, _ in no_processes)
    assert {environment["OMP_NUM_THREADS"] for _, environment in no_processes} == {str(max(1, os.cpu_count() // 2))}
    assert card(root, "variant")["parameters"]["method"]["beta"] == 0.5
    assert card(root, "variant")["parameters"]["method"]["method"] == "ppo_kl"
    assert stage("matrix", "--scale", "smoke", "--workers", 2).stdout == "smoke: 0 runs done\n"


def test_a_matrix_says_which_run_failed_and_finishes_the_others(root, stage, no_processes, monkeypatch):
    change(root, lambda params: params["scales"]["smoke"].update(methods=["ppo_kl", "reflection"]))
    instead = subprocess.run

    def fail(command, **options):
        if "ppo_kl/kidney-stone/0" in command:
            return subprocess.CompletedProcess(command, 2, "", "warning\nerror: ppo_kl's disk is full\n")
        return instead(command, **options)

    monkeypatch.setattr(subprocess, "run", fail)
    done = stage("matrix", "--scale", "smoke", "--workers", 2)
    assert is_one_line(done, "error: ppo_kl's disk is full"), done.stderr
    assert card(root, "reflection")["status"] == "finished"


def test_a_matrix_passes_over_runs_that_another_process_holds_and_names_them(root, stage, no_processes):
    change(root, lambda params: params["scales"]["smoke"].update(methods=["ppo_kl", "reflection"]))
    with sole_maker(folder(root, "ppo_kl")):
        done = stage("matrix", "--scale", "smoke", "--workers", 1)  # one group of both
    assert done.returncode == HELD
    who = f"host {socket.gethostname()}, process {os.getpid()}"
    assert done.stdout == f"smoke: 1 run done; 1 run is held by another process ({who}): {folder(root, 'ppo_kl')}\n"
    assert card(root, "reflection")["status"] == "finished" and not folder(root, "ppo_kl").exists()
    assert stage("matrix", "--scale", "smoke", "--workers", 2).stdout == "smoke: 1 run done\n"


@pytest.mark.nightly
def test_a_matrix_counts_only_the_runs_that_it_made(root, stage, no_processes, monkeypatch):
    """Another machine finishes a run of a group before this one comes to it."""
    change(root, lambda params: params["scales"]["smoke"].update(methods=["ppo_kl", "reflection"]))
    instead = subprocess.run

    def run(command, **options):
        run = ["--scale", "smoke", "--method", "reflection", "--task", "kidney-stone", "--seed", "0"]
        instead([*command[:2], "pipeline.train", *run], **options)  # the other machine's work
        return instead(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    done = stage("matrix", "--scale", "smoke", "--workers", 1)
    assert done.stdout == "smoke: 1 run done\n", done.stderr
    for method in ("ppo_kl", "reflection"):
        assert (folder(root, method) / "steps.csv").read_text().count("\n") == 7


def test_ctrl_c_begins_no_other_run_of_a_matrix(root, monkeypatch):
    change(root, lambda params: params["scales"]["smoke"].update(seeds=list(range(20))))
    began = []

    def run(command, **_):
        if "pipeline.group" in command:
            began.append(command)
            time.sleep(0.5)  # until the main thread waits: within a finaliser the interrupt would be lost
            if command is began[0]:
                os.kill(os.getpid(), signal.SIGINT)
        return subprocess.CompletedProcess(command, 130, "", "stopped")

    monkeypatch.setattr(subprocess, "run", run)
    gc.collect()
    with pytest.raises(KeyboardInterrupt):
        complete("smoke", workers=2, minutes=1)
    assert 1 <= len(began) <= 4


def test_a_matrix_without_workers_is_refused(stage):
    done = stage("matrix", "--scale", "study", "--workers", 0)
    assert is_one_line(done, "--workers: got 0, expected at least 1"), done.stderr


def test_a_matrix_whose_runs_would_not_be_kept_is_refused(stage):
    done = stage("matrix", "--scale", "laptop", "--workers", 2)
    assert is_one_line(done, "keep_finished is false"), done.stderr
