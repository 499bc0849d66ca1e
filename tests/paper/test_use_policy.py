"""A trained policy as others get it: loaded by peft alone from its folder, described by its card, merged by export."""

import re

import pytest
import torch
import yaml
from peft import PeftModel
from test_use_runs import etpo, here, whole  # noqa: F401  fixtures
from transformers import AutoModelForCausalLM, AutoTokenizer

from etpo_paper.base import paths


@pytest.fixture
def policy(whole, here):  # noqa: F811
    return here / "whole" / "run" / "checkpoint" / "policy"


def test_the_card_says_what_the_policy_is_and_its_lines_load_it(policy, monkeypatch):
    text = (policy / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head == {"library_name": "peft", "tags": ["etpo", "reinforcement-learning", "lora"]}
    assert all(f"| {row} |" in text for row in ("Base", "Stand-ins", "Data", "Method", "Seed", "Mean reward"))
    assert "staff" in text and "built in code, seed 0" in text and "x_train of shape (30, " in text
    monkeypatch.chdir("/")
    named = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], named)
    assert isinstance(named["model"], PeftModel) and named["tokenizer"].eos_token == "<|end|>"


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 1e-6), ("bfloat16", 0.1)])
def test_export_merges_the_adapter_and_says_what_rounding_costs(etpo, whole, here, policy, dtype, largest):  # noqa: F811
    done = etpo("export", "whole", "--out", dtype, "--dtype", dtype)
    assert done.returncode == 0, done.stderr
    cost = float(re.search(r"largest (\S+) nats", done.stdout)[1])
    assert abs(cost) < largest and (dtype == "float32" or cost > 1e-6)
    text = (here / dtype / "README.md").read_text()
    assert f"merged into the base, in {dtype}" in text and "peft" not in text.split("## The first prompt")[0].lower()
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(here / dtype), AutoTokenizer.from_pretrained(here / dtype)
    base = AutoModelForCausalLM.from_pretrained(paths.MODELS / "tiny", dtype=torch.float32)
    ids = tokenizer("import numpy as np\n", return_tensors="pt").input_ids
    adapted = PeftModel.from_pretrained(base, policy)
    with torch.no_grad():
        expected, found = adapted(input_ids=ids).logits, merged(input_ids=ids).logits.float()
    tolerance = 1e-5 if dtype == "float32" else 0.1
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_export_keeps_what_is_there(etpo, whole, here):  # noqa: F811
    done = etpo("export", "whole", "--out", "whole")
    assert done.returncode == 2 and done.stderr == "error: --out whole exists; expected a new folder\n"
