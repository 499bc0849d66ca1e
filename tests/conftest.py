"""What several tests share: a tiny language model of a few thousand parameters and a task, both made in memory."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from stub_executor import StubExecutor

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches outside
torch.set_num_threads(1)


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
    import copy

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
    from etpo_paper.data.tasks import TASKS, Task

    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = np.column_stack([y + 0.1 * rng.standard_normal(40), rng.standard_normal((40, 2))])
    spec = replace(TASKS["diabetes"], description="Toy")
    return Task(spec, x, y.astype(np.int64), ("a", "b", "c"), "test", None, "0" * 64)


@pytest.fixture
def stub_executor():
    return StubExecutor()
