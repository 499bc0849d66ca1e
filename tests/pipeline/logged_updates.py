"""What the tasks of a test's cluster do besides their work: they log when an update is made and when it is kept."""

import os
from pathlib import Path

from etpo_paper.training import live
from etpo_paper.training.run import Run
from pipeline import cluster

_make = cluster.make


def log(*words):
    """Appends a line to the log, which all processes of the cluster write to."""
    with Path(os.environ["ETPO_TEST_LOG"]).open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def updates(rows):
    return rows.count(b"\n") - 1


def make(*arguments):
    """`cluster.make`; the log's words are "made", node, run, update."""
    import ray

    node = ray.get_runtime_context().get_node_id()

    def made(run: Run):
        log("made", node, f"{run.method}/{run.seed}", updates((run.folder / "updates.csv").read_bytes()))

    live.listeners.append(made)
    return _make(*arguments)


class Keeper(cluster.Keeper):
    """The words are "kept", attempt, run, update; "finished" for the last time."""

    def keep(self, run, attempt, files, names):
        super().keep(run, attempt, files, names)
        word = "finished" if "run_card.json" in files else "kept"
        log(word, attempt, f"{run.method}/{run.seed}", updates(bytes(files["updates.csv"])))
