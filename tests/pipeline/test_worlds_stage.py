"""The benchmark of the stage `worlds`: who runs in it, at which rate, and that a run does not depend on the others."""

from collections import Counter
from concurrent.futures import Future

import pandas as pd
import pytest
from fixtures_results import make_root

from etpo_paper.tabular.kinds import KINDS
from pipeline import worlds
from pipeline.resolve import resolve


class AtOnce:
    """A pool that runs what it is given at once, in this process."""

    def submit(self, function, *job):
        """See `concurrent.futures.Executor.submit`."""
        done = Future()
        done.set_result(function(*job))
        return done


def test_each_variant_has_the_rate_that_left_the_least_in_worlds_that_are_not_reported(at, tmp_path, monkeypatch):
    at(make_root(tmp_path))
    settings = resolve("smoke")
    asked = Counter()

    def run_kind(scale, variant, kind, world, rate, seeds):
        asked[variant, world, rate] += 1
        end = {0.03: 0.5, 0.1: 0.2, 0.3: 0.4}[rate] if variant == "etpo" else rate
        return [[2.0, 1.5, 1.0 + seed, end] for seed in seeds]

    monkeypatch.setattr(worlds, "run_kind", run_kind)
    worlds.benchmark(AtOnce(), "smoke", settings)
    rows = pd.read_csv(tmp_path / "evaluations/smoke/benchmark.csv")
    assert set(rows["kind"]) == set(KINDS)
    assert {"etpo", "tbrm", "released"} <= set(rows["variant"]) and "released_1" not in set(rows["variant"])
    reported = rows[rows["purpose"] == "reported"]
    assert set(reported["world"]) == set(settings.worlds.benchmark.worlds) and settings.worlds.tuning_seed == 0
    rates = reported.groupby("variant")["learning_rate"].unique()
    assert rates["etpo"].tolist() == [0.1] and rates["tbrm"].tolist() == [0.03]
    assert asked["etpo", 0, 0.3] == len(KINDS) and asked["etpo", 1, 0.3] == 0
    assert reported[["start", "middle", "end"]].iloc[0].tolist() == [2.0, 1.0, 0.03]


@pytest.mark.nightly
def test_runs_of_one_world_are_the_same_together_and_alone():
    together = worlds.run_kind("smoke", "tbrm", "repairs", 1, 0.1, (0, 1))
    assert together[1] == worlds.run_kind("smoke", "tbrm", "repairs", 1, 0.1, (1,))[0] != together[0]
