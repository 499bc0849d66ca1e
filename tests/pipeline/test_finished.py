"""Finished stays finished: committed runs match today's settings, and what changes no number makes no run anew."""

import copy
import json
import subprocess
from functools import cache
from types import SimpleNamespace

import pytest

from etpo_core.errors import UserError
from etpo_paper.base import paths, upgrades
from etpo_paper.base.settings import load_settings
from etpo_paper.base.upgrades import Rule, upgrade
from etpo_paper.data.tasks import TASKS
from etpo_paper.training.run import Run, fingerprint, is_finished, run_parameters
from pipeline import matrix, train

# What the recipe of a warm-started model holds beside its section of params.yaml. Both are the same on every machine.
BODIES = {"tiny": 200, "smollm2": 300}
BASES = {
    "tiny": "12d1d5381abaa8f650d869bbc6230c9f8916c4ec0f9bcdc071c272e45204221f",
    "smollm2": "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
}
settings_of = cache(load_settings)


@pytest.fixture(scope="module")
def cards():
    """The committed run cards; those of runs that were only made here may say anything."""
    command = ["git", "ls-files", "results/*/run_card.json"]
    listed = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert len(listed) >= 237
    return [paths.ROOT / name for name in listed]


def recipe(name):
    """The model's card, as far as it identifies the model; no weights are needed for it."""
    section = getattr(settings_of("smoke").warm_start, name).plain()
    del section["report_samples"]
    return {"warm_start": section | {"bodies": BODIES[name], "base": BASES[name]}, "sha256": "0" * 64}


def table(name):
    spec = TASKS[name]
    return SimpleNamespace(sha256=(spec.stand_in or spec).sha256)


def finished(path):
    scale, method, task, seed = path.parts[-5:-1]
    settings = settings_of(scale, method)
    card = {"sha256": None} if "model" in settings.methods[method] else recipe(settings.model)
    return is_finished(Run(scale, method, task, int(seed.removeprefix("seed"))), settings, card, table(task))


def test_committed_runs_are_finished_with_todays_settings(cards):
    unfinished = [path for path in cards if not finished(path)]
    # The cards of the first round name the model by its weights instead of its recipe; one run lacked a key.
    assert {path.parts[-5:-2] for path in unfinished if path.parts[-5] != "tuning"} == {
        ("laptop", "reflection_gpt4", "diabetes")
    }
    assert len(unfinished) == 1 + 13


def test_cards_say_in_todays_words_what_todays_settings_say(cards):
    """This holds for the runs of the first round as well, but for two settings of `training` that came after them."""
    for path in cards:
        card = json.loads(path.read_text())
        run = Run(card["scale"], card["method"], card["task"], card["seed"])
        now = run_parameters(run, settings_of(run.scale, run.method))
        then = upgrade(card["parameters"], run.method)
        then["training"] = {"momentum": 0.9, "final_rate": now["training"]["final_rate"], **then["training"]}
        assert then == now, path


def test_the_matrix_of_a_finished_round_has_nothing_to_do(monkeypatch):
    monkeypatch.setattr(train.models, "card", recipe)
    monkeypatch.setattr(train.data, "table", table)
    monkeypatch.setattr(matrix.subprocess, "run", lambda *_, **__: pytest.fail("a finished run is made again"))
    assert matrix.complete("batches", workers=2, minutes=1) == []


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run in a folder of its own, and a function that says whether it is."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    run, settings = Run("smoke", "ppo_kl", "diabetes", 3), settings_of("smoke")
    model, task = recipe("tiny"), table("diabetes")
    parameters = run_parameters(run, settings)
    card = {"status": "finished", "parameters": parameters, "fingerprint": fingerprint(parameters, model, task)}
    card["data"] = {"sha256": task.sha256}

    def check(settings=settings, model=model, task=task, **changes):
        run.card.parent.mkdir(parents=True, exist_ok=True)
        run.card.write_text(json.dumps(card | changes))
        return is_finished(run, settings, model, task)

    return check


