"""Perplexity: against the naive computation, and where its value is known without computing."""

import csv
import hashlib
import io
import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from fixtures_results import CHECKOUT, make_results, make_root
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.data import corpora
from etpo_paper.data.corpora import load_corpus
from etpo_paper.measure.perplexity import (
    causal_log_likelihood,
    perplexity,
    token_log_likelihood,
    windows,
)
from etpo_paper.measure.policies import Loader, Subject
from etpo_paper.model import loading as language_model
from etpo_paper.report import notebook, results
from etpo_paper.report.perplexity import before_and_after, paired_runs
from pipeline import perplexity as stage

VOCABULARY = 97


def llama(seed: int = 0, context: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def text(length: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length, window, stride", [(2, 4, 1), (10, 4, 3), (11, 8, 4), (40, 8, 7), (7, 8, 1)])
def test_windows_score_every_token_but_the_first_once(length, window, stride):
    scored = []
    for begin, first, end in windows(length, window, stride):
        assert end - begin <= window and begin < first
        assert begin == 0 or first - begin >= window - stride  # the promised context
        scored += range(first, end)
    assert scored == list(range(1, length))


def test_a_limit_takes_whole_windows_from_all_over_the_text():
    places = windows(length=10_001, window=200, stride=100, tokens=1000)
    assert len(places) == 10 and set(places) <= set(windows(10_001, 200, 100))
    assert sum(end - first for _, first, end in places) == 1000
    assert places[0][0] < 1000 and places[-1][2] > 9000
    assert windows(10_001, 200, 100, tokens=10**9) == windows(10_001, 200, 100)
    assert len(windows(10_001, 200, 100, tokens=1)) == 1


@pytest.mark.parametrize("length, window, stride", [(100, 1, 1), (100, 8, 8), (100, 8, 0), (1, 8, 4)])
def test_windows_that_cannot_be_are_refused_in_one_line(length, window, stride):
    with pytest.raises(UserError, match="perplexity") as error:
        windows(length, window, stride)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("chunk", [1, 10, 97, 4096])
def test_chunks_over_the_vocabulary_change_nothing(chunk):
    torch.manual_seed(2)
    hidden, weight = torch.randn(13, 16), torch.randn(VOCABULARY, 16)
    targets = torch.randint(0, VOCABULARY, (13,))
    naive = torch.log_softmax(hidden.double() @ weight.double().T, -1)
    got = token_log_likelihood(hidden, weight, targets, chunk)
    # logits of size 20 in float32: a rounding of 20 * 2^-24 each, summed over 16 terms
    torch.testing.assert_close(got.double(), naive[torch.arange(13), targets], rtol=0, atol=2e-5)


def test_float16_and_bfloat16_heads_are_multiplied_in_float32():
    torch.manual_seed(2)
    hidden, weight = torch.randn(5, 16).bfloat16(), torch.randn(VOCABULARY, 16).bfloat16()
    targets = torch.arange(5)
    exact = token_log_likelihood(hidden.float(), weight.float(), targets)
    assert torch.equal(token_log_likelihood(hidden, weight, targets), exact)


def test_no_temporary_is_as_wide_as_the_vocabulary():
    class Widest(torch.utils._python_dispatch.TorchDispatchMode):
        widest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                Widest.widest = max(Widest.widest, out.numel())
            return out

    hidden, weight = torch.randn(50, 8), torch.randn(10_000, 8)
    with Widest():
        token_log_likelihood(hidden, weight, torch.arange(50), chunk=100)
    assert 0 < Widest.widest <= 50 * 100


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    model = llama()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    measured = perplexity(causal_log_likelihood(model), text(200), window=32, stride=16)
    assert measured.tokens == 199
    # log|V| is rounded to float32 once a token, in the running logsumexp
    assert measured.perplexity == pytest.approx(VOCABULARY, rel=1e-6)


def test_a_model_that_knows_has_perplexity_one():
    measured = perplexity(lambda tokens, first: torch.zeros(len(tokens) - first), text(50), 10, 5)
    assert (measured.tokens, measured.nll, measured.perplexity) == (49, 0.0, 1.0)


def test_every_token_weighs_the_same_whatever_its_window():
    # 1 nat for tokens of the first window (7 scored), 2 nats beyond (4 + 2 scored): the mean is over tokens.
    calls = []

    def scores(tokens, first):
        calls.append(len(tokens) - first)
        return torch.full((len(tokens) - first,), -1.0 if len(calls) == 1 else -2.0)

    measured = perplexity(scores, text(14), window=8, stride=4)
    assert calls == [7, 4, 2]
    assert measured.nll == pytest.approx((7 * 1 + 6 * 2) / 13, rel=1e-12)


def test_agrees_with_the_naive_strided_computation():
    model, tokens = llama(), text(150)
    window, stride = 32, 12
    total, count, reached = 0.0, 0, 1
    with torch.no_grad():
        for begin in range(0, len(tokens), stride):
            part = tokens[begin : begin + window]
            logs = torch.log_softmax(model(part[None]).logits[0].double(), -1)
            for position in range(max(reached, begin + 1), begin + len(part)):
                total -= logs[position - begin - 1, tokens[position]].item()
                count += 1
            reached = max(reached, begin + len(part))
            if begin + window >= len(tokens):
                break
    measured = perplexity(causal_log_likelihood(model), tokens, window, stride)
    assert measured.tokens == count == 149
    assert measured.nll == pytest.approx(total / count, rel=1e-6)


def test_start_tokens_are_read_and_not_scored():
    model, tokens = llama(), text(20)
    bare = causal_log_likelihood(model)(tokens, 1)
    with_start = causal_log_likelihood(model, [5])(tokens, 1)
    assert bare.shape == with_start.shape == (19,)
    expected = causal_log_likelihood(model)(torch.cat([torch.tensor([5]), tokens]), 2)
    assert torch.equal(with_start, expected) and not torch.allclose(bare, with_start)


def test_an_adapter_is_seen():
    model = llama()
    bare = causal_log_likelihood(model)(text(20), 1)
    adapted = _adapted(model)
    assert not torch.allclose(causal_log_likelihood(adapted)(text(20), 1), bare)
    with adapted.disable_adapter():
        assert torch.equal(causal_log_likelihood(adapted)(text(20), 1), bare)


def test_a_window_beyond_the_context_is_refused():
    with pytest.raises(UserError, match="context of 64"):
        perplexity(causal_log_likelihood(llama(context=64)), text(100), window=65, stride=10)


def test_infinite_perplexity_is_infinite():
    assert perplexity(lambda t, f: torch.full((len(t) - f,), -1e4), text(5), 4, 2).perplexity == math.inf


# The stage ---------------------------------------------------------------------------------------------------------


def _adapted(model, seed: int = 3):
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"), adapter_name="policy")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return adapted.eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models/ with a base and a reference of different weights."""
    folder = tmp_path_factory.mktemp("models")
    texts = ["a text called github wikitext arxiv", "def build_model(x_train, y_train):\n    return model"]
    for seed, name in enumerate(("tiny-base", "tiny")):
        card = language_model.build_tiny(folder / name, texts, seed=seed)
        if name == "tiny":
            language_model.write_card(folder / name, card | {"warm_start": {"steps": 1}})
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch, models):
    """A root with two tiny models, three corpora and the results of one seed of a smoke run."""
    make_root(tmp_path)
    _set(tmp_path, tokens=96, window=64, stride=32)
    for name, folder in {
        "ROOT": "", "PARAMS": "params.yaml", "RESULTS": "results", "EVALUATIONS": "evaluations", "MODELS": "models",
        "CORPORA": "data/corpora", "FIGURES": "figures", "STARTS": "starts",
    }.items():  # fmt: skip
        monkeypatch.setattr(paths, name, tmp_path / folder)
    monkeypatch.setattr(language_model, "MODELS", tmp_path / "models")
    make_results(tmp_path, methods=("reflection", "etpo"), tasks=("kidney-stone",), seeds=(0, 1))
    for updates in (tmp_path / "results").glob("*/reflection/*/*/updates.csv"):
        _blank(updates, "policy_loss")  # a method that does not train
    (paths.CORPORA / "smoke").mkdir(parents=True)
    for name in corpora.CORPORA:
        words = f"a text called {name} " * 200
        (paths.CORPORA / "smoke" / f"{name}.txt").write_text(words)
        card = {"source": f"source of {name}", "stand_in": None if name == "arxiv" else "made by a test"}
        card["sha256"] = hashlib.sha256(words.encode()).hexdigest()
        (paths.CORPORA / "smoke" / f"{name}.json").write_text(json.dumps(card))
    shutil.copytree(models, paths.MODELS)
    model, _, _ = language_model.load_model("tiny")
    _adapted(model).save_pretrained(_run(tmp_path, 0) / "checkpoint" / "policy", selected_adapters=["policy"])
    return tmp_path


def _set(root: Path, **settings: int) -> None:
    """Sets the settings of the section `perplexity` for the scale smoke."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["scales"]["smoke"]["perplexity"] = settings
    (root / "params.yaml").write_text(yaml.dump(params))


def _run(root: Path, seed: int) -> Path:
    return root / "results" / "smoke" / "etpo" / "kidney-stone" / f"seed{seed}"


def _blank(path: Path, column: str) -> None:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(row | {column: ""} for row in rows)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_stage_measures_base_reference_and_policy(root):
    path = stage.run("smoke")
    rows = _rows(path)
    assert [(row["model"], row["task"], row["seed"], row["corpus"]) for row in rows] == [
        (*model, corpus)
        for model in [("base", "", ""), ("reference", "", ""), ("etpo", "kidney-stone", "0")]
        for corpus in ("github", "wikitext", "arxiv")
    ]
    assert list(results.load_perplexity("smoke")["stand_in"].fillna("")[:3]) == ["made by a test"] * 2 + [""]
    values = {row["model"]: float(row["perplexity"]) for row in rows if row["corpus"] == "github"}
    assert len(set(values.values())) == 3
    nll = {(row["model"], row["corpus"]): row["nll"] for row in rows}
    for row in rows:
        assert row["before_nll"] == (nll["reference", row["corpus"]] if row["model"] == "etpo" else "")
        assert math.exp(float(row["nll"])) == pytest.approx(float(row["perplexity"]), rel=2e-6)
        assert 64 <= int(row["tokens"]) <= 128


def test_stage_goes_on_where_it_was_killed(root, monkeypatch):
    whole = stage.run("smoke").read_bytes()
    (root / "evaluations/smoke/perplexity.csv").unlink()
    measure, done = stage.measure, []

    def dies_after_four(*arguments):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(arguments[0].name)
        return measure(*arguments)

    monkeypatch.setattr(stage, "measure", dies_after_four)
    with pytest.raises(KeyboardInterrupt):
        stage.run("smoke")
    assert len(_rows(root / "evaluations/smoke/perplexity.csv")) == 4
    monkeypatch.setattr(stage, "measure", lambda *arguments: done.append("again") or measure(*arguments))
    assert stage.run("smoke").read_bytes() == whole
    assert done.count("again") == 5
    assert stage.run("smoke").read_bytes() == whole and done.count("again") == 5  # nothing left to do


def test_stage_measures_again_what_changed(root, monkeypatch):
    first = {(row["model"], row["corpus"]): row["key"] for row in _rows(stage.run("smoke"))}
    words = "another text " * 300
    (paths.CORPORA / "smoke" / "arxiv.txt").write_text(words)
    card = json.loads((paths.CORPORA / "smoke" / "arxiv.json").read_text())
    card["sha256"] = hashlib.sha256(words.encode()).hexdigest()
    (paths.CORPORA / "smoke" / "arxiv.json").write_text(json.dumps(card))
    model, _, _ = language_model.load_model("tiny")
    _adapted(model, seed=4).save_pretrained(_run(root, 0) / "checkpoint" / "policy", selected_adapters=["policy"])
    second = {(row["model"], row["corpus"]): row["key"] for row in _rows(stage.run("smoke"))}
    changed = {place for place in first if first[place] != second[place]}
    assert changed == {(m, "arxiv") for m in ("base", "reference")} | {("etpo", c) for c in corpora.CORPORA}


def test_stage_keeps_the_rows_of_policies_whose_weights_are_elsewhere(root, capsys):
    whole = stage.run("smoke").read_bytes()
    shutil.rmtree(_run(root, 0) / "checkpoint")
    shutil.rmtree(paths.MODELS / "tiny-base")
    capsys.readouterr()
    assert stage.run("smoke").read_bytes() == whole
    out = capsys.readouterr().out
    assert "etpo kidney-stone seed0: its weights are not in" in out and "rows kept: github" in out
    (root / "evaluations/smoke/perplexity.csv").unlink()
    assert [row["model"] for row in _rows(stage.run("smoke"))] == ["reference"] * 3
    assert "no row" in capsys.readouterr().out


def test_stage_refuses_a_damaged_adapter_in_one_line(root):
    weights = next((_run(root, 0) / "checkpoint").rglob("adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="train again") as error:
        stage.run("smoke")
    assert "\n" not in str(error.value)


def test_stage_makes_the_texts_that_are_missing(root):
    (paths.CORPORA / "smoke" / "github.txt").unlink()
    stage.run("smoke")
    assert load_corpus("github", "smoke").source.startswith("networkx ")


def test_stage_says_that_the_model_is_missing(root):
    shutil.rmtree(paths.MODELS / "tiny")
    with pytest.raises(UserError, match="no language model at .*tiny"):
        stage.run("smoke")


def test_adapters_come_and_go_without_a_trace(root):
    loader = Loader(torch.float32, "cpu")
    reference = Subject("reference", "", "", "tiny")
    policy = Subject("etpo", "kidney-stone", "0", "tiny", _run(root, 0) / "checkpoint" / "policy" / "policy")
    seen = []
    for subject in (reference, policy, policy, reference):
        with loader.use(subject) as (model, _):
            seen.append(causal_log_likelihood(model)(torch.arange(10, 40), 1))
    assert torch.equal(seen[0], seen[3]) and torch.equal(seen[1], seen[2])
    assert not torch.allclose(seen[0], seen[1])


def test_stage_measures_again_when_a_setting_changed(root):
    before = [row["key"] for row in _rows(stage.run("smoke"))]
    _set(root, tokens=96, window=64, stride=31)
    after = [row["key"] for row in _rows(stage.run("smoke"))]
    assert len(before) == len(after) and not set(before) & set(after)


def test_a_policy_of_other_reference_weights_is_not_measured(root, capsys):
    card = json.loads((_run(root, 0) / "run_card.json").read_text())
    (_run(root, 0) / "run_card.json").write_text(json.dumps(card | {"model": {"sha256": "0" * 64}}))
    assert {row["model"] for row in _rows(stage.run("smoke"))} == {"base", "reference"}
    assert "trained from other weights" in capsys.readouterr().out


# Before and after ------------------------------------------------------------------------------------------------


def _frame(*rows) -> pd.DataFrame:
    names = ["model", "task", "seed", "corpus", "nll", "before_nll", "key", "tokens"]
    return pd.DataFrame([(*row, 10) for row in rows], columns=names)


def test_before_and_after_by_hand():
    rows = _frame(
        ("base", None, None, "arxiv", math.log(8), None, "w-t"),
        ("reference", None, None, "arxiv", math.log(30), None, "w-t"),
        ("etpo", "a", 0, "arxiv", math.log(20), math.log(10), "w-t"),  # trained from an earlier reference
        ("etpo", "b", 0, "arxiv", math.log(5), math.log(10), "w-t"),
        ("ppo_kl", "a", 0, "arxiv", math.log(33), math.log(30), "w-t"),
        ("ppo_kl", "b", 0, "arxiv", math.log(99), math.log(30), "w-other"),  # measured on another text
    )
    paired, left_out = paired_runs(rows)
    table = before_and_after(paired)
    assert left_out == 1 and list(table["method"]) == ["etpo", "ppo_kl"] and list(table["runs"]) == [2, 1]
    etpo = table.iloc[0]
    values = [etpo["base"], etpo["before"], etpo["after"], etpo["change_low"], etpo["change_high"]]
    assert values == pytest.approx([8, 10, 10, -0.5, 1.0], rel=1e-12)
    assert etpo["change"] == pytest.approx(0, abs=1e-12)
    assert table.iloc[1]["change"] == pytest.approx(0.1, rel=1e-12)


def test_before_and_after_with_nothing_trained():
    paired, left_out = paired_runs(_frame(("reference", None, None, "arxiv", 1.0, None, "w-t")))
    table = before_and_after(paired)
    assert paired.empty and table.empty and left_out == 0 and "change" in table


def _run_notebook() -> None:
    notebook.execute(CHECKOUT / "notebooks" / "perplexity.ipynb", scale="smoke")


def test_the_notebook_draws_from_the_table_alone(root):
    stage.run("smoke")
    for folder in ("models", "data"):
        shutil.rmtree(root / folder)
    place, written = root / "figures" / "smoke" / "perplexity", []
    for _ in range(2):
        _run_notebook()
        written.append({path.name: path.read_bytes() for path in place.iterdir()})
        shutil.rmtree(place)
    assert set(written[0]) == {f"perplexity.{end}" for end in ("csv", "md", "tex", "png", "pdf")}
    assert written[0] == written[1]
    table = written[0]["perplexity.md"].decode()
    assert "GitHub code†" in table and "made by a test" in table and "arXiv LaTeX |" in table
    rows = pd.read_csv(root / "evaluations/smoke/perplexity.csv").set_index(["model", "corpus"])["perplexity"]
    drawn = pd.read_csv(io.BytesIO(written[0]["perplexity.csv"])).set_index("corpus")
    for name in corpora.CORPORA:
        assert drawn.loc[name, "after"] == pytest.approx(rows["etpo", name], rel=1e-5)
        assert drawn.loc[name, "before"] == pytest.approx(rows["reference", name], rel=1e-5)


def test_the_notebook_without_policies_and_without_a_table(root):
    shutil.rmtree(_run(root, 0) / "checkpoint")
    stage.run("smoke")
    _run_notebook()
    table = (root / "figures" / "smoke" / "perplexity" / "perplexity.md").read_text()
    assert "No trained policy was measured" in table
    (root / "evaluations/smoke/perplexity.csv").unlink()
    with pytest.raises(UserError, match="pipeline.perplexity --scale smoke"):
        _run_notebook()
