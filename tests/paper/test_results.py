"""Reading raw results, and held-out scores of the best code."""

import json
import zlib

import fixtures_results as fixtures
import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.measure import evaluation
from etpo_paper.report import main_table, results
from pipeline import evaluate


@pytest.fixture
def root(tmp_path, monkeypatch):
    fixtures.make_root(tmp_path)
    for name, place in {
        "PARAMS": "params.yaml",
        "RESULTS": "results",
        "EVALUATIONS": "evaluations",
        "TABLES": "data/tables",
    }.items():
        monkeypatch.setattr(paths, name, tmp_path / place)
    monkeypatch.setattr(evaluation, "CACHE", tmp_path / "build" / "held_out")
    return tmp_path


def folder(root, method="etpo", task="balance-scale", seed=0):
    return root / "results" / "smoke" / method / task / f"seed{seed}"


def test_steps_are_tidy_and_only_of_finished_runs(root):
    fixtures.make_results(root, methods=("etpo", "reflection"), updates=2, batch=3)
    steps = results.load_steps("smoke")
    assert list(steps.columns[:3]) == results.KEYS
    assert len(steps) == 2 * 2 * 2 * 6
    assert set(steps["method"]) == {"etpo", "reflection"}  # reflection_gpt4 says "not run"
    assert steps["seed"].dtype == np.int64 and steps["reward"].dtype == np.float64
    assert len(results.load_updates("smoke")) == 2 * 2 * 2 * 2
    assert set(results.load_samples("smoke")["status"]) <= {"ok", "snippet_error"}


def test_hashes_that_look_like_numbers_stay_text(root):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))
    path = folder(root) / "steps.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame["code_hash"] = ["46e1", "0012"] * (len(frame) // 2)
    frame.to_csv(path, index=False)
    assert set(results.load_steps("smoke")["code_hash"]) == {"46e1", "0012"}


def test_status_names_what_was_not_run_and_what_is_absent(root):
    fixtures.make_results(root, methods=("etpo",), seeds=(0,))
    status = results.run_status("smoke").set_index(results.KEYS)
    assert status.loc[("etpo", "balance-scale", 0), "status"] == "finished"
    assert status.loc[("reflection_gpt4", "balance-scale", 0), "status"] == "not run"
    assert status.loc[("ppo_kl", "kidney-stone", 0), "status"] == "absent"
    notes = results.missing_notes(results.run_status("smoke"))
    assert "Reflection (GPT-4): not run (OPENAI_API_KEY is not set)." in notes
    assert "PPO-KL: not run." in notes
    assert status.loc[("ppo_kl", "kidney-stone", 0), "reason"] is None
    assert not any(note.startswith("ETPO:") for note in notes)
    half = pd.DataFrame({"method": "etpo", "status": ["finished", "absent"], "reason": None})
    assert results.missing_notes(half) == ["ETPO: 1 of 2 planned runs finished."]


def test_notes_state_seeds_missing_runs_and_stand_ins(root):
    fixtures.make_results(root, methods=("etpo",), seeds=(0,))
    steps = results.load_steps("smoke")
    notes = results.notes("smoke", steps, ["etpo", "ppo_kl"])
    assert notes[0] == "2 tasks, 1 seed a task: n=1, hence no interval."
    assert notes[1].startswith("PPO-KL: not run")
    assert notes[2] == "Stand-in data, not the paper's (marked † beside a task's name): kidney-stone."


def test_notes_name_the_model_that_stands_in_for_the_papers(root):
    fixtures.make_results(root, methods=("etpo",), seeds=(0,))
    for path in (root / "results" / "smoke").glob("etpo/*/seed*/run_card.json"):
        model = {"stand_in": "a small model: stands in for CodeLlama-7B"}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model": model}))
    notes = results.notes("smoke", results.load_steps("smoke"), ["etpo"])
    assert notes[-1] == "a small model stands in for CodeLlama-7B."