def test_a_run_is_finished_with_the_same_settings_model_and_table_only(run):
    settings = settings_of("smoke")
    assert run()
    assert run(settings.replace(sandbox={"workers": 7}, worlds={"updates": 1}))
    assert not run(settings.replace(training={"env_steps": 8}))
    assert not run(settings.replace(methods={"ppo_kl": {"beta": 0.5}}))
    assert not run(settings.replace(sandbox={"memory_mb": 99}))
    assert not run(model=recipe("smollm2")) and not run(task=table("cmc"))
    assert not run(status="not run") and not run(fingerprint="0")
    changed = copy.deepcopy(run_parameters(Run("smoke", "ppo_kl", "diabetes", 3), settings))
    changed["method"]["clip"] = 0.5
    assert not run(parameters=changed), "the fingerprint vouches for what the card says"


def test_a_new_setting_makes_runs_anew_unless_a_rule_says_what_they_did_without_it(run, monkeypatch):
    settings = settings_of("smoke")
    older = run_parameters(Run("smoke", "ppo_kl", "diabetes", 3), settings)
    del older["training"]["momentum"], older["method"]["clip"]
    card = {"parameters": older, "fingerprint": fingerprint(older, recipe("tiny"), table("diabetes"))}
    assert not run(**card)
    rules = [
        Rule("torch's default", section="training", default={"momentum": 0.9}),
        Rule("was a constant", methods=("ppo_kl",), default={"clip": 0.2}),
    ]
    monkeypatch.setattr(upgrades, "RULES", [*upgrades.RULES, *rules])
    assert run(**card)
    assert not run(settings.replace(training={"momentum": 0.5}), **card)
    monkeypatch.setattr(upgrades, "RULES", [rules[0], rules[1]._replace(methods=("etpo",))])
    assert not run(**card)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"status": "finished"}',
        '{"status": "finished", "parameters": [1], "data": {}}',
        '{"status": "finished", "parameters": {"training": 1}, "data": {}}',
        '{"status": "finished", "parameters": {}, "data": 1}',
        '{"status": 1, "parameters": {}, "data": {}}',
    ],
)
def test_a_damaged_card_is_one_line(run, text):
    run()
    of = Run("smoke", "ppo_kl", "diabetes", 3)
    of.card.write_text(text)
    with pytest.raises(UserError, match=f"^{of.card} is not a run card; delete {of.folder} and make the run again$"):
        is_finished(of, settings_of("smoke"), recipe("tiny"), table("diabetes"))
    of.state.parent.mkdir()
    of.state.touch()
    with pytest.raises(UserError, match="is not a run card; delete this file and .* goes on from its checkpoint$"):
        is_finished(of, settings_of("smoke"), recipe("tiny"), table("diabetes"))


@pytest.mark.parametrize(
    ("name", "then", "now"),
    [
        ("etpo", {"beta": 1, "reading": "dueling"}, {"beta": 1}),
        ("etpo_b5", {"reading": "dueling", "method": "etpo"}, {"method": "etpo"}),
        ("etpo_action_level", {"reading": "dueling"}, {}),
        ("etpo_memory", {"reading": "dueling"}, {"remember": True, "center": False}),
        ("x", {"method": "etpo_memory", "center": True}, {"method": "etpo_memory", "center": True, "remember": True}),
        ("x", {"method": "etpo", "center": True}, {"method": "etpo_memory", "center": True, "remember": False}),
        ("etpo", {"center": False}, {}),
        (
            "etpo",
            {"reading": "residual", "advantage_prior": 0.3, "value_decay": 0.9, "value_ridge": 0.5, "tau": 0.9},
            {"parameterisation": "residual", "method": "etpo_on_logits", "tau": 0.9},
        ),
        ("x", {"method": "etpo", "reading": "raw"}, {"parameterisation": "raw", "method": "etpo_on_logits"}),
        ("poad", {"lam": 1}, {"lam": 1, "discount_tokens": False}),
        ("ntpo", {"lam": 1}, {"lam": 1, "method": "poad", "discount_tokens": True}),
        ("released", {"reading": "raw", "ignore_sampling": True}, {"parameterisation": "raw"}),
        ("ppo_kl", {"beta": 1, "reading": "dueling"}, {"beta": 1, "reading": "dueling"}),
    ],
)
def test_what_a_card_says_in_todays_words(name, then, now):
    before = {"method": then, "training": {"a": 1}}
    kept = copy.deepcopy(before)
    after = upgrade(before, name)
    assert after == {"method": now, "training": {"a": 1}} and before == kept
    assert upgrade(after, name) == after, "today's words stay as they are"


def test_every_rule_says_why_it_changes_no_number():
    assert all(len(rule.why.split()) >= 5 for rule in upgrades.RULES)
