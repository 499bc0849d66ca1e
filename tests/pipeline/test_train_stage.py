"""The stage `train` as a user starts it: its mistakes answered in one line, its card, its resumption."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.settings import read_params
from etpo_paper.data.tasks import prepare_task, save_task
from pipeline.matrix import complete


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_language_model):
    """A project of its own: the tiny model under the name `tiny`, one table, a small budget."""
    root = tmp_path_factory.mktemp("project")
    params = read_params()
    params["scales"]["smoke"]["training"] = {"env_steps": 6, "environments": 2, "max_new_tokens": 4, "lora_rank": 4}
    params["scales"]["smoke"]["runs"] = {"keep_finished": True}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    save_task(prepare_task("kidney-stone"), root / "data" / "tables")
    model, tokenizer, card = tiny_language_model
    from etpo_paper.model.loading import save_model

    save_model(model, tokenizer, root / "models" / "tiny", {**card, "name": "tiny"}, model.dtype)
    return root


def stage(root, method="etpo", task="kidney-stone", scale="smoke", seed="0", **environment):
    keep = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI")}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.train", "--scale", scale, "--method", method, "--task", task, "--seed", seed],
        cwd=paths.ROOT,
        env={**keep, "ETPO_ROOT": str(root), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


def card(root, method="etpo"):
    path = root / "results" / "smoke" / method / "kidney-stone" / "seed0" / "run_card.json"
    return json.loads(path.read_text())


def test_a_run_leaves_its_card_and_a_finished_one_is_kept(root):
    done = stage(root)
    assert done.returncode == 0, done.stderr
    found = card(root)
    assert found["status"] == "finished" and found["executor"]["tier"] in "ABCD"
    assert found["data"]["stand_in"] and found["model"]["name"] == "tiny"
    assert {"python", "torch", "scikit-learn"} <= set(found["versions"])
    checkpoint = root / "results" / "smoke" / "etpo" / "kidney-stone" / "seed0" / "checkpoint"
    assert [path.name for path in checkpoint.iterdir()] == ["policy"]
    again = stage(root)
    assert again.returncode == 0 and "kept" in again.stdout
    assert card(root) == found


def test_without_a_key_the_chat_baseline_says_not_run(root):
    done = stage(root, method="reflection_gpt4")
    assert done.returncode == 0, done.stderr
    found = card(root, "reflection_gpt4")
    assert (found["status"], found["reason"]) == ("not run", "OPENAI_API_KEY is not set")
    folder = root / "results" / "smoke" / "reflection_gpt4" / "kidney-stone" / "seed0"
    assert (folder / "steps.csv").read_text().count("\n") == 1
    # A run that was begun with a key is left as it is.
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "state.pt").touch()
    (folder / "steps.csv").write_text("rows")
    done = stage(root, method="reflection_gpt4")
    assert done.returncode == 2 and "was begun with it: set it" in done.stderr
    assert (folder / "steps.csv").read_text() == "rows"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"scale": "huge"},
            "unknown scale 'huge'; choose one of: laptop, paper, smoke, study, toy",
        ),
        ({"method": "sac"}, "unknown method 'sac'; choose one of: etpo"),
        ({"task": "iris"}, "unknown task 'iris'; choose one of: airlines"),
        ({"task": "diabetes"}, "python -m pipeline.data"),
        ({"scale": "laptop"}, "python -m pipeline.warm_start --model smollm2"),
        (
            {"method": "reflection_gpt4", "OPENAI_API_KEY": "x", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"},
            "127.0.0.1:9",
        ),
    ],
)
def test_a_mistake_is_one_line(root, arguments, message):
    done = stage(root, **arguments)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ") and message in last
    assert "Traceback" not in done.stderr


def test_an_unwritable_results_folder_is_one_line(root, tmp_path):
    import shutil

    other = tmp_path / "project"
    shutil.copytree(root, other, ignore=shutil.ignore_patterns("results"))
    (other / "results").write_text("a file where a folder should be")
    done = stage(other)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "results" in done.stderr.strip().splitlines()[-1]


def test_a_matrix_is_completed_several_runs_at_a_time(root, tmp_path):
    import shutil

    other = tmp_path / "project"
    shutil.copytree(root, other, ignore=shutil.ignore_patterns("results"))
    params = yaml.safe_load((other / "params.yaml").read_text())
    params["scales"]["smoke"] |= {"methods": ["variant", "reflection"], "tasks": ["kidney-stone"], "seeds": [0]}
    params["methods"]["variant"] = {**params["methods"]["ppo_kl"], "method": "ppo_kl", "beta": 0.5}
    (other / "params.yaml").write_text(yaml.safe_dump(params))

    def matrix():
        command = [sys.executable, "-m", "pipeline.matrix", "--scale", "smoke", "--workers", "2"]
        environment = {**os.environ, "ETPO_ROOT": str(other)}
        return subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, text=True)

    done = matrix()
    assert done.returncode == 0 and "2 runs done" in done.stdout, done.stderr
    assert card(other, "variant")["parameters"]["method"] == params["methods"]["variant"]
    # What is finished is kept; what is missing fails, and says why in the line of the run that failed.
    shutil.rmtree(other / "results" / "smoke" / "variant")
    (other / "results" / "smoke" / "variant").write_text("a file where a folder should be")
    wrong = matrix()
    last = wrong.stderr.strip().splitlines()[-1]
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert "variant/kidney-stone/seed0: error: Not a directory" in last and "make the folder writable" in last
    assert "reflection" not in wrong.stderr


def test_ctrl_c_begins_no_other_run_of_a_matrix(monkeypatch):
    began = []

    def do(command, **_):
        began.append(command)
        time.sleep(0.2)
        if command is began[0]:
            os.kill(os.getpid(), signal.SIGINT)
        return subprocess.CompletedProcess(command, 130, "", "stopped")

    monkeypatch.setattr("pipeline.matrix.subprocess.run", do)
    monkeypatch.setattr("pipeline.matrix.finished", lambda *_: False)
    with pytest.raises(KeyboardInterrupt):
        complete("study", workers=2, minutes=1)
    assert len(began) <= 4


def test_a_matrix_without_workers_is_refused():
    with pytest.raises(UserError, match="--workers: got 0, expected at least 1"):
        complete("study", workers=0, minutes=1)


def test_a_matrix_whose_runs_would_not_be_kept_is_refused():
    with pytest.raises(UserError, match="scales.laptop.runs.keep_finished is false"):
        complete("laptop", workers=2, minutes=1)