def test_notes_say_when_runs_started_from_different_weights(root):
    fixtures.make_results(root, methods=("etpo", "ppo_kl"), seeds=(0, 1))

    def noted(weights):
        for path in (root / "results" / "smoke").glob("*/*/seed*/run_card.json"):
            card, seed = json.loads(path.read_text()), int(path.parent.name[-1])
            path.write_text(json.dumps(card | {"model": {"sha256": weights(card["method"], seed)}}))
        steps = results.load_steps("smoke")
        notes = results.notes("smoke", steps, ["etpo", "ppo_kl"])
        # Beside rows without a seed, as those of perplexities, seeds are floats.
        assert results.notes("smoke", steps.astype({"seed": float}), ["etpo", "ppo_kl"]) == notes
        return [note for note in notes if "warm start" in note]

    assert noted(lambda method, seed: "a") == noted(lambda method, seed: None) == []
    assert noted(lambda method, seed: "ab"[seed]) == [
        "The runs used 2 versions of the warm start, whose weights differ by rounding errors. "
        "All methods started from the same weights on each task and seed."
    ]
    (note,) = noted(lambda method, seed: "a" if method == "etpo" or seed == 0 else "b")
    assert note.endswith(" Methods started from different weights on seed 1 of every task.")


def test_an_unfinished_run_has_no_rows(root):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0, 1))
    (folder(root, seed=1) / "run_card.json").unlink()
    assert set(results.load_steps("smoke")["seed"]) == {0}


def test_nothing_there_is_an_empty_frame_with_columns(root):
    assert list(results.load_steps("smoke").columns) == [*results.KEYS, *results.STEP_COLUMNS]
    assert results.load_evaluation("smoke").empty and results.load_perplexity("smoke").empty
    assert list(results.load_perplexity("smoke").columns) == results.PERPLEXITY_COLUMNS
    with pytest.raises(UserError, match="no finished run of etpo"):
        results.finished_methods(results.load_steps("smoke"), ["etpo"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run_card.json", "{", "not valid JSON"),
        ("run_card.json", "[]", "holds no run card"),
        ("steps.csv", "step,reward\n1,0.5\n", "lacks the column 'update'"),
        ("steps.csv", "", "not a readable CSV"),
        ("steps.csv", "step,reward\n1,2\n1,2,3\n", r"not a readable CSV file \(.*; restore it with git"),
        ("steps.csv", "step,reward\n1,0.5\n2\n3,0.5\n", "has not 2 cells in line 3; restore it"),
        ("steps.csv", "step,reward\n1,0.5\n2,0.", "ends in the middle of a row, in line 3; restore it"),
        ("steps.csv", None, "is missing although the run is finished"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(root, name, text, message):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))
    path = folder(root) / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        results.load_steps("smoke")
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b",snippet_error,", b",\xff,", r"not a readable CSV file \('utf-8' codec can't decode"),
        (b"\n2,", b"\ntwo,", "has text in the column 'step', expected numbers; restore it"),
    ],
)
def test_a_damaged_cell_is_told_in_one_line(root, old, new, message):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))
    path = folder(root) / "steps.csv"
    good = path.read_bytes()
    assert old in good
    path.write_bytes(good.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        results.load_steps("smoke")


def twice(text):
    """What two processes leave that write the same rows to one file."""
    head, *rows = text.splitlines(keepends=True)
    return "".join([head, *(row for row in rows for _ in range(2))])


@pytest.mark.parametrize(
    ("name", "edit", "found"),
    [
        (
            "steps.csv",
            twice,
            "up to step 6, found 12 rows with 6 different steps, up to step 6; restore it with git, or",
        ),
        ("steps.csv", lambda text: text + text.partition("\n")[2], "found 12 rows with 6 different steps"),
        ("steps.csv", lambda text: "".join(text.splitlines(keepends=True)[:-1]), "found 5 rows .*, up to step 5; "),
        ("steps.csv", lambda text: text.replace("\n3,", "\n4,"), "found 6 rows with 5 different steps"),
        ("steps.csv", lambda text: text.partition("\n")[0] + "\n", "found 0 rows .*, up to step 0; "),
        ("updates.csv", twice, "each update once and in order, up to step 6, found 4 rows with 2 different updates"),
        ("updates.csv", lambda text: "".join(text.splitlines(keepends=True)[:-1]), "found 1 rows .*, up to step 3; "),
        (
            "samples.jsonl",
            lambda text: 2 * text,
            "no step twice and all in order, found 12 rows with 6 different steps",
        ),
    ],
)
def test_rows_that_do_not_fit_the_card_are_told_in_one_line(root, name, edit, found):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,), updates=2, batch=3)
    path = folder(root) / "run_card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parameters": {"training": {"env_steps": 6}}}))
    load = {"steps.csv": results.load_steps, "updates.csv": results.load_updates}.get(name, results.load_samples)
    assert len(load("smoke")) == {"updates.csv": 2}.get(name, 6)
    path = folder(root) / name
    path.write_text(edit(path.read_text()))
    with pytest.raises(UserError, match=found) as caught:
        load("smoke")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_sample_names_its_line(root):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))
    (folder(root) / "samples.jsonl").write_text('{"update": 0}\n{"upd')
    with pytest.raises(UserError, match="line 2"):
        results.load_samples("smoke")


