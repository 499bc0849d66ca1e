import json
import os

import pytest

from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings
from etpo_paper.environment.scikit_learn import episodes
from etpo_paper.methods import build_method
from etpo_paper.training.loop import train
from etpo_paper.training.run import Run, fingerprint, run_parameters
from etpo_paper.training.run_files import RunFiles


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def settings():
    training = {"env_steps": 20, "environments": 4, "steps_per_update": 2, "max_new_tokens": 6, "lora_rank": 4}
    return load_settings("smoke").replace(training=training)


def start(name, settings, make_agent, task, executor, seed=0, stop_after=None):
    run = Run("smoke", name, "diabetes", seed)
    method = build_method(name, settings.methods[name].plain())
    agent = make_agent(seed=seed, rank=4 if method.trains else None)
    networks = agent.networks if method.trains else None
    environments = episodes(task, executor, settings.environment, settings.training.environments, method.reflect)
    of_run = fingerprint(run_parameters(run, settings), agent.card, task)
    rows = []
    for row in train(run, agent, networks, method, environments, settings, of_run):
        rows.append(row)
        if len(rows) == stop_after:
            break
    return run, rows


def content(run):
    """steps.csv, updates.csv without its clock columns, samples.jsonl, best code."""
    updates = [line.split(",")[:-2] for line in (run.folder / "updates.csv").read_text().splitlines()]
    return [
        (run.folder / "steps.csv").read_text(),
        updates,
        (run.folder / "samples.jsonl").read_text(),
        (run.folder / "best_code.py").read_text(),
    ]


@pytest.mark.parametrize("name", ["etpo", "etpo_no_reflection", "etpo_memory", "ppo_kl", "reflection"])
def test_a_run_spends_its_budget_and_writes_its_files(results, settings, make_agent, toy_task, stub_executor, name):
    run, rows = start(name, settings, make_agent, toy_task, stub_executor)
    assert [row["steps"] for row in rows] == [8, 16, 20]
    lines = (run.folder / "steps.csv").read_text().splitlines()
    header, table = lines[0].split(","), [line.split(",") for line in lines[1:]]
    assert len(table) == 20 and [int(r[0]) for r in table] == list(range(1, 21))
    rewards = [float(r[header.index("reward")]) for r in table]
    best = max(rewards)
    assert rows[-1]["best_reward"] == pytest.approx(best, rel=1e-5)
    samples = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3 * settings.training.samples_per_update
    assert all(("credit" in s) == (name != "reflection") for s in samples)
    told = [s for s in samples if "credit" in s]
    assert all(len(s["pieces"]) == len(s["credit"]) > 0 for s in told)
    # A token may be a part of a letter, which has no text of its own.
    assert all("".join(s["pieces"]) == s["code"] for s in told if "\N{REPLACEMENT CHARACTER}" not in str(s))
    assert ("build_model" in (run.folder / "best_code.py").read_text()) == (best > -1)
    # What was done is not lost before the run's card says so.
    assert run.state.exists() and start(name, settings, make_agent, toy_task, stub_executor)[1] == []
    assert (run.folder / "steps.csv").read_text().splitlines() == lines
    if name == "etpo_no_reflection":
        assert {r[header.index("episode_step")] for r in table} == {"1"}


@pytest.mark.parametrize(
    "name",
    [
        "etpo_memory",
        "ppo_kl",
        "reflection",
        *(pytest.param(name, marks=pytest.mark.nightly) for name in ("etpo", "etpo_action_level", "ppo_kl_memory")),
    ],
)
def test_same_seed_same_files_and_a_killed_run_goes_on_as_if_it_was_not(
    results, settings, make_agent, toy_task, stub_executor, name, monkeypatch
):
    arguments = (name, settings, make_agent, toy_task, stub_executor)
    whole = content(start(*arguments)[0])
    monkeypatch.setattr(paths, "RESULTS", results / "again")
    run, _ = start(*arguments, stop_after=1)
    # A kill between the rows of a batch and its checkpoint leaves rows that do not count.
    with (run.folder / "steps.csv").open("a") as file:
        file.write("9,1,0,0,1,0.5")
    _, rows = start(*arguments)
    assert [row["steps"] for row in rows] == [16, 20]
    assert content(run) == whole


def test_other_settings_do_not_go_on_from_a_checkpoint(results, settings, make_agent, toy_task, stub_executor):
    start("etpo", settings, make_agent, toy_task, stub_executor, stop_after=1)
    other = settings.replace(training={"temperature": 0.9})
    _, rows = start("etpo", other, make_agent, toy_task, stub_executor)
    assert [row["steps"] for row in rows] == [8, 16, 20]


def test_a_warm_started_model_is_named_by_how_it_was_made(toy_task):
    def mark(**card):
        return fingerprint({}, {"sha256": "a", "warm_start": {"steps": 3, "base": "b"}} | card, toy_task)

    assert mark(sha256="of another processor") == mark()  # its weights differ by rounding alone
    assert mark(warm_start={"steps": 3, "base": "c"}) != mark() != mark(warm_start={"steps": 4, "base": "b"})
    assert mark(warm_start=None) != mark(warm_start=None, sha256="other weights")


def test_another_seed_is_another_run(results, settings, make_agent, toy_task, stub_executor):
    a, _ = start("reflection", settings, make_agent, toy_task, stub_executor, seed=0)
    b, _ = start("reflection", settings, make_agent, toy_task, stub_executor, seed=1)
    assert content(a)[0] != content(b)[0]


def test_the_lengths_that_a_checkpoint_notes_are_on_disk(tmp_path, monkeypatch):
    files, synced = RunFiles(tmp_path, None), {}

    def sync(number):
        synced[os.fstat(number).st_ino] = os.fstat(number).st_size

    monkeypatch.setattr(os, "fsync", sync)
    files.write([], {"update": 1}, [{"code": "pass"}])
    lengths = files.lengths()
    files.close()
    assert {name: synced[(tmp_path / name).stat().st_ino] for name in RunFiles.NAMES} == lengths
    assert all(lengths.values())
