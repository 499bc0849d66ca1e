"""Credit of tokens: which runs have it, which actions are shown, and how concentrated it is, all checked by hand."""

import fixtures_results as fixtures
import numpy as np
import pandas as pd
import pytest

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.report import credit, results


def sample(update=0, step=1, status="ok", values=(1.0, 0.0), method="etpo", task="diabetes", seed=0):
    pieces = None if values is None else ["x"] * len(values)
    return {
        "method": method, "task": task, "seed": seed, "update": update, "step": step, "reward": 0.5, "status": status,
        "error": "", "code": "x", "pieces": pieces, "credit": None if values is None else list(values),
    }  # fmt: skip


def test_concentration_is_the_share_of_the_top_tenth():
    assert credit.concentration([1.0] * 10) == pytest.approx(0.1)
    assert credit.concentration([-3.0] * 7) == pytest.approx(0.1)  # less than one token: it counts in part
    assert credit.concentration([0.5] * 46) == pytest.approx(0.1)
    assert credit.concentration([0.0] * 9 + [-2.0]) == 1.0
    assert credit.concentration([-0.91] + [0.01] * 9) == pytest.approx(0.91)
    # 15 tokens: the largest whole and half of the second, (6 + 1.5) / (6 + 3 + 13 * 1)
    assert credit.concentration([1.0] * 13 + [-6.0, 3.0]) == pytest.approx(7.5 / 22)
    assert np.isnan(credit.concentration([0.0, 0.0]))


def test_largest_goes_by_size():
    assert credit.largest([0.1, -0.4, 0.2]) == 0.4


def test_periods_are_fifths_rounded_up():
    def of(count):
        return list(results.period(pd.Series(range(count))))

    assert of(5) == ["early", *["between"] * 3, "late"]
    assert of(6) == ["early", "early", "between", "between", "late", "late"]
    assert of(4) == ["early", "between", "between", "late"]
    assert of(2) == ["early", "late"]
    # The rows count by their updates, not by their places.
    assert list(results.period(pd.Series([4, 0, 2, 4], index=[7, 3, 9, 1]))) == ["late", "early", "between", "late"]


def test_only_runs_with_credit_throughout_are_kept():
    samples = pd.DataFrame(
        [
            sample(0),
            sample(1, status="snippet_error"),
            sample(0, seed=1, values=None),  # gone on with by a newer version
            sample(1, seed=1),
            sample(0, method="ppo_kl", values=None),
            sample(0, method="ppo_kl", seed=1, values=None),
        ]
    )
    kept = credit.with_credit(samples, "smoke")
    assert kept[["seed", "when", "ran"]].to_numpy().tolist() == [[0, "early", True], [0, "late", False]]
    assert credit.left_out(samples) == [
        "PPO-KL: 2 runs left out, made by an older version that kept no credit.",
        "ETPO: 1 run left out, made by an older version that kept no credit.",
    ]
    assert credit.left_out(samples[:2]) == []


def test_samples_without_credit_are_one_line_with_the_command():
    with pytest.raises(UserError, match="hold no credit.*rm -r results/study/etpo; make repro SCALE=study") as caught:
        credit.with_credit(pd.DataFrame([sample(values=None)]), "study")
    assert "\n" not in str(caught.value)


def test_examples_are_the_last_of_each_fifth():
    rows = [
        sample(0, 3, "snippet_error"),
        sample(0, 2, "ok", seed=1),
        sample(0, 2, "ok", seed=0),
        sample(0, 1, "snippet_error", seed=1),
        sample(2, 9, "ok"),
        sample(4, 21, "ok", seed=0),
        sample(4, 21, "ok", seed=1),
        sample(4, 20, "ok", seed=1),
        sample(4, 22, "ok", method="ppo_kl"),
    ]
    chosen = credit.examples(credit.with_credit(pd.DataFrame(rows), "smoke"))
    found = {(r.method, r.when, r.ran): (r.update, r.step, r.seed) for r in chosen.itertuples()}
    assert found == {
        ("etpo", "early", False): (0, 3, 0),
        ("etpo", "early", True): (0, 2, 1),
        ("etpo", "late", True): (4, 21, 1),
        ("ppo_kl", "late", True): (4, 22, 0),
    }


def test_runs_in_numbers():
    rows = [
        sample(0, 1, "snippet_error", [-1.0] * 10),
        sample(0, 2, "snippet_error", [-3.0] + [0.0] * 19),
        sample(0, 3, "snippet_error", [0.0] * 10),  # nothing to share
        sample(0, 4, "ok", [0.0] * 9 + [0.5]),
        sample(2, 5, "ok", [1.0] * 10),
        sample(4, 6, "ok", [1.0] * 10, seed=1),
    ]
    runs = credit.by_run(credit.with_credit(pd.DataFrame(rows), "smoke")).set_index(["seed", "when", "ran"])
    assert len(runs) == 3
    row = runs.loc[(0, "early", False)]
    assert (row["actions"], row["tokens"], row["largest"]) == (2, 15, 2.0)
    assert row["concentration"] == pytest.approx((0.1 + 1.0) / 2)
    assert runs.loc[(0, "early", True), "concentration"] == 1.0
    assert runs.loc[(1, "late", True), "concentration"] == pytest.approx(0.1)


def test_samples_of_old_and_new_files_are_read_together(tmp_path, monkeypatch):
    fixtures.make_root(tmp_path)
    fixtures.make_results(tmp_path, methods=("reflection", "ppo_kl", "etpo"), tasks=("balance-scale",), seeds=(0,))
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    samples = results.load_samples("smoke")
    assert samples.loc[samples["method"] == "reflection", "credit"].isna().all()
    trained = samples[samples["method"] != "reflection"]
    assert all("".join(pieces) == code for pieces, code in zip(trained["pieces"], trained["code"], strict=True))
    kept = credit.with_credit(samples, "smoke")
    assert set(kept["method"]) == {"ppo_kl", "etpo"} and len(kept) == len(trained)
    runs = credit.by_run(kept)
    assert np.allclose(runs.loc[runs["method"] == "ppo_kl", "concentration"], 0.1)
    assert (runs.loc[runs["method"] == "etpo", "concentration"] > 0.3).all()