def test_the_note_on_integrity_counts_what_the_executor_stopped():
    statuses = ["ok"] * 1200 + ["snippet_error"] * 30 + ["policy_violation"] * 2 + ["label_dependent", "bad_output"]
    errors = [None] * 1200 + ["PermissionError"] * 3 + ["NameError"] * 27 + ["PolicyViolation"] * 2
    steps = pd.DataFrame({"status": statuses, "error_class": [*errors, "Withheld", "ProtocolError"]})
    assert results.integrity(steps) == {"refused": 3, "forbidden": 2, "forged": 1, "labels": 1}
    said = (
        "Attempts that the executor stopped, among 1,234 programs: 3 refused calls for files, sockets, processes or "
        "signals, 2 forbidden system calls, 1 forged answer, 1 error that tell labels"
    )
    for counted, more in ((True, True), ""), ((False, True), " (in newer runs)"), ((False, False), None):
        cards = pd.DataFrame({"status": "finished", "integrity": list(counted)})
        more = " (not looked for when these runs were made)" if more is None else more
        assert results.integrity_note(steps, cards) == f"{said}{more}."


def test_common_tasks():
    frame = pd.DataFrame({"method": ["a", "a", "b"], "task": ["t", "u", "u"]})
    assert results.common_tasks(frame, ["a", "b"]) == ["u"]
    assert results.common_tasks(frame, ["a", "c"]) == []


def test_common_runs_are_those_that_every_method_has():
    rows = [("a", "t", 0), ("a", "t", 1), ("b", "t", 0), ("b", "u", 0), ("c", "t", 1)]
    frame = pd.DataFrame(rows, columns=results.KEYS)
    assert results.common_runs(frame, ["a", "b"]).to_numpy().tolist() == [["a", "t", 0], ["b", "t", 0]]


def counting_score(calls, *values):
    """The same scores for every program: `values`, or 0.75 on two splits."""

    def score(task, programs):
        calls.append((task, len(programs)))
        return [(list(values or (0.75, 0.75)), [0.5] * len(values or (0, 0))) for _ in programs]

    return score


