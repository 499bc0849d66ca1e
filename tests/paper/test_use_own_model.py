"""`etpo fit` and `etpo propose` with a language model of the user's own."""

import json

import numpy as np
import pandas as pd
import pytest
from own_models import CHAT, write_model
from stages import CHECKOUT, move, nothing_is_timed, run_module, stop_after_an_update
from stub_executor import StubExecutor

from etpo_paper.environment import executor as opened
from etpo_paper.use import command

TABLE = ("fit", "staff.csv", "--target", "left")
USUAL = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3", "gpt2", "neox", "phi3")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The folder in which the commands run, with a table."""
    here = tmp_path_factory.mktemp("here")
    ages = np.random.default_rng(0).integers(18, 80, 60)
    pd.DataFrame({"age": ages, "left": np.arange(60) % 2}).to_csv(here / "staff.csv", index=False)
    return here


@pytest.fixture(scope="module")
def etpo(here, tmp_path_factory):
    """Runs the command there, with short programs and an executor that scores them by their text."""
    project = tmp_path_factory.mktemp("project")
    settings = (CHECKOUT / "params.yaml").read_text()
    assert "max_new_tokens: 256, lora_layers: 0" in settings
    (project / "params.yaml").write_text(settings.replace("max_new_tokens: 256, lora_layers: 0", "max_new_tokens: 12"))
    with pytest.MonkeyPatch.context() as patch, nothing_is_timed():
        move(patch, project)
        patch.chdir(here)
        patch.setattr(opened, "SandboxPool", StubExecutor)
        yield lambda *arguments: run_module(command.__name__, *arguments)


def files(place):
    return {str(p.relative_to(place)): (p.stat().st_mtime_ns, p.read_bytes()) for p in place.rglob("*") if p.is_file()}


def changed(path, last):
    """Puts another byte at the end of a file."""
    path.write_bytes(path.read_bytes()[:-1] + last)


def run_card(place):
    return json.loads((place / "run" / "run_card.json").read_text())


def test_a_model_in_a_folder_is_trained_and_proposes(etpo, here, monkeypatch):
    mine = write_model(here / "mine")
    before = files(mine)
    options = (*TABLE, "--model", "mine", "--steps", "16", "--lora-targets", "q_proj,v_proj")
    done = etpo(*options, "--out", "a")
    assert done.returncode == 0, done.stderr
    line = f"{mine}: qwen2, through transformers; goes on from the code, because it has no chat template"
    assert line in done.stdout.splitlines() and files(mine) == before
    card = run_card(here / "a")
    assert card["decoder"] == "TransformersDecoder" and card["model"]["source"] == str(mine)
    assert card["model"]["stand_in"] == f"a model of the user's own: {line.partition(': ')[2]}"
    assert card["parameters"]["training"]["max_new_tokens"] == 12
    adapter = json.loads((here / "a/run/checkpoint/policy/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(mine) and adapter["target_modules"] == ["q_proj", "v_proj"]
    assert "finished and was kept" in etpo(*options, "--out", "a").stdout
    assert "holds a run with lora_targets q_proj,v_proj" in etpo(*options[:-2], "--out", "a").stderr
    monkeypatch.chdir(here.parent)  # the path is remembered as it is from everywhere
    done = etpo("propose", here / "a", "--count", "3")
    assert done.returncode == 0, done.stderr
    assert line in done.stdout.splitlines() and done.stdout.splitlines()[-1].startswith("3 programs, ")
    changed(mine / "model.safetensors", b"\1")
    done = etpo("propose", here / "a")
    assert done.returncode == 2 and "mine is not the model any more that the policy of" in done.stderr


@pytest.mark.nightly
def test_another_model_in_the_same_folder_is_noticed(etpo, here, monkeypatch):
    mine = write_model(here / "changing")
    options = (*TABLE, "--model", "./changing", "--steps", "17", "--out", "b")
    with monkeypatch.context() as patch:
        stop_after_an_update(patch)
        assert etpo(*options).returncode == 130
    [go_on] = [line for line in etpo("runs", "b").stdout.splitlines() if line.startswith("to go on: ")]
    assert f"--model {mine}" in go_on
    changed(mine / "model.safetensors", b"\1")
    done = etpo(*options)
    assert done.returncode == 0, done.stderr
    assert "begins anew, because its 16 steps were made with weights" in done.stdout
    assert etpo("propose", "b", "--count", "1").returncode == 0


@pytest.mark.parametrize(
    "arguments, line",
    [
        (("--model", "gone/model"), "cannot fetch the language model gone/model"),
        (("--model", "gpt"), "unknown model 'gpt'; expected smollm2, tiny, codellama, a folder"),
        (("--model", "tiny", "--lora-targets", "q_proj"), "--lora-targets is for a model of your own"),
    ],
)
def test_a_mistake_is_one_line(etpo, here, arguments, line):
    before = files(here)
    done = etpo(*TABLE, *arguments)
    assert done.returncode == 2 and line in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert files(here) == before


@pytest.mark.nightly
@pytest.mark.parametrize("family, chat", [(family, False) for family in USUAL] + [("llama", True), ("qwen2", True)])
def test_every_family_is_trained(etpo, here, family, chat):
    template = CHAT.replace("END", "<end>") if chat else None
    name = family + ("-chat" if chat else "")
    write_model(here / name, family, template)
    done = etpo(*TABLE, "--model", name, "--steps", "32", "--out", f"runs/{name}")
    assert done.returncode == 0, done.stderr
    assert "32/32" in done.stderr and ("in its chat template" in done.stdout) == chat
    assert run_card(here / "runs" / name)["decoder"] == ("Llama" if family in USUAL[:2] else "Transformers") + "Decoder"
    rows = pd.read_csv(here / "runs" / name / "run" / "steps.csv")
    assert len(rows) == 32 and rows["tokens"].le(12).all()
