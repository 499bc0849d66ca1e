"""The benchmark scripts run, at sizes that say nothing about speed."""

import csv
import json

import pandas as pd
import pytest
from stages import run_module

from benchmarks import drafts
from benchmarks.head import exponent


def test_head_prints_and_saves_its_tables(tmp_path, no_processes):
    done = run_module("benchmarks.head", "--small", "--csv", tmp_path / "head.csv")
    assert done.returncode == 0, done.stderr
    assert "of_products" in done.stdout and "exponent" in done.stdout
    with (tmp_path / "head.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows if row["workload"] == "dueling"] == ["products", "narrow", "eager", "naive"]
    assert all(float(row["ms_median"]) > 0 and float(row["extra_mib"]) >= 0 for row in rows)
    with (tmp_path / "head_growth.csv").open() as file:
        assert {row["over"] for row in csv.DictReader(file)} == {"positions", "vocabulary"}


def test_the_exponent_of_a_power_is_found():
    assert exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_programs_of_a_run_are_replayed(monkeypatch, tmp_path, capsys):
    class Remembers:
        """Guesses the last action, whatever was written."""

        last = ()

        def guess(self, written, most):
            return list(self.last[len(written) :])[:most]

        def observe(self, actions):
            self.last = actions[-1]

    samples = pd.DataFrame(
        {"method": "etpo", "task": "toy", "seed": 0, "update": range(4), "pieces": [["a", "b", "c", ""]] * 4}
    )
    monkeypatch.setattr(drafts, "Drafts", Remembers)
    monkeypatch.setattr(drafts.results, "load_samples", lambda scale: samples)
    rows = drafts.main(["--rounds", "0", "--csv", str(tmp_path / "drafts.csv")])
    # Four passes for four tokens first; then all of an action in one, of four tokens: one, and three guessed.
    assert [row["tokens_a_pass"] for row in rows] == [1, 4, 4, 4] and all(row["fed_a_token"] == 1 for row in rows)
    assert "not measured" in capsys.readouterr().out
    assert len((tmp_path / "drafts_replay.csv").read_text().splitlines()) == 5


def test_a_trained_policy_is_timed_behind_what_failed_in_its_run(tmp_path, toy_task, capsys):
    lines = [
        {"status": status, "code": f"    model = {name}\n", "error": "NameError: no" if status != "ok" else ""}
        for name, status in (("A()", "snippet_error"), ("B()", "ok"), ("C()", "snippet_error"), ("D()", "timeout"))
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prompts = drafts.states(tmp_path, toy_task, 8)
    assert len(prompts) == 8 and len(set(prompts[:6])) == 1
    assert "model = C()" in prompts[6].prefix and "model = D()" in prompts[7].prefix

    def refused(*arguments):
        with pytest.raises(SystemExit):
            drafts.main(["--policy", str(tmp_path), *arguments])
        return capsys.readouterr().err

    assert "expected the folder of a finished run" in refused()
    assert "--rounds: got 0, expected at least 1" in refused("--rounds", "0")
    (tmp_path / "run_card.json").write_text(json.dumps({"scale": "study", "method": "etpo", "task": "toy"}))
    assert "its run has to be made on this machine first" in refused()


def test_a_wrong_guess_costs_what_was_fed_in_vain():
    class Wrong:
        def guess(self, written, most):
            return ["a", "x", "x"][:most]

    # Four tokens are fed for "a" and "b", two for "c", one for "d", behind which nothing can be guessed.
    assert drafts.passes(Wrong(), ("a", "b", "c", "d")) == (3, 4 + 2 + 1)