def test_held_out_scores_are_kept_by_content(root):
    fixtures.make_results(root, methods=("etpo", "ppo_kl"))
    calls = []
    first = evaluation.evaluate("smoke", [100, 101], counting_score(calls), lambda task: task)
    assert [task for task, _ in calls] == ["balance-scale", "kidney-stone"]
    assert (first["held_out_score"] == 0.75).all() and (first["splits"] == 2).all()
    assert list(first.columns) == results.HELD_OUT_COLUMNS and len(first) == 8
    assert (first["dealt_auc"] == 0.5).all() and (first["dealt_error"] == 0.0).all()
    marked = dict(zip(first["task"], first["stand_in"], strict=True))
    assert marked == {"balance-scale": "", "kidney-stone": "made by a test"}

    again = evaluation.evaluate("smoke", [100, 101], counting_score(calls, 0.1), lambda task: task)
    pd.testing.assert_frame_equal(first, again)
    assert len(calls) == 2

    (folder(root) / "best_code.py").write_text("def build_model(x, y):\n    return 1\n")
    evaluation.evaluate("smoke", [100, 101], counting_score(calls), lambda task: task)
    assert calls[2:] == [("balance-scale", 1)]
    evaluation.evaluate("smoke", [102], counting_score(calls), lambda task: task)
    assert len(calls) == 5  # other splits, both tasks again


def test_a_run_without_working_code_has_no_splits(root):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))
    path = folder(root) / "steps.csv"
    frame = pd.read_csv(path, dtype={"code_hash": str}).assign(reward=-1.0, status="timeout")
    frame.to_csv(path, index=False)
    (folder(root) / "best_code.py").write_text("")
    row = evaluation.evaluate("smoke", [100], counting_score([]), lambda task: task).iloc[0]
    assert (row["best_reward"], row["held_out_score"], row["splits"], row["splits_failed"]) == (-1.0, -1.0, 0, 0)


@pytest.mark.parametrize(("values", "score", "ran"), [((0.8, None, 0.7), 0.75, 2), ((None, None, None), -1.0, 0)])
def test_a_split_that_fails_is_told_and_left_out_of_the_mean(root, values, score, ran):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))
    frame = evaluation.evaluate("smoke", [100, 101, 102], counting_score([], *values), lambda task: task)
    row = frame.iloc[0]
    assert row["held_out_score"] == pytest.approx(score)
    assert (row["splits"], row["splits_failed"]) == (ran, 3 - ran)


def test_a_program_hides_nothing_by_failing_on_dealt_labels(root):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))

    def score(task, programs):
        return [([0.9, 0.8, None, 0.7], [0.5, None, 0.4, 0.6]) for _ in programs]

    row = evaluation.evaluate("smoke", [100, 101, 102, 103], score, lambda task: task).iloc[0]
    assert row["dealt_auc"] == pytest.approx((0.5 + 0.8 + 0.6) / 3)
    assert row["dealt_error"] == pytest.approx(np.std([0.5, 0.8, 0.6], ddof=1) / 3**0.5)


@pytest.mark.parametrize(
    ("dealt", "error", "carries"),
    [(0.59, 0.001, False), (0.61, 0.001, True), (0.7, 0.06, False), (0.7, 0.04, True), (1.0, np.nan, True)],
)
def test_a_score_far_above_chance_with_dealt_labels_is_found(dealt, error, carries):
    frame = pd.DataFrame({"dealt_auc": [dealt, np.nan], "dealt_error": [error, np.nan]})
    assert results.carries_labels(frame).tolist() == [carries, False]


def test_dealt_labels_are_those_of_other_training_rows():
    x, y = np.random.default_rng(0).normal(size=(200, 2)), np.arange(200) % 3
    dealt = evaluation.deal(x, y, 7)
    train, held = train_test_split(np.arange(200), test_size=0.5, random_state=7)
    assert (dealt[held] == y[held]).all()
    assert (np.bincount(dealt[train]) == np.bincount(y[train])).all() and (dealt[train] != y[train]).mean() > 0.5
    assert (dealt == evaluation.deal(x, y, 7)).all() and (y == np.arange(200) % 3).all()


def test_a_missing_best_code_is_an_error(root):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))
    (folder(root) / "best_code.py").unlink()
    with pytest.raises(UserError, match="best_code.py is missing"):
        evaluation.evaluate("smoke", [100], counting_score([]), lambda task: task)


