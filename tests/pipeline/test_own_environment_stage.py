"""The stage `own_environment`, with two short runs of a model that was hardly taught anything."""

import random
from functools import partial

import pandas as pd
import pytest
import yaml
from fixtures_results import make_root

from etpo_paper.base.settings import read_params
from pipeline import own_environment


def test_random_queries_run():
    drawn = random.Random(0)
    for _ in range(300):
        environment = own_environment.towns()
        environment.reset()
        query = own_environment.random_query(drawn)
        assert environment.step(query)[4] == {}, query


@pytest.mark.nightly
def test_the_stage_writes_each_batch_of_its_runs_and_makes_no_run_twice(at, stage, tmp_path, monkeypatch):
    root = make_root(tmp_path)
    params = read_params()
    params["scales"]["smoke"]["training"]["env_steps"] = 4  # of which four times as many are one batch
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    at(root)
    monkeypatch.setattr(own_environment, "make_start", partial(own_environment.make_start, steps=2))
    monkeypatch.setattr(own_environment, "SEEDS", (3,))
    done = stage("own_environment", "--scale", "smoke")
    assert done.returncode == 0, done.stderr
    path = root / "evaluations" / "smoke" / "own_environment.csv"
    rows = pd.read_csv(path).set_index(["method", "seed"])
    assert list(rows.index) == [("etpo", 3), ("ppo_kl", 3)]
    for (method, seed), row in rows.iterrows():
        folder = root / "build" / "own_environment" / "smoke" / method / f"seed{seed}" / "run"
        (raw,) = pd.read_csv(folder / "updates.csv").to_dict("records")
        assert row.to_dict() == {name: raw[name] for name in rows.columns} and raw["steps"] == 16
    # The model has not been trained yet, so that the first batch does not depend on the method.
    assert rows.loc["etpo"].equals(rows.loc["ppo_kl"])
    weights = root / "build" / "own_environment" / "start" / "model.safetensors"
    before = path.read_bytes(), weights.read_bytes()
    done = stage("own_environment", "--scale", "smoke")
    assert done.stdout.count("this run is finished and was kept") == 2
    assert (path.read_bytes(), weights.read_bytes()) == before
