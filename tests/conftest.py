"""What several tests share: a tiny language model of a few thousand parameters and a task, both made in memory.

The process that deals the tests to others loads this file too: what takes long to import is imported where it is used.
"""

import copy
import os
import signal
import sys
from collections import Counter
from dataclasses import replace

import pytest

# A checker of addresses in notebooks, which takes 2 s to import and which nbformat does without where it is missing.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches outside
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests share the cores already
# A background job of a script inherits that Ctrl-C is ignored; the tests of what it does must not depend on that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deals whole files to the processes of xdist, but all of tests/sandbox to one of them: its pools are shared."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "tests/sandbox" if nodeid.startswith("tests/sandbox/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter):
    """Says at the end what was skipped and why; a reason of ours says how to get what is missing."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} {'test' if count == 1 else 'tests'} skipped: {reason}")


@pytest.fixture(scope="session")
def tiny_language_model(tmp_path_factory):
    """(model, tokenizer, card) of a random Llama with a tokenizer trained on a few prompts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from etpo_paper.environment.prompts import task_prompt
    from etpo_paper.model.loading import build_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny-base"
    body = "    from sklearn.linear_model import LogisticRegression\n    model = LogisticRegression()\n"
    card = build_tiny(folder, texts=[task_prompt("Toy", 3, 20).prefix, body, body], seed=0)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return model, AutoTokenizer.from_pretrained(folder), card


@pytest.fixture
def make_agent(tiny_language_model):
    """A function that returns a fresh agent on a copy of the tiny model."""
    from etpo_paper.model.agent import Agent

    def make(seed: int = 0, rank: int | None = 4, layers: int = 0, precision: str = "float32", **more) -> Agent:
        model, tokenizer, card = tiny_language_model
        options = {"rank": rank, "alpha": 8, "layers": layers, "seed": seed, "precision": precision}
        options |= {"momentum": 0.9, "grad_norm": 10.0, "micro_batch_tokens": 512, **more}
        return Agent(copy.deepcopy(model), tokenizer, card, **options)

    return make


@pytest.fixture
def toy_task():
    """Forty rows of a task whose first column is its label."""
    import numpy as np

    from etpo_paper.data.tasks import TASKS, Task

    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = np.column_stack([y + 0.1 * rng.standard_normal(40), rng.standard_normal((40, 2))])
    spec = replace(TASKS["diabetes"], description="Toy")
    return Task(spec, x, y.astype(np.int64), ("a", "b", "c"), "test", None, "0" * 64)


@pytest.fixture(scope="session")
def quick_program(tmp_path_factory):
    """The folder of the program of workers that load numpy only, see `quick_workers`."""
    from quick_workers import quick_inside

    return quick_inside(tmp_path_factory.mktemp("worker"))


@pytest.fixture
def stage(quick_program):
    """Runs a stage in this process, `stage("train", "--scale", ...)`; the executor's workers load numpy only."""
    import torch
    from quick_workers import workers_from
    from stages import nothing_is_timed, run_module

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with workers_from(quick_program), nothing_is_timed():
        yield lambda name, *arguments: run_module(f"pipeline.{name}", *arguments)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def at(monkeypatch):
    """A function that has the project live in another folder, for this process and those that it starts."""
    from stages import move

    return lambda root: move(monkeypatch, root)


@pytest.fixture
def stub_executor():
    from stub_executor import StubExecutor

    return StubExecutor()