def test_a_cut_off_cache_entry_is_scored_again(root):
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))
    calls = []
    evaluation.evaluate("smoke", [100], counting_score(calls), lambda task: task)
    for path in evaluation.CACHE.iterdir():
        path.write_text("{")
    evaluation.evaluate("smoke", [100], counting_score(calls), lambda task: task)
    assert len(calls) == 2


HONEST = """def build_model(x_train, y_train):
    from sklearn.linear_model import LogisticRegression
    return LogisticRegression().fit(x_train, y_train)
"""
# Knows the label of each row of the table by a digest of its values, and does not look at those that it is given.
CARRIES = """import zlib
import numpy as np
KNOWN = {known}
class Model:
    def predict_proba(self, x):
        return np.eye(3)[[KNOWN[zlib.crc32(row.tobytes())] for row in x]]
def build_model(x_train, y_train):
    {first}
    return Model()
"""
FAILS = "assert [KNOWN[zlib.crc32(row.tobytes())] for row in x_train] == y_train.tolist()"


@pytest.fixture
def stage(root):
    """Runs the stage on one run with a given best program; returns its row and the table of the report."""
    from etpo_paper.data.tasks import TASKS, prepare_task, save_task

    task = prepare_task(TASKS["balance-scale"].name, ["embedded"])
    save_task(task, paths.TABLES)
    fixtures.make_results(root, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))

    def run(code):
        (folder(root) / "best_code.py").write_text(code)
        evaluate.main(["--scale", "smoke"])
        return results.load_evaluation("smoke").iloc[0]

    run.task = task
    return run


def test_the_stage_scores_real_code(root, stage):
    def written():
        stage(HONEST)
        return (root / "evaluations" / "smoke" / "held_out.csv").read_bytes()

    first = written()
    row = results.load_evaluation("smoke").iloc[0]
    assert row["splits"] == 10
    assert row["held_out_score"] == pytest.approx(by_hand(stage.task.x, stage.task.y, range(100, 110)), abs=1e-5)
    assert row["dealt_auc"] == pytest.approx(0.5, abs=4 * row["dealt_error"])
    assert not main_table.load("smoke").scores["held_out_score"].isna().any()
    cached = sorted((root / "build" / "held_out").iterdir())
    assert len(cached) == 1
    assert {name: len(kept) for name, kept in json.loads(cached[0].read_text()).items()} == {"scores": 10, "dealt": 10}
    assert written() == first


@pytest.mark.parametrize("first", ["pass", FAILS])
def test_a_program_that_carries_labels_is_found_and_its_held_out_score_refused(stage, first):
    x, y = stage.task.x, stage.task.y
    known = {zlib.crc32(row.tobytes()): int(label) for row, label in zip(x, y, strict=True)}
    row = stage(CARRIES.format(known=known, first=first))
    assert row["held_out_score"] == 1.0 and row["dealt_auc"] == 1.0 and row["splits_failed"] == 0
    data = main_table.load("smoke")
    assert data.scores["held_out_score"].isna().all()
    assert data.notes[-1] == (
        "ETPO on balance-scale, seed 0: the best program scores 1.000 with the training labels dealt to other rows, so "
        "its score is not learned; its held-out score is refused."
    )
    assert data.integrity[-1].endswith("at most 1.000 (ETPO on balance-scale, seed 0). Found to carry labels: 1 of 1.")


def by_hand(x, y, seeds):
    """The protocol written out: unstratified halves, one-vs-one macro ROC AUC, mean over splits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    scores = []
    for seed in seeds:
        fit, held = train_test_split(np.arange(len(y)), test_size=0.5, random_state=seed, shuffle=True)
        probabilities = LogisticRegression().fit(x[fit], y[fit]).predict_proba(x[held])
        scores.append(roc_auc_score(y[held], probabilities, multi_class="ovo", average="macro"))
    return float(np.mean(scores))
