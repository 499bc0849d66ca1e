"""Tuning: what a variant changes, the scores of its run, and the notebook on a synthetic root."""

import json
import math
import shutil
from types import SimpleNamespace

import fixtures_results as fixtures
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.sections import Section
from etpo_paper.report import notebook, plotting, tuning

BASE = {"beta": 0.3, "policy_lr": 1e-4, "critic_lr": 3e-4, "epochs": 2}


def rng():
    return np.random.default_rng(3)


def run(rewards, batch, method="a", seed=0):
    """Steps and updates of one run; whatever is rewarded above -1 ran, and the KL is a tenth of the update."""
    count = len(rewards)
    steps = pd.DataFrame({"method": method, "task": "t", "seed": seed, "step": range(1, count + 1)})
    steps["update"] = [n // batch for n in range(count)]
    steps["reward"] = [float(r) for r in rewards]
    steps["status"] = ["ok" if r > -1 else "snippet_error" for r in rewards]
    updates = steps.drop_duplicates("update")[["method", "task", "seed", "update"]]
    return steps, updates.assign(kl_per_action=updates["update"] * 0.1)


def both(*runs):
    return tuple(pd.concat(frames, ignore_index=True) for frames in zip(*runs, strict=True))


# What a variant changes ------------------------------------------------------------------------------------------


def test_changes_are_what_departs_in_the_order_of_the_method():
    section = {"method": "a", "extra": "yes", **BASE, "epochs": 4, "policy_lr": 1e-3}
    assert tuning.changes(section, BASE) == {"policy_lr": 1e-3, "epochs": 4, "extra": "yes"}
    assert list(tuning.changes(section, BASE)) == ["policy_lr", "epochs", "extra"]
    assert tuning.describe(tuning.changes(section, BASE)) == "policy_lr 0.001, epochs 4, extra yes"
    section = {**BASE, "method": "a", "training": {"lora_rank": 4, "temperature": 0.7}}
    assert tuning.describe(tuning.changes(section, BASE)) == "lora_rank 4, temperature 0.7"
    # A setting that the method got after the run was made is not one that the run departs in.
    assert tuning.changes({"beta": 0.3}, BASE) == {}


def test_an_unchanged_section_says_so():
    assert tuning.describe(tuning.changes({"method": "a", **BASE}, BASE)) == "as in params.yaml"


def test_a_section_belongs_to_the_method_it_names():
    assert tuning.method_of("a_fast", {"method": "a"}) == "a"
    assert tuning.method_of("a", BASE) == "a"


def cards(tmp_path, sections):
    rows = []
    for name, seed, section in sections:
        folder = tmp_path / name / f"seed{seed}"
        folder.mkdir(parents=True)
        card = {} if section is None else {"parameters": {"method": section}}
        (folder / "run_card.json").write_text(json.dumps(card))
        rows.append({"method": name, "seed": seed, "status": "finished", "folder": folder})
    return pd.DataFrame(rows)


def settings(**methods):
    """The two parts of a scale's settings that say which variants there are."""
    return SimpleNamespace(methods=Section(methods), method_names=tuple(methods))


def test_variants_are_told_by_what_the_runs_used(tmp_path):
    # The choice was made and the method's section moved on to it: the old runs keep what they used.
    now = settings(a=BASE | {"policy_lr": 1e-3})
    frame = cards(tmp_path, [("a", 0, BASE), ("a", 1, BASE), ("a_fast", 0, {**BASE, "method": "a", "policy_lr": 1e-3})])
    unfinished = pd.DataFrame([{"method": "a_slow", "seed": 0, "status": "not run", "folder": tmp_path}])
    found = tuning.variants(pd.concat([frame, unfinished]), now)
    assert found.to_dict("records") == [
        {"name": "a", "method": "a", "changes": "policy_lr 0.0001"},
        {"name": "a_fast", "method": "a", "changes": "as in params.yaml"},
    ]


def test_cards_that_do_not_tell_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not say which settings"):
        tuning.variants(cards(tmp_path / "silent", [("a", 0, None)]), settings(a=BASE))
    two = cards(tmp_path / "two", [("a", 0, BASE), ("a", 1, BASE | {"beta": 1.0})])
    with pytest.raises(UserError, match="runs of a used different settings"):
        tuning.variants(two, settings(a=BASE))


def test_missing_notes_name_what_the_missing_variants_change():
    now = settings(etpo=BASE, etpo_fast=BASE | {"method": "etpo", "policy_lr": 1e-3}, ppo_kl=BASE)
    status = pd.DataFrame({"method": ["etpo", "etpo_fast", "ppo_kl"], "status": ["finished", "absent", "finished"]})
    notes = tuning.missing_notes(status, now, ["ppo_kl", "etpo"])
    assert notes == ["ETPO: 1 of 2 variants not finished (policy_lr 0.001)."]


# Scores ----------------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    steps, updates = run([-1, -1, -1, 0.5, 0.5, -1, 0.8, 0.6], batch=2)
    # The order of the rows means nothing.
    row = tuning.run_scores(steps.sample(frac=1, random_state=0), updates, rng()).iloc[0]
    assert row["mean"] == pytest.approx(-1.6 / 8)
    assert row["last_half"] == pytest.approx(0.9 / 4)
    assert row["last_quarter"] == pytest.approx(0.7)
    assert row["last_quarter_runs"] == 1.0
    assert row["largest_kl"] == pytest.approx(0.3)
    # The last half is two batches with means -0.25 and 0.7: s / √2 = 0.475; the last quarter is one, hence no error.
    assert row["last_half_error"] == pytest.approx(0.475, rel=0.02)
    assert math.isnan(row["last_quarter_error"]) and math.isnan(row["last_quarter_runs_error"])


def test_runs_are_scored_within_the_steps_that_all_have():
    steps, updates = both(run([0, 0, 0, 0, 1, 1], batch=2), run([0, 0, 1, 1], batch=2, method="b"))
    scores = tuning.run_scores(steps, updates, rng()).set_index("method")
    assert scores["last_half"].to_dict() == {"a": 0.0, "b": 1.0}
    assert scores["largest_kl"].to_dict() == {"a": pytest.approx(0.1), "b": pytest.approx(0.1)}


def test_the_standard_error_takes_batches_as_one_draw_each():
    values = np.random.default_rng(0).normal(size=(20, 1)) * np.ones((1, 16))  # all of a batch alike
    batches = np.repeat(np.arange(20), 16)
    expected = values[:, 0].std(ddof=1) / math.sqrt(20)
    assert tuning.standard_error(values.ravel(), batches, rng(), draws=20_000) == pytest.approx(expected, rel=0.03)
    alone = tuning.standard_error(values.ravel(), np.arange(320), rng(), draws=20_000)
    assert alone == pytest.approx(expected / 4, rel=0.05)


def test_the_standard_error_is_right_for_few_batches():
    draws = np.random.default_rng(0).normal(size=(2000, 4))  # the mean of four has variance 1/4
    found = np.mean([tuning.standard_error(d, np.arange(4), rng(), draws=200) ** 2 for d in draws])
    assert found == pytest.approx(0.25, rel=0.08)  # drawing four of four would give 3/16


def test_the_same_generator_gives_the_same_errors():
    frames = both(run([-1, 0, 1, 0.5] * 4, 2), run([1, -1, 0, 0.5] * 4, 2, method="b"))
    pd.testing.assert_frame_equal(tuning.run_scores(*frames, rng()), tuning.run_scores(*frames, rng()))


def test_ranking_sorts_by_the_last_half_within_each_method():
    names = ["etpo", "etpo_x", "ppo_kl", "other"]
    rewards = {"etpo": [1, 1, 0, 0.2], "etpo_x": [-1, -1, 0.4, 0.6], "ppo_kl": [0, 0, 0, 0], "other": [1, 1, 1, 1]}
    runs = [run(rewards[name], 1, name) for name in names] + [run([1, 1, 0.3, 0.3], 1, "etpo", seed=1)]
    scores = tuning.run_scores(*both(*runs), rng())
    known = pd.DataFrame({"name": names[:3], "method": ["etpo", "etpo", "ppo_kl"], "changes": ["x", "y", "z"]})
    fewer = tuning.ranking(scores, known)
    assert fewer["name"].tolist() == ["ppo_kl", "etpo", "etpo_x"], "one run does not beat the mean of two"
    again = tuning.run_scores(*both(*runs, run(rewards["etpo_x"], 1, "etpo_x", seed=1)), rng())
    table = tuning.ranking(again, known)
    assert table["name"].tolist() == ["ppo_kl", "etpo_x", "etpo"]  # baselines first, as in every table
    row = table.set_index("name").loc["etpo"]
    assert row["last_half"] == pytest.approx(0.2) and row["runs"] == 2  # mean of 0.1 and 0.3
    assert row["last_half_error"] == pytest.approx(0.1 / 2, rel=0.02)  # √(0.1² + 0²) / 2
    assert math.isnan(row["last_quarter_error"])


# The notebook ----------------------------------------------------------------------------------------------------


def tuning_root(tmp_path):
    """A root whose scale `tuning` plans five runs and has four: two of etpo, one of ppo_kl and one of reflection."""
    root = fixtures.make_root(tmp_path)
    params = yaml.safe_load((root / "params.yaml").read_text())
    methods = params["methods"]
    methods["etpo_x"] = {**methods["etpo"], "method": "etpo", "policy_lr": 0.0125, "lam": 0.5}
    methods["ppo_kl_x"] = {**methods["ppo_kl"], "method": "ppo_kl", "clip": 0.75}
    planned = ["etpo", "etpo_x", "ppo_kl", "ppo_kl_x", "reflection"]
    only_trains = {key: value for key, value in params["scales"]["smoke"].items() if key != "perplexity"}
    params["scales"]["tuning"] = only_trains | {"methods": planned, "tasks": ["breast-w"], "seeds": [0]}
    (root / "params.yaml").write_text(yaml.safe_dump(params))

    names = ("etpo", "ppo_kl", "reflection")
    fixtures.make_results(root, "tuning", names, ("breast-w",), (0,), updates=8, batch=4, gpt4=True)
    place = root / "results" / "tuning"
    shutil.copytree(place / "etpo", place / "etpo_x")
    path = place / "etpo_x" / "breast-w" / "seed0" / "steps.csv"
    steps = pd.read_csv(path, dtype={"code_hash": str})
    steps["reward"] = steps["reward"].clip(lower=0.25)  # better than etpo wherever a program fails
    steps.to_csv(path, index=False)
    for path in place.glob("*/*/*/run_card.json"):
        name = path.parent.parent.parent.name
        card = json.loads(path.read_text()) | {"method": name, "parameters": {"method": methods[name]}}
        path.write_text(json.dumps(card))
    return root


def test_the_notebook_ranks_the_finished_variants(tmp_path, at):
    root = tuning_root(tmp_path)
    at(root)
    notebook.execute(fixtures.CHECKOUT / "notebooks" / "tuning.ipynb", scale="tuning")
    place = root / "figures" / "tuning" / "tuning"
    files = {"learning_curves.png", "learning_curves.pdf", "variants.csv", "variants.md", "variants.tex"}
    assert {path.name for path in place.iterdir()} == files
    assert all(path.stat().st_size > 0 for path in place.iterdir())

    table = pd.read_csv(place / "variants.csv").set_index("name")
    assert list(table.index) == ["ppo_kl", "etpo_x", "etpo"]  # neither reflection nor the variant that was not run
    assert table.loc["etpo_x", "changes"] == "lam 0.5, policy_lr 0.0125"
    assert table.loc["etpo", "changes"] == "as in params.yaml"
    for name in table.index:
        rewards = pd.read_csv(root / f"results/tuning/{name}/breast-w/seed0/steps.csv")["reward"]
        assert table.loc[name, "last_half"] == pytest.approx(rewards[16:].mean(), abs=1e-6)
        assert table.loc[name, "mean"] == pytest.approx(rewards.mean(), abs=1e-6)
    assert table.loc["etpo", "largest_kl"] == pytest.approx(1.4)  # 0.2 nats an update

    answer = tuning.answer(tuning.load("tuning", rng()))
    assert answer.startswith("**Answer.** Highest mean reward over the last half of 32 steps: ETPO ")
    assert "(lam 0.5, policy_lr 0.0125; next " in answer.splitlines()[0]
    assert "- PPO-KL: 1 of 2 variants not finished (clip 0.75)." in answer
    shown = (place / "variants.md").read_text()
    assert "| ETPO | lam 0.5, policy_lr 0.0125 | **" in shown and "| ETPO | as in params.yaml | " in shown


@pytest.fixture
def made(tmp_path, monkeypatch):
    root = tuning_root(tmp_path)
    for name, place in {"ROOT": ".", "PARAMS": "params.yaml", "RESULTS": "results"}.items():
        monkeypatch.setattr(paths, name, root / place)
    plotting.use_style()
    yield root
    plt.close("all")


def test_the_figure_has_a_panel_for_each_method_and_a_line_for_each_variant(made):
    left, right = tuning.figure(tuning.load("tuning", rng())).axes
    assert (left.get_title(), right.get_title()) == ("ETPO", "PPO-KL")
    drawn = [line.get_label() for line in left.get_lines()]
    assert drawn == ["lam 0.5, policy_lr 0.0125", "as in params.yaml", "Reflection (untrained)"]
    updates = pd.read_csv(made / "results/tuning/etpo/breast-w/seed0/updates.csv")["mean_reward"]
    smooth = left.get_lines()[1].get_ydata()
    assert smooth[0] == pytest.approx(updates[:2].mean()) and smooth[3] == pytest.approx(updates[2:5].mean())
    steps = pd.read_csv(made / "results/tuning/reflection/breast-w/seed0/steps.csv")
    assert left.get_lines()[2].get_ydata()[0] == pytest.approx(steps["reward"].mean())


def test_tasks_of_other_scales_are_named(made):
    params = yaml.safe_load((made / "params.yaml").read_text())
    params["scales"] = {name: params["scales"][name] for name in ("smoke", "tuning")}
    params["scales"]["smoke"]["tasks"] = ["diabetes", "breast-w"]
    (made / "params.yaml").write_text(yaml.safe_dump(params))
    note = (
        "breast-w is also a task of other scales (smoke), whose results are therefore not independent of this choice."
    )
    assert tuning.load("tuning", rng()).notes[-1] == note


def test_scores_are_shown_task_by_task_where_there_are_several(made):
    for name in ("etpo", "etpo_x", "ppo_kl", "reflection"):
        place = made / "results/tuning" / name
        shutil.copytree(place / "breast-w", place / "diabetes")
    path = made / "results/tuning/etpo/diabetes/seed0/steps.csv"
    pd.read_csv(path, dtype={"code_hash": str}).assign(reward=0.5).to_csv(path, index=False)
    table = tuning.table(tuning.load("tuning", rng()))
    shown = table.cells().set_index("What it changes")
    assert shown.columns[1:4].tolist() == ["Last half", "On breast-w", "On diabetes"]
    etpo = table.numbers.set_index("name").loc["etpo"]
    assert shown.loc["as in params.yaml", "On diabetes"].tolist() == [shown["On diabetes"].iloc[0], "0.50"]
    assert etpo["runs"] == 2 and table.caption.endswith(
        "on breast-w, diabetes: mean reward, share of programs that run, KL in nats."
    )


@pytest.mark.parametrize("scale", ["laptop", "study"])
def test_a_scale_that_reports_results_is_no_round_of_tuning(scale):
    rounds = "tuning, retuning, starts, factors, batches, toy_tuning, improving, confirming"
    message = f"scale {scale} compares methods and is no round of tuning; choose one of: {rounds}"
    with pytest.raises(UserError, match=f"^{message}$"):
        tuning.load(scale, rng())


def test_a_scale_without_runs_says_what_to_run(tmp_path, monkeypatch):
    root = fixtures.make_root(tmp_path)
    fixtures.make_results(root, "tuning", ("reflection",), ("breast-w",), (0,), updates=1, batch=2, gpt4=True)
    path = root / "results/tuning/reflection/breast-w/seed0/run_card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parameters": {"method": {"reflect": True}}}))
    monkeypatch.setattr(paths, "RESULTS", root / "results")
    with pytest.raises(
        UserError, match="no finished run of scale tuning; make them: python -m pipeline.matrix --scale"
    ):
        tuning.load("tuning", rng())
