"""A matrix on Ray: what a lost machine costs, what the keeper does with files, and mistakes in one line."""

import os
import shutil
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from etpo_core.errors import UserError
from etpo_paper.base.lock import HeldError, sole_maker
from etpo_paper.training.run import Run
from pipeline import cluster
from pipeline.matrix import complete

HERE = Path(__file__).parent
RESULTS = ("steps.csv", "best_code.py", "samples.jsonl")


@pytest.fixture
def root(toy_project, tmp_path, at):
    """The project of the tests, with four runs of six updates."""
    shutil.copytree(toy_project, tmp_path / "project")
    params = yaml.safe_load((tmp_path / "project" / "params.yaml").read_text())
    params["scales"]["smoke"] |= {"methods": ["etpo", "ppo_kl"], "seeds": [0, 1]}
    params["scales"]["smoke"]["training"]["env_steps"] = 24
    (tmp_path / "project" / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    at(tmp_path / "project")
    return tmp_path / "project"


def runs():
    return [Run("smoke", method, "kidney-stone", seed) for seed in (0, 1) for method in ("etpo", "ppo_kl")]


def contents():
    return {(run, name): (run.folder / name).read_bytes() for run in runs() for name in RESULTS}


def two_machines():
    """A Ray cluster of two nodes with one processor each, on this machine; the second is returned as well."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    for attempt in range(4):
        nodes = Cluster()
        try:
            nodes.add_node(**head)
            return nodes, nodes.add_node(num_cpus=1)
        except Exception:  # Ray gives its helpers 15 s to start, which a busy machine may exceed
            nodes.shutdown()
            if attempt == 3:
                raise


@pytest.mark.nightly
def test_a_lost_machine_costs_no_update_and_no_byte(root, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is missing: pip install '.[cluster]'")
    both = {"workers": os.cpu_count(), "minutes": 10, "group": 2}
    assert len(complete("smoke", **both)) == 4
    plain = contents()
    shutil.rmtree(root / "results")

    import logged_updates

    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("ETPO_TEST_LOG", str(log))
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *sys.path]))
    monkeypatch.setattr(cluster, "make", logged_updates.make)
    monkeypatch.setattr(cluster, "Keeper", logged_updates.Keeper)
    nodes, lost = two_machines()

    def kill():
        while sum(line.startswith(f"made {lost.node_id}") for line in log.read_text().splitlines()) < 3:
            time.sleep(0.01)
        nodes.remove_node(lost, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        made = complete("smoke", **both, address=nodes.address)
    finally:
        ray.shutdown()
        nodes.shutdown()
    killer.join(1)
    assert not killer.is_alive() and sorted(map(str, made)) == sorted(map(str, runs()))
    assert contents() == plain
    assert not list(root.rglob("*.lock")) and not list(root.rglob("state.pt"))

    lines = [line.split() for line in log.read_text().splitlines()]
    kept = [(run, int(update)) for word, _, run, update in lines if word == "kept"]
    assert sorted(kept) == sorted((f"{run.method}/{run.seed}", update) for run in runs() for update in range(1, 7))
    done = set()
    for word, _, run, update in lines:
        assert word != "made" or (run, update) not in done, (run, update)
        if word == "kept":
            done.add((run, update))
    # The group of the lost machine was begun again, and of what it had in hand at most one update was made twice.
    again = Counter((run, update) for word, _, run, update in lines if word == "made")
    assert sum(again.values()) <= len(kept) + 1
    assert {attempt for word, attempt, *_ in lines if word == "finished"} == {"1", "2"}
    assert complete("smoke", **both) == []


# The keeper ----------------------------------------------------------------------------------------------------------


FILES = {"steps.csv": b"rows", "checkpoint/begun.json": b"{}", "checkpoint/state.pt": b"state"}


def in_place(run):
    return as_bytes(cluster.contents(run.folder))


def as_bytes(files):
    return {name: bytes(content) for name, content in files.items()}


def test_a_run_is_put_in_place_so_that_it_could_go_on_at_any_moment(root, monkeypatch):
    run, replace, unlink = runs()[0], os.replace, Path.unlink
    order = []
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append(new.name), replace(old, new)))
    monkeypatch.setattr(
        Path,
        "unlink",
        lambda path, **more: (order.append(f"-{path.name}") if path.exists() else None, unlink(path, **more)),
    )
    cluster.place(run, dict(reversed(FILES.items())))
    assert order == ["steps.csv", "begun.json", "state.pt"] and in_place(run) == FILES
    order.clear()
    finished = {"run_card.json": b"{}", "steps.csv": b"more rows", "checkpoint/policy/adapter.bin": b"weights"}
    cluster.place(run, finished)
    assert order[:2] in (["steps.csv", "adapter.bin"], ["adapter.bin", "steps.csv"])
    assert order[2] == "run_card.json" and sorted(order[3:]) == ["-begun.json", "-state.pt"]
    assert in_place(run) == finished
    order.clear()
    cluster.place(run, FILES)  # it is begun anew
    assert order[0] == "-run_card.json" and in_place(run) == FILES


def test_a_machine_that_was_given_up_changes_nothing_any_more(root):
    run, keeper = runs()[0], cluster.Keeper(root / "results")
    assert keeper.begin(run) == (1, {}, [])
    keeper.keep(run, 1, FILES, [])
    attempt, files, names = keeper.begin(run)
    assert (attempt, as_bytes(files), names) == (2, FILES, [])
    with pytest.raises(UserError, match="attempt 1 is over"):
        keeper.keep(run, 1, {"steps.csv": b"old"}, [])
    keeper.keep(run, 2, FILES, [])
    keeper.end([run])
    with pytest.raises(UserError, match="attempt 2 is over"):
        keeper.keep(run, 2, {"steps.csv": b"old"}, [])
    assert in_place(run) == FILES


def test_a_run_that_another_process_holds_is_not_given_to_a_task(root):
    run, keeper = runs()[0], cluster.Keeper(root / "results")
    with sole_maker(run.folder):
        assert keeper.begin(run) is None
    assert keeper.begin(run)
    with pytest.raises(HeldError), sole_maker(run.folder):
        pass
    keeper.end()
    with sole_maker(run.folder):
        pass


def test_rows_that_a_task_kept_aside_are_kept_aside_here(root):
    run, keeper = runs()[0], cluster.Keeper(root / "results")
    cluster.place(run, FILES)
    run.folder.with_name("seed0.before-1").mkdir()
    attempt, files, names = keeper.begin(run)
    assert (attempt, as_bytes(files), names) == (1, FILES, ["seed0.before-1"])
    for rows in (b"new", b"new rows"):
        keeper.keep(run, 1, {"steps.csv": rows}, ["seed0.before-1", "seed0.before-2"])
    assert (run.folder.with_name("seed0.before-2") / "steps.csv").read_bytes() == b"rows"
    assert in_place(run) == {"steps.csv": b"new rows"}
    keeper.end()


# Mistakes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("here", "--address: got here, expected auto, local or HOST:PORT"),
        ("host:", "--address: got host:, expected auto, local or HOST:PORT"),
        ("127.0.0.1:9", "--address 127.0.0.1:9: there is no Ray cluster to be used ([Errno 111] Connection refused)"),
    ],
)
def test_a_wrong_address_is_one_line(root, stage, monkeypatch, address, message):
    stand_in = ModuleType("ray")
    stand_in.util = ModuleType("ray.util")
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, stand_in)
    done = stage("matrix", "--scale", "smoke", "--address", address)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_a_missing_ray_is_one_line(root, stage, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = stage("matrix", "--scale", "smoke", "--address", "auto")
    wanted = "error: --address needs Ray, which is not installed; run: pip install '.[cluster]'\n"
    assert (done.returncode, done.stderr) == (2, wanted)


def test_without_runs_in_a_group_there_is_one_line(root, stage):
    done = stage("matrix", "--scale", "smoke", "--group", 0)
    assert (done.returncode, done.stderr) == (2, "error: --group: got 0, expected at least 1\n")
