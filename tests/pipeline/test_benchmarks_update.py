"""The benchmarks of the update and of a whole run: they run on tiny models, and count the arithmetic right."""

import csv
import importlib.util

import pytest
from stages import nothing_is_timed, run_module
from transformers import LlamaConfig

from benchmarks import updates
from benchmarks.update import LIMIT, NO_TRL, OURS, TRL, WHOLE, Load, arithmetic, numbers
from etpo_paper.methods import METHODS


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_update_prints_and_saves_its_tables(tmp_path, no_processes):
    file = tmp_path / "update.csv"
    runs = ["--runs", WHOLE, TRL, "--rounds", "1", "--growth-rounds", "0"]
    with nothing_is_timed():
        done = run_module("benchmarks.update", "--small", *runs, "--csv", file)
    assert done.returncode == 0, done.stderr
    rows = read(file)
    assert "policy and critic: backward" in done.stdout
    assert [row["part"] for row in rows if row["run"] == OURS] == ["rollout", "update", "iteration"]
    if importlib.util.find_spec("trl") is None:
        assert [row["part"] for row in rows if row["run"] == TRL] == [NO_TRL]
    measured = [row for row in rows if row["part"] != NO_TRL]
    assert {row["run"] for row in measured} >= {OURS, WHOLE, LIMIT}
    assert all(float(row["wall_s"]) > 0 and float(row["wall_of_ours"]) >= 0 for row in measured)
    shares = [float(row["share_of_cpu"]) for row in read(tmp_path / "update_phases.csv")]
    assert sum(shares[:-1]) == pytest.approx(1, abs=0.02) and shares[-1] == 1


def test_the_arithmetic_of_an_update_is_counted():
    config = LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=10,
    )  # fmt: skip
    load = Load(OURS, rollouts=1, length=1, prompt=1, micro_batch=0, small=True)
    weights = 8 * (8 + 4 + 4) + 8 * 8 + 2 * 8 * 16 + 16 * 8
    adapters = (8 + 8) + 2 * (8 + 4) + (8 + 8) + 2 * (8 + 16) + (16 + 8)
    attention, head = 4 * 8, 2 * 10 * 8  # one token that sees itself
    expected = (3 + 2) * (2 * weights + attention) + (2 + 4) * 2 * adapters + 6 * head
    assert arithmetic(load, config, rank=1, adapted=1, rate=lambda out, into: 1.0) == expected
    config.num_hidden_layers = 2  # one more below, for all roles at once
    below = 2 * weights + attention
    assert arithmetic(load, config, rank=1, adapted=1, rate=lambda out, into: 1.0) == expected + below


def test_a_prompt_of_numbers_has_the_length_it_is_to_have():
    assert numbers(12)("3 4 11").input_ids == [3, 4, 11]


def test_end_to_end_splits_the_time_of_a_run(toy_project, tmp_path, at, stage):
    at(toy_project)
    file = tmp_path / "end_to_end.csv"
    scale = ["--scale", "smoke", "--task", "kidney-stone", "--methods", "etpo", "--steps", "4"]
    done = run_module("benchmarks.end_to_end", *scale, "--csv", file)
    assert done.returncode == 0, done.stderr
    rows = {row["part"]: row for row in read(file)}
    assert list(rows) == ["rollout", "execution", "update", "rest", "total"]
    assert sum(float(rows[part]["share"]) for part in list(rows)[:-1]) == pytest.approx(1, abs=0.01)
    assert float(rows["total"]["steps_500_s"]) > 0 and rows["total"]["tier"]


def test_one_update_of_every_method_is_counted(tmp_path):
    """Each in a copy of the process, so that all begin alike: only runs and products are the same every time."""
    file = tmp_path / "updates.csv"
    done = run_module("benchmarks.updates", "--small", "--turns", "1", "--csv", file)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in read(file)}
    same = {"etpo_no_reflection", "etpo_tried"}  # the update of etpo
    learning = {name for name, kind in METHODS.items() if kind.trains} - same
    assert set(rows) == learning, "every update rule, and none twice"
    runs = {name: (float(row["runs"]), float(row["gradients"])) for name, row in rows.items()}
    assert runs["etpo"] == (1.0, 1.0) == runs["tbrm"] and runs["oreo"] == (1.0, 2.0)
    assert runs["ppo_kl"] == (1.0, 2.0), "two passes, of which the first has the policy that acted"
    products = {name: float(row["products_of_etpo"]) for name, row in rows.items()}
    assert products["etpo"] == 1.0 < products["ppo_kl"] < products["poad"]
    assert float(rows["poad"]["needs_of_etpo"]) == pytest.approx((1 + 3 * 2 * 2) / (1 + 3), abs=0.01)


def test_a_failed_update_is_told(capfd):
    def fails():
        raise ValueError("no such weight")

    with pytest.raises(RuntimeError, match="an update failed, see above"):
        updates.forked(fails)
    assert "no such weight" in capfd.readouterr().err
