"""What the notebooks show, computed from small made results and compared with the raw files."""

import csv
import json
import shutil

import fixtures_results as fixtures
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import etpo_core.bellman
import etpo_core.losses
from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.report import (
    ablations,
    advantages,
    algorithm,
    benchmark,
    consistency,
    convergence,
    credit,
    datasets,
    estimates,
    exploration,
    frontier,
    learning,
    main_table,
    metrics,
    notebook,
    own_environment,
    perplexity,
    plotting,
    results,
    style,
    tables,
)

TASKS = ("balance-scale", "kidney-stone")


def rng():
    return np.random.default_rng(0)


def use(monkeypatch, root):
    for name, place in {
        "PARAMS": "params.yaml",
        "RESULTS": "results",
        "EVALUATIONS": "evaluations",
        "TABLES": "data/tables",
        "FIGURES": "figures",
    }.items():
        monkeypatch.setattr(paths, name, root / place)
    plotting.use_style()
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two tasks with two seeds of every method of the fixtures, held-out scores, prepared tables and regrets."""
    root = fixtures.make_root(tmp_path_factory.mktemp("made"))
    fixtures.make_results(root, tasks=TASKS)
    fixtures.make_evaluation(root)
    fixtures.make_tables(root)
    fixtures.make_regret(root)
    return root


@pytest.fixture
def root(made, monkeypatch):
    yield use(monkeypatch, made)
    plt.close("all")


@pytest.fixture
def other(tmp_path, monkeypatch):
    """A root without results, for tests that make their own."""
    yield use(monkeypatch, fixtures.make_root(tmp_path))
    plt.close("all")


def raw(root, method, task="balance-scale", seed=0, name="steps"):
    # A hash such as "46e1" is not a number.
    return pd.read_csv(root / f"results/smoke/{method}/{task}/seed{seed}/{name}.csv", dtype={"code_hash": str})


def every(root, method):
    return [raw(root, method, task, seed) for task in TASKS for seed in (0, 1)]


def lines(axes):
    return [line.get_label() for line in axes.get_lines()]


def test_an_answer_comes_before_its_notes():
    assert notebook.answer("Yes.", ["one", "two"]) == "**Answer.** Yes.\n\n- one\n- two"
    assert notebook.answer("Yes.") == "**Answer.** Yes."


# Exploration -----------------------------------------------------------------------------------------------------


def test_exploration_ends_at_what_the_raw_files_say(root):
    data = exploration.load("smoke", rng())
    assert data.tasks == list(TASKS) and data.budget == 40
    table = exploration.table(data)
    rows = table.numbers.set_index(["method", "steps"])
    assert set(rows.index.get_level_values("steps")) == {4, 10, 20, 40}
    for k in (4, 40):
        best = np.mean([run["reward"].head(k).max() for run in every(root, "ppo_kl")])
        assert rows.loc[("ppo_kl", k), "best"] == pytest.approx(best)
    assert rows.loc[("etpo", 40), "low"] <= rows.loc[("etpo", 40), "best"] <= rows.loc[("etpo", 40), "high"]
    shown = table.cells().set_index("Method")
    assert shown.loc["ETPO", "K = 40"].startswith(f"{rows.loc[('etpo', 40), 'best']:.3f} [")
    assert "Reflection (GPT-4): not run (OPENAI_API_KEY is not set)." in table.notes


def test_exploration_answers_with_the_highest_first_and_draws_each_method(root):
    data = exploration.load("smoke", rng())
    first = exploration.answer(data).splitlines()[0]
    scores = [float(part.split()[0]) for part in first.split(" on average ")[1].split(", ")]
    assert first.startswith("**Answer.** After 40 steps on 2 tasks the best program scores on average ")
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    axes, ends = exploration.figure(data).axes
    assert lines(axes) == ["Reflection", "PPO-KL", "ETPO"] and axes.get_xlim() == (1, 40)
    assert [text.get_text() for text in ends.get_yticklabels()] == lines(axes)


def test_exploration_shows_methods_with_memory_beside_etpo_in_a_panel_of_their_own(other):
    fixtures.make_results(other, methods=("ppo_kl", "etpo", "etpo_memory"), tasks=TASKS[:1])
    data = exploration.load("smoke", rng())
    paper, ours, ends = exploration.figure(data).axes
    assert lines(paper) == ["PPO-KL", "ETPO"]
    assert lines(ours) == ["ETPO", "ETPO with memory"]
    assert len(ends.get_yticks()) == 3
    dots = [line.get_xdata()[0] for line in ends.get_lines() if len(line.get_xdata()) == 1]
    assert dots == [float(curve.point[-1]) for curve in data.curves.values()]


# Main table ------------------------------------------------------------------------------------------------------


def test_the_main_table_is_what_the_raw_files_say(root):
    data = main_table.load("smoke")
    assert "ppo_no_kl" not in data.methods and data.tasks == list(TASKS)
    table = main_table.table(data)
    assert f"stopped, among {len(results.load_steps('smoke')):,} programs: 0 refused calls" in table.notes[-2]
    assert "The best programs then have 0.510 on average and at most 0.510 (" in table.notes[-1]
    row = table.numbers.set_index(["task", "method"]).loc[("balance-scale", "etpo")]
    one, two = (raw(root, "etpo", seed=seed)["reward"].max() for seed in (0, 1))
    assert row["best_mean"] == pytest.approx((one + two) / 2)
    assert row["best_std"] == pytest.approx(abs(one - two) / 2**0.5)
    assert row["best_mean"] - row["held_out_mean"] == pytest.approx(0.02)
    shown = table.cells().set_index("Data set")
    assert list(shown.index) == ["balance-scale", "kidney-stone†", "mean of 2 tasks"]
    assert (shown["Reflection (GPT-4)"] == "not run").all()
    assert f"{row['best_mean']:.3f}" in shown.loc["balance-scale", "ETPO"]
    assert f" ± {row['best_std']:.3f} ({row['held_out_mean']:.3f})" in shown.loc["balance-scale", "ETPO"]
    for task in TASKS:
        scores = table.numbers[table.numbers["task"] == task].set_index("method")["best_mean"]
        best = exploration.label(scores.idxmax())
        assert shown.loc[main_table.task_label(task, task == TASKS[1]), best].startswith(f"**{scores.max():.3f}**")
    mean = np.mean([run["reward"].max() for run in every(root, "etpo")])
    assert f"{mean:.3f}" in shown.loc["mean of 2 tasks", "ETPO"]


def test_the_main_table_answers_with_wins_and_optimism(root):
    first = main_table.answer(main_table.load("smoke")).splitlines()[0]
    wins = [int(part.split(" is best on ")[1].split()[0]) for part in first.split(" of 2 tasks")[0].split(", ")]
    assert sum(wins) == 2 and "(40 steps). Rewards of best programs exceed their held-out scores by 0.020." in first


def test_methods_over_all_tasks(root):
    table = main_table.aggregate(main_table.load("smoke"), rng())
    rows = table.numbers.set_index("method")
    assert rows["optimism"].to_numpy() == pytest.approx(0.02) and (rows["runs"] == 4).all()
    assert rows.loc["etpo", ["difference", "improvement"]].isna().all()
    best = {method: [run["reward"].max() for run in every(root, method)] for method in ("etpo", "ppo_kl")}
    expected = sorted(np.subtract(best["etpo"], best["ppo_kl"]))[1:3]
    assert rows.loc["ppo_kl", "difference"] == pytest.approx(np.mean(expected))
    assert table.cells().columns.tolist() == ["Method", "IQM of best", "ETPO - method", "P(ETPO better)", "Optimism"]
    figure = main_table.performance_profile(main_table.load("smoke"), rng())
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes if axes.axison]
    assert titles == [name for name in table.cells()["Method"] if name != "ETPO"]
    axes = figure.axes[1]
    assert lines(axes) == ["ETPO", titles[1]]
    profile = axes.get_lines()[0].get_ydata()
    assert profile[0] == 1.0 and profile[-1] == 0.0 and (np.diff(profile) <= 0).all()


def test_held_out_splits_that_fail_are_said(other):
    fixtures.make_results(other, methods=("etpo",), tasks=TASKS[:1], seeds=(0,))
    fixtures.make_evaluation(other)
    path = other / "evaluations/smoke/held_out.csv"
    pd.read_csv(path).assign(splits=8, splits_failed=2).to_csv(path, index=False)
    assert main_table.load("smoke").notes[-1] == (
        "ETPO on balance-scale, seed 0: the best program fails on 2 of 10 held-out splits; its held-out score is the "
        "mean over the others."
    )
    pd.read_csv(path).assign(splits=0, held_out_score=-1.0).to_csv(path, index=False)
    assert main_table.load("smoke").scores["held_out_score"].isna().all(), "a program that never ran has no score"


# Convergence -----------------------------------------------------------------------------------------------------


def test_the_end_of_training_is_what_the_raw_files_say(root):
    data = convergence.load("smoke")
    assert (data.learners, data.levels) == (["ppo_kl", "etpo"], ["reflection"])
    generator = rng()
    ends = convergence.compare_ends(data, generator)
    curves = convergence.curves(data, generator)
    assert list(curves) == ["mean of 2 tasks", "balance-scale", "kidney-stone†"]
    batches = [raw(root, "etpo", task, seed, "updates")["mean_reward"] for task in TASKS for seed in (0, 1)]
    np.testing.assert_allclose(curves["mean of 2 tasks"]["etpo"].point, np.mean(batches, axis=0))

    table = convergence.last_fifth(data, ends, curves, generator)
    rows = table.numbers.set_index("method")
    late = {m: [run["reward"].tail(8).mean() for run in every(root, m)] for m in ("reflection", "ppo_kl", "etpo")}
    assert rows.loc["etpo", "reward_iqm"] == pytest.approx(np.mean(sorted(late["etpo"])[1:3]))
    differences = sorted(np.subtract(late["etpo"], late["ppo_kl"]))
    assert rows.loc["ppo_kl", "reward_difference"] == pytest.approx(np.mean(differences[1:3]))
    std = {m: np.sqrt(np.mean(np.var(np.reshape(late[m], (2, 2)), axis=1, ddof=1))) for m in late}
    assert rows["std_over_seeds"].to_dict() == pytest.approx(std)
    assert rows.loc["ppo_kl", "std_ratio"] == pytest.approx(std["etpo"] / std["ppo_kl"])
    assert np.isnan(rows.loc["etpo", "std_ratio"]) and np.isnan(rows.loc["reflection", "falls"])
    shown = table.cells().set_index("Method")
    assert shown.loc["Reflection", "Updates that fall"] == "–" and shown.loc["ETPO", "Updates that fall"].isdigit()
    assert convergence.answer(data, ends).startswith(
        "**Answer.** Mean reward over the last fifth of the budget, interq"
    )
    assert f"(mean {np.mean(late['etpo']):.3f})" in convergence.answer(data, ends)


def test_the_panels_of_convergence_have_curves_and_levels(root):
    data = convergence.load("smoke")
    ends = convergence.compare_ends(data, rng())
    figures = convergence.figures(data, convergence.curves(data, rng()), ends)
    assert list(figures) == ["mean_reward"]
    figure = figures["mean_reward"]
    mean, first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["mean of 2 tasks", "balance-scale", "kidney-stone†"]
    assert lines(mean) == lines(second) == ["Reflection", "PPO-KL", "ETPO"]
    level = np.mean([raw(root, "reflection", TASKS[0], seed)["reward"].mean() for seed in (0, 1)])
    assert first.get_lines()[0].get_ydata()[0] == pytest.approx(level)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == lines(mean)
    iqm = ends.set_index("method")["iqm"]["etpo"]
    assert f"ETPO {data.means['etpo']:.3f} / {iqm:.3f}." in " ".join(figure.texts[-1].get_text().split())


def test_a_run_that_broke_is_marked_and_additions_have_a_figure_of_their_own(other):
    fixtures.make_results(other, methods=("ppo_kl", "etpo", "etpo_memory"), tasks=TASKS)
    path = other / "results/smoke/etpo/balance-scale/seed1/steps.csv"
    steps = pd.read_csv(path, dtype={"code_hash": str})
    steps.loc[steps.index[-8:], ["status", "reward"]] = ["exception", -1.0]
    steps.to_csv(path, index=False)
    data = convergence.load("smoke")
    assert data.broken[results.KEYS].to_numpy().tolist() == [["etpo", "balance-scale", 1]]
    ends = convergence.compare_ends(data, rng())
    figures = convergence.figures(data, convergence.curves(data, rng()), ends)
    assert list(figures) == ["mean_reward", "mean_reward_additions"]
    for figure, names in zip(figures.values(), (["PPO-KL", "ETPO"], ["ETPO", "ETPO with memory"]), strict=True):
        mean, one, two = figure.axes
        assert lines(mean) == lines(two) == names and len(lines(one)) == 3
        marked = one.get_lines()[-1]
        assert marked.get_marker() == "x" and [text.get_text() for text in one.texts] == ["seed 1"]
        own = raw(other, "etpo", seed=1, name="updates")
        assert marked.get_ydata().tolist() == own["mean_reward"].tolist()
        assert "ETPO on balance-scale, seed 1 broke" in figure.texts[-1].get_text()
    assert "ETPO on balance-scale, seed 1 broke" in convergence.answer(data, ends)


def test_the_end_of_training_taken_apart(other):
    fixtures.make_results(other, methods=("ppo_kl", "etpo", "etpo_memory"), tasks=TASKS[:1])
    table = convergence.settled(convergence.load("smoke"), rng())
    rows = table.numbers.set_index("method")
    runs = [raw(other, "ppo_kl", seed=seed) for seed in (0, 1)]
    last = [run.tail(8) for run in runs]
    assert any((run["status"] != "ok").any() for run in last), "some fail, or the level would be the mean reward"
    level = np.mean([run[run["status"] == "ok"]["reward"].mean() for run in last])
    assert rows.loc["ppo_kl", "last_level"] == pytest.approx(level)
    assert rows.loc["ppo_kl", "gap"] == pytest.approx(np.mean([run["reward"].max() for run in runs]) - level)
    assert rows["etpo_memory_difference"].isna().tolist() == [method == "etpo_memory" for method in rows.index]
    assert table.cells().columns[-1] == "ETPO with memory - method, mean reward (IQM)"


def test_one_seed_has_no_intervals_and_one_task_no_mean(other):
    fixtures.make_results(other, methods=("etpo",), tasks=TASKS[:1], seeds=(0,))
    data = convergence.load("smoke")
    curves = convergence.curves(data, rng())
    table = convergence.last_fifth(data, convergence.compare_ends(data, rng()), curves, rng())
    assert list(curves) == ["balance-scale"] and "[" not in tables.markdown(table)
    assert "1 task, 1 seed a task: n=1, hence no interval." in table.notes
    assert "PPO-KL: not run." in table.notes
    figures = convergence.figures(data, curves, convergence.compare_ends(data, rng()))
    assert len(figures["mean_reward"].axes) == 1


# Ablations -------------------------------------------------------------------------------------------------------


def test_ablations_are_compared_with_etpo(root):
    generator = rng()
    data = ablations.load("smoke", generator)
    assert data.methods == ["etpo", "etpo_no_reflection", "etpo_action_level"]
    left, right, best, last = ablations.figure(data, generator).axes
    assert lines(left) == lines(right) == [ablations.label(method) for method in data.methods]
    for axes, ends in ((best, data.best), (last, data.late)):
        dots = [line.get_xdata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 1]
        assert dots == ends["iqm"].tolist()
    table = ablations.table(data)
    rows = table.numbers.set_index("method")
    late = {method: [run["reward"].tail(8).mean() for run in every(root, method)] for method in data.methods}
    for method in data.methods[1:]:
        expected = np.mean(sorted(np.subtract(late["etpo"], late[method]))[1:3])
        assert rows.loc[method, "last_fifth_difference"] == pytest.approx(expected)
    assert table.cells()["ETPO - method, best"][0] == "–" and table.caption.startswith("ETPO and its ablations on 2 ")
    answer = ablations.answer(data)
    assert answer.startswith(
        "**Answer.** Mean reward over the last fifth of 40 steps, interquartile mean (IQM) over runs"
    )
    assert f"(mean {np.mean(late['etpo']):.3f})" in answer


def test_ablations_are_compared_on_common_seeds_only(other):
    fixtures.make_results(other, methods=ablations.METHODS, tasks=TASKS)
    place = other / "results/smoke/etpo_no_reflection/balance-scale/seed1"
    shutil.rmtree(place)
    path = other / "results/smoke/etpo/balance-scale/seed1/steps.csv"
    steps = pd.read_csv(path, dtype={"code_hash": str})
    steps.loc[steps.index[-8:], ["status", "reward"]] = ["exception", -1.0]
    steps.to_csv(path, index=False)
    data = ablations.load("smoke", rng())
    assert data.late["runs"].tolist() == [3, 3, 3]
    assert data.updates.groupby("method")["seed"].value_counts().nunique() == 2  # seed 1 on one task only
    kept = [raw(other, "etpo", *run)["reward"].tail(8).mean() for run in ((TASKS[0], 0), (TASKS[1], 0), (TASKS[1], 1))]
    assert data.late["iqm"][0] == pytest.approx(np.mean(kept))
    assert "Only seeds that all methods have are compared (0, 1)." in data.notes
    assert "ETPO on balance-scale, seed 1, is not among them; none of its last programs ran." in data.notes
    for seed, task in ((0, TASKS[0]), (0, TASKS[1]), (1, TASKS[1])):
        shutil.rmtree(other / f"results/smoke/etpo_no_reflection/{task}/seed{seed}")
    for task in TASKS:
        shutil.rmtree(other / f"results/smoke/etpo_action_level/{task}/seed0")
        shutil.rmtree(other / f"results/smoke/etpo/{task}/seed1")
    with pytest.raises(UserError, match="no task and seed of scale smoke has finished runs of all of"):
        ablations.load("smoke", rng())


# Style -----------------------------------------------------------------------------------------------------------


def test_style_before_and_after_training(root):
    data = style.load("smoke")
    assert data.main == "etpo" and data.methods == ["ppo_kl", "etpo"]
    rows = style.complexity_table(data).numbers.set_index(["method", "when"])
    kept = [
        json.loads(line)
        for path in (root / "results/smoke/etpo").glob("*/*/samples.jsonl")
        for line in path.read_text().splitlines()
    ]
    first = [row for row in kept if row["update"] == 0]
    row = rows.loc[("etpo", "first batch")]
    assert row["samples"] == len(first) == 16
    assert row["ran"] == pytest.approx(np.mean([sample["status"] == "ok" for sample in first]))
    assert row["pipeline"] == pytest.approx(np.mean(["make_pipeline(" in sample["code"] for sample in first]))
    assert row["distinct"] == pytest.approx(len({sample["code"] for sample in first}) / 16)
    ran = np.mean([sample["status"] == "ok" for sample in kept if sample["update"] == 4])
    assert f"code that runs {row['ran']:.0%} → {ran:.0%}, lines " in style.answer(data)


def test_complexity_has_a_panel_for_each_measure_and_one_for_distinct_programs(root):
    figure = style.complexity_figure(style.load("smoke"), rng())
    labels = [*style.PANELS.values(), "share of distinct\nprograms", "", ""]
    assert [axes.get_ylabel() for axes in figure.axes] == labels
    hashes = [
        [part["code_hash"].nunique() / len(part) for _, part in run.groupby("update")] for run in every(root, "etpo")
    ]
    drawn = figure.axes[6].get_lines()[1]
    assert drawn.get_label() == "ETPO"
    np.testing.assert_allclose(drawn.get_ydata(), np.mean(hashes, axis=0))
    assert all(len(axes.collections) == 2 for axes in figure.axes[:7]), "a band for each method"
    assert "4 programs that a run keeps" in figure.texts[0].get_text()


def test_the_winning_construction_and_the_code_itself(root):
    data = style.load("smoke")
    figure, table = style.emergence(data, rng())
    winners = table.numbers["construction"]
    titles = [f"balance-scale\n{winners[0]}", f"kidney-stone†\n{winners[1]}"]
    assert [axes.get_title() for axes in figure.axes] == titles
    row = table.numbers.iloc[0]
    own = data.own[data.own["task"] == "balance-scale"]
    assert row["construction"] == style.winning_construction(own)
    late = own[own["update"] == 4]
    assert row["share_last_fifth"] == pytest.approx((late["construction"] == row["construction"]).mean())
    assert figure.axes[0].get_lines()[0].get_ydata()[-1] == pytest.approx(row["share_last_fifth"])

    codes = style.codes(data)
    assert codes.numbers[["task", "when"]].to_numpy().tolist() == [
        [task, when] for task in TASKS for when in ("before", "after")
    ]
    after = codes.numbers.iloc[1]
    assert after["reward"] == late[late["seed"] == 0]["reward"].max()
    assert style.code_listing(codes).count("```python") == 4
    assert "**kidney-stone†, after training** (step " in style.code_listing(codes)


def test_a_task_on_which_nothing_ran_says_so(other):
    fixtures.make_results(other, methods=("etpo",), tasks=TASKS[:1], seeds=(0,))
    path = other / "results/smoke/etpo/balance-scale/seed0/samples.jsonl"
    rows = [json.loads(line) | {"status": "timeout"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure, table = style.emergence(style.load("smoke"), rng())
    assert table.cells().loc[0].tolist() == ["balance-scale", "–", "–", "–", "–"]
    assert figure.axes[0].get_title() == "balance-scale\nno program ran"


# Credit ----------------------------------------------------------------------------------------------------------


def test_credit_by_method(root):
    data = credit.load("smoke")
    assert data.methods == ["ppo_kl", "etpo", "etpo_action_level"] and data.older == []
    found = credit.by_method(data, rng())
    rows = found.set_index(["method", "outcome", "when"]).sort_index()
    assert len(rows) == 3 * 2 * 2
    assert rows.loc["ppo_kl", "concentration"].dropna().to_numpy() == pytest.approx(0.1)
    late = credit.by_run(data.samples).query("method == 'etpo' and ran and when == 'late'")
    expected = late.groupby("task")["largest"].mean().mean()
    assert rows.loc[("etpo", "ran", "late"), "largest"] == pytest.approx(expected)
    assert rows.loc[("etpo", "ran", "late"), "actions"] == late["actions"].sum()
    answer = credit.answer(data, found)
    assert "PPO-KL 0.100" in answer and "All tokens alike would be 0.100." in answer
    shown = credit.table(data, found).cells()
    assert shown.loc[0, ["Method", "Actions that", "When"]].tolist() == ["PPO-KL", "failed", "early"]


def test_no_failed_action_is_said_rather_than_averaged(root):
    data = credit.load("smoke")
    found = credit.by_method(data, rng())
    none = found.assign(actions=0, concentration=np.nan)
    assert "ETPO (no action failed)" in credit.answer(data, none)


def test_the_figures_of_credit_show_an_action_of_each_method_early_and_late(root):
    figures = credit.figures(credit.load("smoke"))
    assert list(figures) == ["tokens_failed", "tokens_ran"]
    for outcome, figure in figures.items():
        texts = [text.get_text() for text in figure.texts]
        actions = [text for text in texts if ": update " in text]
        missing = sum("no such action" in text for text in texts)
        assert len(actions) + missing == 2 * 3 and actions[0].startswith("PPO-KL: update 1, step ")
        assert texts[0] == f"First fifth of training, actions that {outcome.removeprefix('tokens_')}"
        errors = sum(text.startswith("SyntaxError: '(' was never closed") for text in texts)
        assert errors == (len(actions) if outcome == "tokens_failed" else 0)
        code = "".join(text.get_text() for text in figure.axes[0].texts)
        assert "LogisticRegression(" in code and "∎" in code
        assert texts[-1].startswith("Task balance-scale; seeds that all methods have: 0, 1.\n")
        assert figure.get_figwidth() == plotting.PAGE_WIDTH
        (bar,) = [axes for axes in figure.axes if axes.get_xlabel() == "credit of a token, in units of reward"]
        assert bar.get_xlim()[1] == -bar.get_xlim()[0] >= 1
    limits = {axes.get_xlim() for figure in figures.values() for axes in figure.axes if axes.get_xlabel()}
    assert len(limits) == 1, "both figures have the same colours"


def test_credit_is_compared_on_the_seeds_that_all_methods_have(other):
    fixtures.make_results(other, methods=("ppo_kl",), tasks=TASKS[:1], seeds=(0, 1, 2))
    fixtures.make_results(other, methods=("etpo",), tasks=TASKS[:1], seeds=(0, 1))
    data = credit.load("smoke")
    assert set(data.samples.loc[data.samples["method"] == "ppo_kl", "seed"]) == {0, 1}
    assert "Only seeds that all methods have are compared (0, 1)." in data.notes


def test_methods_without_a_common_run_are_one_line(other):
    fixtures.make_results(other, methods=("ppo_kl",), tasks=TASKS[:1], seeds=(0,))
    fixtures.make_results(other, methods=("etpo",), tasks=TASKS[:1], seeds=(1,))
    with pytest.raises(UserError, match="no task and seed of scale smoke has finished runs of all of ppo_kl, etpo"):
        credit.load("smoke")


def test_a_missing_action_leaves_its_place_empty(other):
    fixtures.make_results(other, methods=("etpo",), tasks=TASKS[:1], seeds=(0,), updates=2, batch=1)
    figures = credit.figures(credit.load("smoke"))
    texts = [text.get_text() for figure in figures.values() for text in figure.texts]
    assert sum(text == "ETPO: no such action is among those kept" for text in texts) == 2


# Frontier --------------------------------------------------------------------------------------------------------


def test_the_ends_beside_the_frontier(root):
    data = frontier.load("smoke")
    ends = frontier.ends(data)
    assert ends[["task", "method"]].to_numpy().tolist() == [[t, m] for t in TASKS for m in ("ppo_kl", "etpo")]
    row = ends.iloc[1]
    updates = [raw(root, "etpo", seed=seed, name="updates") for seed in (0, 1)]
    assert row["reward"] == pytest.approx(np.mean([run["mean_reward"].iloc[-1] for run in updates]))
    assert row["kl"] == pytest.approx(0.8) and row["seeds"] == 2
    programs = np.concatenate([raw(root, "reflection", seed=seed)["reward"] for seed in (0, 1)])
    assert row["programs"] == len(programs) == 80
    best = frontier.soft_optimum(programs, row["beta"])
    assert (row["best_reward"], row["best_kl"]) == pytest.approx((best.reward, best.kl))
    answer = frontier.answer(data, ends)
    mean = ends[ends["method"] == "etpo"]["reward"].mean()
    assert f"ETPO {mean:.2f} at 0.8 nats per action" in answer
    assert frontier.table(data, ends).cells().loc[2, "Task"] == "kidney-stone†"


def test_the_figure_of_the_frontier_has_a_path_for_each_method(root):
    figure = frontier.figure(frontier.load("smoke"))
    left, right = figure.axes
    assert lines(left)[0] == "best possible (estimate)" and {"PPO-KL", "ETPO"} <= set(lines(left))
    assert left.get_xlabel() == right.get_xlabel() == "KL per action, nats" and right.get_title() == "kidney-stone†"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "best possible (estimate)", "PPO-KL", "ETPO", "mean of an eighth of training", "the last eighth",
    ]  # fmt: skip


def test_a_frontier_needs_the_untrained_model(other):
    fixtures.make_results(other, methods=("etpo",), tasks=TASKS[:1], seeds=(0,))
    with pytest.raises(UserError, match="no task of scale smoke has finished runs of reflection and of a trained"):
        frontier.load("smoke")


# Data sets -------------------------------------------------------------------------------------------------------


def test_data_sets_as_in_the_paper_and_as_prepared(root):
    data = datasets.load("smoke")
    answer = datasets.answer(data)
    assert answer.startswith(
        "**Answer.** Of 14 tasks, 8 have the paper's own table and 6 a declared stand-in (†) here;"
    )
    table = datasets.table(data)
    shown = table.cells().set_index("Task")
    assert len(shown) == 14 and len(table.notes) == 6 and shown.loc["pc1", "Rows"] == "1109"
    note = json.loads((root / "data/tables/diabetes.json").read_text())
    assert shown.loc["diabetes", "Rows"] == str(note["rows"])
    assert shown.loc["diabetes", "Rows of each class"] == "/".join(map(str, note["class_counts"]))
    rows, shares = datasets.figure(data).axes
    sizes = [note["rows"] for note in data.prepared.values()]
    assert rows.get_lines()[0].get_xdata().tolist() == sizes
    balance = list(data.prepared).index("balance-scale")
    widths = [pieces[balance].get_width() for pieces in shares.containers]
    assert widths == pytest.approx([56 / 125, 10 / 125, 59 / 125, 0])
    assert rows.get_yticklabels()[0].get_text() == table.cells()["Task"][0]


def test_a_table_of_many_classes_has_a_shade_for_each(root):
    many = {"class_counts": [5] * 12, "rows": 60, "stand_in": None}
    _, shares = datasets.figure(datasets.DataSets("smoke", ["many"], {"many": many})).axes
    assert len({pieces[0].get_facecolor() for pieces in shares.containers}) == 12


# Learning --------------------------------------------------------------------------------------------------------


def test_regret_by_variant(root):
    data = learning.load("smoke")
    assert data.methods == ["ppo_kl", "released", "etpo"] and data.start == pytest.approx(2.3)
    table = learning.table(data)
    rows = table.numbers.set_index("variant")
    assert list(rows.index) == ["ppo_kl", "released", "etpo", "released_1"]
    expected = np.mean([2.0 / (1 + update) for update in (36, 38, 40)])
    assert rows.loc["etpo", "regret"] == pytest.approx(expected)
    assert table.cells()["Variant"].tolist() == ["PPO-KL", "Released code", "ETPO", "Released + policy's loss under π"]
    assert f"ETPO {expected:.3f}" in learning.answer(data)
    left, right = learning.figure(data).axes
    assert left.get_legend_handles_labels()[1] == ["PPO-KL", "Released code", "ETPO"]
    assert right.get_legend_handles_labels()[1] == ["as it stands", "+ policy's loss under π"]
    etpo, bar, mark = left.get_lines()[6:]
    assert etpo.get_label() == "ETPO" and bar.get_xdata()[0] > etpo.get_xdata().max()
    assert bar.get_ydata() == pytest.approx(rows.loc["etpo", ["least", "most"]].astype(float))
    assert mark.get_ydata() == pytest.approx([expected])


def test_a_variant_without_a_label_is_shown_by_its_name(other):
    fixtures.make_regret(other)
    path = other / "evaluations/smoke/regret.csv"
    path.write_text(path.read_text().replace("released_1", "new_idea").replace("ppo_kl", "etpo_residual"))
    shown = learning.table(learning.load("smoke")).cells()["Variant"].tolist()
    assert shown == ["Released code", "ETPO", "ETPO, residual reading of Q", "new_idea"]


def test_the_benchmark_shows_the_share_of_the_regret_that_is_left(root):
    data = benchmark.load("smoke", {"early": "early token", "long": "long action"})
    assert data.variants == ["ppo_kl", "grpo", "etpo"]
    of = data.of("early").loc["etpo"]
    # Four runs that end at 0.20 to 0.23, of a regret of 2.
    assert of["left"] == pytest.approx(0.1075) and of["middle"] == 0.5
    assert 0.1 <= of["left_low"] < of["left"] < of["left_high"] <= 0.115
    assert data.of("mean").loc["etpo", "left"] == pytest.approx((0.1075 + 0.2075) / 2)
    assert data.undecided("early") == ["etpo"]
    shown = benchmark.table(data).cells()
    assert list(shown.columns) == ["Method", "early token", "long action", "Mean", "Rate"]
    assert shown.set_index("Method").loc["ETPO"].tolist() == ["**0.11**", "**0.21**", "**0.16**", "0.1"]
    assert "ETPO 0.16; PPO-KL 0.31; GRPO 0.46" in benchmark.answer(data)
    panels = [axes for axes in benchmark.figure(data).axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["early token", "long action", "mean over kinds"]
    assert [tick.get_text() for tick in panels[0].get_yticklabels()] == ["PPO-KL", "GRPO", "ETPO"]


def test_estimates_of_the_longest_actions_halfway(root):
    data = estimates.load("smoke", {"early": "early token", "long": "long action", "fork": "fork"})
    assert data.longest == 8
    assert list(data.titles) == ["early", "long"]
    rows = data.of("long", "halfway", 8)
    assert rows.loc["ppo_kl", "actions"] == pytest.approx(8 * 1.5) and rows.loc["grpo", "bias"] == pytest.approx(0.1)
    shown = estimates.table(data).cells()
    assert shown["Estimator"].tolist()[:3] == ["PPO-KL", "GRPO", "NTPO"]
    assert shown["Estimator"].tolist()[6:] == [
        "ETPO, λ = 0, V lags",
        "VinePPO, 1 continuation",
        "VinePPO, 9 continuations",
    ]
    assert shown["long action: actions"].tolist()[:2] == ["12.0", "20.0"]
    assert "long action: PPO-KL 12.0; GRPO 20.0;" in estimates.answer(data)
    figure = estimates.figure(data)
    assert len(figure.axes) == 6 and figure.axes[5].get_lines()[0].get_ydata().tolist() == [1.5, 12.0]
    assert [tick.get_text() for tick in figure.axes[3].get_xticklabels()] == ["1", "8"]


def test_regrets_that_lack_are_one_line(other):
    with pytest.raises(
        UserError, match="no regrets of scale smoke; make them: python -m pipeline.worlds --scale smoke"
    ):
        learning.load("smoke")


# An environment of one's own --------------------------------------------------------------------------------------


def test_runs_in_another_environment_beside_the_untrained_model(other):
    fixtures.make_own_environment(other)
    data = own_environment.load("smoke")
    assert data.steps.tolist() == [16, 32, 48, 64, 80] and data.late.tolist() == [False] * 4 + [True]
    assert data.first.tolist() == [0.1, 0.3]
    # Two seeds 0.2 apart: t of 0.975 with one degree of freedom is 12.7062, and the standard error 0.1.
    first = own_environment.over_runs(data.first)
    assert [float(end) for end in first] == pytest.approx([0.2, 0.2 - 1.27062, 0.2 + 1.27062], abs=1e-5)
    table = own_environment.table(data)
    rows = table.numbers.set_index("method")
    assert rows.loc["etpo", ["first", "last", "gain", "ran"]].tolist() == pytest.approx([0.2, 0.6, 0.4, 0.75])
    assert rows.loc["ppo_kl", ["last", "gain", "gain_low", "gain_high"]].tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert rows.loc["etpo", "above"] == pytest.approx(0.2) and np.isnan(rows.loc["ppo_kl", "above"])
    assert table.cells().set_index("Method").loc["PPO-KL", "Above PPO-KL"] == "–"
    said = own_environment.answer(data)
    assert "0.600 with ETPO (gain 0.400 [0.400, 0.400])" in said and "with the same seed: 0.200 [0.200, 0.200]." in said
    (axes,) = own_environment.figure(data).axes
    assert lines(axes) == ["untrained model", "PPO-KL", "ETPO"]
    assert axes.get_lines()[0].get_ydata() == pytest.approx([0.2, 0.2])
    assert axes.get_lines()[2].get_ydata() == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])


def test_one_method_with_one_seed_in_another_environment_has_no_interval_and_no_difference(other):
    fixtures.make_own_environment(other)
    path = other / "evaluations/smoke/own_environment.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:6]))
    data = own_environment.load("smoke")
    assert own_environment.compared(data) is None and "above" not in own_environment.table(data).numbers
    assert own_environment.answer(data).startswith("**Answer.** The untrained model earns 0.100 a query.")
    assert len(own_environment.figure(data).axes) == 1


def test_runs_in_another_environment_that_lack_are_one_line(other):
    with pytest.raises(UserError, match="make them: python -m pipeline.own_environment --scale smoke"):
        own_environment.load("smoke")


def test_source_code_is_shown_without_the_indentation_of_its_class():
    shown = own_environment.source(tables.Table.cells, own_environment.over_runs)
    assert shown.startswith("```python\ndef cells(self)") and "\n\ndef over_runs(" in shown and shown.endswith("```")


# Consistency and algorithm ---------------------------------------------------------------------------------------


def test_gaps_are_tabulated_and_rounding_is_zero():
    found = consistency.gaps(lambda longest, discount: (longest - 1) * (1 - discount) + 1e-14, (1, 3), (0.5, 1.0))
    assert found["gap"].tolist() == pytest.approx([0.0, 0.0, 1.0, 0.0])
    assert (found.loc[[0, 1, 3], "gap"] == 0).all()
    table = consistency.table(found)
    assert table.cells().to_dict("list") == {
        "inner discount": ["0.50", "1.00"], "1 token": ["0.000", "0.000"], "3 tokens": ["1.000", "0.000"],
    }  # fmt: skip
    (axes,) = consistency.figure(found).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["1 token", "3 tokens"]
    drawn = [line.get_ydata().tolist() for line in axes.get_lines() if len(line.get_xdata())]
    assert drawn == [[0.0, 0.0], [pytest.approx(1.0), 0.0]]
    assert axes.get_legend().get_title().get_text() == "longest action"


def test_the_steps_of_the_algorithm_name_functions_that_exist():
    where = algorithm.steps().numbers["where"]
    named = [name.split(".") for name in where if "." in name]
    assert len(named) == 5
    for module, function in named:
        assert callable(getattr({"bellman": etpo_core.bellman, "losses": etpo_core.losses}[module], function))
    assert len(algorithm.workflow().axes[0].patches) == 11


# Advantages ------------------------------------------------------------------------------------------------------


def make_gradients(root):
    path = root / "evaluations" / "smoke" / "gradients.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [("ppo_kl", "", "", 0.2, 0.01), ("tbrm", "", "", 0.1, 0.03)]
    rows += [("etpo", 0, 0.0, 0.05, 0.01), ("etpo", 0, 1.0, 0.3, 0.02), ("ppo_kl", 0, "", 0.2, 0.01)]
    rows += [("etpo", 64, 0.0, 0.5, 0.02), ("etpo", 64, 1.0, 0.4, 0.01), ("ppo_kl", 64, "", 0.25, 0.01)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(results.GRADIENT_COLUMNS)
        writer.writerows(("breast-w", 300, *row) for row in rows)


def test_cosines_by_number_of_actions_and_lambda(other):
    with pytest.raises(
        UserError, match="gradients.csv is not there; make it: python -m pipeline.gradients --scale smoke"
    ):
        advantages.load("smoke")
    make_gradients(other)
    data = advantages.load("smoke")
    answer = advantages.answer(data)
    assert "cosine 0.20 ± 0.01. With a value fitted to 64 other actions and λ = 0: 0.50 ± 0.02." in answer
    assert "With λ < 1 and no value yet: at most 0.05." in answer and "- 300 actions of the untrained model" in answer
    table = advantages.table(data)
    assert table.cells().to_dict("list") == {
        "actions known": ["0", "64"], "λ = 0": ["0.05", "0.50"], "λ = 1": ["0.30", "0.40"],
    }  # fmt: skip
    assert table.caption == "Cosine of a batch with 100 other actions; all tokens alike: 0.20."
    (axes,) = advantages.figure(data).axes
    names = axes.get_legend_handles_labels()[1]
    assert names == ["all tokens alike", "V = 0", "V fitted to 64 actions"]
    assert table.numbers["known"].isna().tolist() == [True, False, False, False, False]
    methods = advantages.methods_table(data)
    assert methods.cells().to_dict("list") == {
        "Method": ["PPO-KL", "TBRM", "ETPO"],
        "first update": ["0.20 ± 0.01", "0.10 ± 0.03", "0.30 ± 0.02"],
        "V fitted to 64 actions": ["0.25 ± 0.01", "–", "0.40 ± 0.01"],
    }
    (axes,) = advantages.methods_figure(data).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["PPO-KL", "TBRM", "ETPO"]


# Perplexity ------------------------------------------------------------------------------------------------------


def write_perplexities(root, policies):
    """evaluations/smoke/perplexity.csv with base, reference and a policy for each (method, seed, change, key)."""
    rows = [("base", "", "", 20.123, "", "a-text"), ("reference", "", "", 10.0, "", "a-text")]
    rows += [(method, "balance-scale", seed, 10 * (1 + change), 10.0, key) for method, seed, change, key in policies]
    frame = pd.DataFrame(rows, columns=["model", "task", "seed", "perplexity", "before", "key"])
    frame = frame.assign(corpus="arxiv", source="a disk", stand_in="three papers", tokens=100)
    frame["nll"] = np.log(frame["perplexity"])
    frame["before_nll"] = [np.log(before) if before else "" for before in frame["before"]]
    place = root / "evaluations" / "smoke"
    place.mkdir(parents=True, exist_ok=True)
    frame[[*results.PERPLEXITY_COLUMNS, "key"]].to_csv(place / "perplexity.csv", index=False)


def test_perplexities_before_and_after(root):
    other = [("ppo_kl", seed, 0.5, "c-other") for seed in range(3)]
    write_perplexities(root, [("etpo", 0, 0.05, "b-text"), ("etpo", 1, 0.15, "b-text"), *other])
    data = perplexity.collect("smoke")
    title = data.titles["arxiv"]
    assert title.endswith("†") and f"{title}: three papers." in data.notes
    assert data.notes[-1] == "3 rows are not shown: they were measured on another text than the reference."
    assert f"Perplexity after training against before: ETPO {title} +9.9%." in perplexity.answer(data)
    assert perplexity.untrained(data).loc["arxiv"].tolist() == [20.12, 10.0]
    shown = perplexity.table(data).cells()
    assert shown.loc[0].tolist() == [
        title, "ETPO", "2", "100", "20.12", "10.00 → 10.99", "+9.89%", "+5.00%, +15.00%",
    ]  # fmt: skip
    panel = next(axes for axes in perplexity.figure(data).axes if axes.get_title() == title)
    zero, dots, mean = panel.get_lines()
    assert dots.get_xdata() == pytest.approx([5.0, 15.0]) and dots.get_ydata() == pytest.approx([-0.25, 0.25])
    both = 100 * (np.sqrt(1.05 * 1.15) - 1)  # the mean is of the log-likelihoods
    assert mean.get_xdata() == pytest.approx([both, both]) and list(zero.get_xdata()) == [0, 0]


def test_perplexities_without_trained_policies(root):
    write_perplexities(root, [])
    data = perplexity.collect("smoke")
    assert "not measured." in perplexity.answer(data)
    assert data.notes[-1] == "No trained policy was measured: their weights are not on this disk."
    assert perplexity.figure(data).axes and perplexity.table(data).cells().empty


def test_metrics_are_means_over_runs(root):
    write_perplexities(root, [("etpo", 0, 0.05, "b-text"), ("etpo", 1, 0.15, "b-text")])
    steps, updates = results.load_steps("smoke"), results.load_updates("smoke")
    own = steps[steps["method"] == "etpo"]
    ends = [run.tail(len(run) // 5) for _, run in own.groupby(["task", "seed"])]
    found = metrics.metrics("smoke")["etpo"]
    assert found["final_reward"] == pytest.approx(np.mean([end["reward"].mean() for end in ends]), abs=1e-6)
    assert found["mean_reward"] == pytest.approx(own["reward"].mean(), abs=1e-6)
    assert found["share_that_runs"] == pytest.approx(
        np.mean([(end["status"] == "ok").mean() for end in ends]), abs=1e-6
    )
    assert found["perplexity_change"] == {"arxiv": pytest.approx(np.sqrt(1.05 * 1.15) - 1, abs=1e-6)}
    learnt = updates[updates["method"] == "etpo"]
    late = learnt[learnt["steps"] > 0.8 * learnt["steps"].max()]
    assert found["kl_per_action"] == pytest.approx(late["kl_per_action"].mean(), abs=1e-6)
    curve = metrics.curves("smoke")["etpo"].set_index("steps")
    first = learnt[learnt["steps"] == learnt["steps"].min()]
    assert curve["reward"].iloc[0] == pytest.approx(first["mean_reward"].mean())


@pytest.mark.parametrize(
    ("load", "missing", "command"),
    [
        (datasets.load, "data/tables", "python -m pipeline.data"),
        (main_table.load, "evaluations/smoke/held_out.csv", "python -m pipeline.evaluate --scale smoke"),
        (perplexity.collect, "evaluations/smoke/perplexity.csv", "python -m pipeline.perplexity --scale smoke"),
        (learning.load, "evaluations/smoke/regret.csv", "python -m pipeline.worlds --scale smoke"),
    ],
)
def test_what_a_notebook_lacks_is_one_line_before_anything_is_written(
    root, tmp_path, monkeypatch, load, missing, command
):
    bare = tmp_path / "bare"
    shutil.copytree(root, bare)
    use(monkeypatch, bare)
    gone = bare / missing
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink(missing_ok=True)
    with pytest.raises(UserError, match=command) as error:
        load("smoke")
    assert "\n" not in str(error.value) and not (bare / "figures").exists()
