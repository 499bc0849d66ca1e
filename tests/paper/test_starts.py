"""The starts of the models: what is written and read back, what is made from them, and what comes with the project."""

import copy
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.provenance import file_sha256
from etpo_paper.model import loading, models, starts
from etpo_paper.model.loading import build_tiny, load_model
from etpo_paper.training.run import fingerprint

RECIPE = {"steps": 3, "batch": 8, "learning_rate": 0.1, "lora_rank": 4, "max_tokens": 9, "seed": 0}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "small-base"
    build_tiny(folder, ["def build_model(x_train, y_train):\n    return model"])
    return folder


@pytest.fixture
def root(tmp_path, pretrained, monkeypatch):
    """A project with the pretrained model `small-base`, whose recipe of the warm start the settings know."""
    monkeypatch.setattr(paths, "STARTS", tmp_path / "starts")
    for module in (paths, loading):
        monkeypatch.setattr(module, "MODELS", tmp_path / "models")
    monkeypatch.setattr(models, "recipe", lambda name: RECIPE)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small-base").symlink_to(pretrained)
    return tmp_path


def write(adapter=True, seed=0):
    """Writes starts/small and returns the trained model."""
    model, tokenizer, base = load_model("small-base")
    torch.manual_seed(seed)
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if not adapter or "lora_" in name:
            weight.data.normal_(std=0.05)
    card = base | {"name": "small", "warm_start": RECIPE | {"bodies": 7, "base": base["sha256"]}}
    starts.write_start("small", model, tokenizer, card, starts.folder("small"))
    return model.eval()


def test_an_adapter_is_added_to_the_pretrained_model(root):
    trained = write()
    card = starts.make("small", lambda: None)
    made, _, loaded = load_model("small")
    assert loaded == card and card["warm_start"]["bodies"] == 7 and card["start"]["dtype"] == "float16"
    ids = torch.arange(12)[None]
    apart = (made(ids).logits - trained(ids).logits).abs().max() / trained(ids).logits.abs().max()
    assert apart < 2**-11 * 4  # float16 has 11 binary digits; a few layers add up
    factors = load_file(starts.folder("small") / starts.ADAPTER)
    layer = "model.layers.1.mlp.up_proj"
    up, down = (factors[f"base_model.model.{layer}.lora_{x}.weight"].double() for x in "BA")
    base = load_model("small-base")[0]
    expected = (base.get_submodule(layer).weight.double() + 2 * up @ down).float()
    assert torch.equal(made.get_submodule(layer).weight, expected)
    assert torch.equal(made.model.embed_tokens.weight, base.model.embed_tokens.weight)


def test_the_same_start_gives_the_same_bytes(root):
    files = []
    for _ in range(2):
        write()
        starts.make("small", lambda: None)
        written = [file for kind in ("starts", "models") for file in sorted((root / kind / "small").iterdir())]
        files.append([(file.name, file_sha256(file)) for file in written])
    assert files[0] == files[1]


def test_a_start_may_be_a_whole_model_or_nothing(root):
    trained = write(adapter=False)
    card = starts.make("small", lambda: pytest.fail("the pretrained model is not needed"))
    made, _, loaded = load_model("small")
    assert loaded == card
    for name, weight in trained.state_dict().items():
        assert torch.equal(made.state_dict()[name], weight.half().float()), name
    starts.write_plain("plain")
    (root / "models" / "plain-base").symlink_to(root / "models" / "small-base")
    assert starts.make("plain", lambda: None) == loading.read_card("plain-base") | {"name": "plain"}


def test_a_model_is_made_when_it_is_missing_or_made_from_another_start(root, capsys):
    write()
    first = models.model("small")
    assert "made from" in capsys.readouterr().out
    assert models.model("small") == first and capsys.readouterr().out == ""
    write(seed=1)
    assert models.model("small")["sha256"] != first["sha256"]


def test_where_other_weights_come_out_it_is_said(root, capsys):
    write()
    starts.complete("small", starts.make("small", lambda: None) | {"sha256": "another"})
    (root / "models" / "small" / "card.json").unlink()
    models.model("small")
    assert "not the weights that the start led to where it was made" in capsys.readouterr().out


def test_the_card_of_a_model_is_known_without_the_model(root):
    write()
    assert models.card("small")["warm_start"]["steps"] == 3
    assert not (root / "models" / "small").exists()


def damage(root, how):
    place = starts.folder("small")
    if how == "cut":
        file = place / starts.ADAPTER
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "card":
        (place / "card.json").write_text("[]")
    elif how == "base":
        card = json.loads((place / "card.json").read_text())
        card["warm_start"]["base"] = "another"
        loading.write_card(place, card)
    elif how == "layers":
        file = place / starts.ADAPTER
        save_file({key.replace("layers.2", "layers.9"): value for key, value in load_file(file).items()}, file)
        card = json.loads((place / "card.json").read_text())
        card["start"]["sha256"] = file_sha256(file)
        loading.write_card(place, card)
    elif how == "recipe":
        card = json.loads((place / "card.json").read_text())
        card["warm_start"]["steps"] = 4
        loading.write_card(place, card)
    else:
        (root / "models" / "small-base").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "missing, or not the file that its card names; restore .*small from git"),
        ("card", "expected the card of a start; restore"),
        ("base", "models/small-base has sha256 .*, but .*small was made from another: delete models/small-base"),
        ("layers", "made for another model: this one has no such layer as base_model.model.model.layers.9"),
        ("recipe", "starts/small was made with steps 4 instead of 3, .*python -m pipeline.warm_start --model small"),
        ("no base", "no language model at .*small-base"),
    ],
)
def test_a_start_that_does_not_fit_is_one_line(root, how, message):
    write()
    damage(root, how)
    with pytest.raises(UserError, match=message) as error:
        models.model("small")
    assert "\n" not in str(error.value)
    assert not (root / "models" / "small").exists()


def test_the_distance_of_two_starts(root, tmp_path):
    write()
    place = starts.folder("small")
    assert starts.difference(place, place) == 0
    place.rename(tmp_path / "other")
    write(seed=1)
    assert starts.difference(place, tmp_path / "other") == pytest.approx(2**0.5, rel=0.05)  # two independent draws


def adapter_of(model, place, **options):
    """Writes an adapter with random weights for a model and returns the model with it."""
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**{"r": 2, "lora_alpha": 4} | options))
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.05)
    starts.write_adapter(place, adapted, "default", "small")
    return adapted.eval()


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_proj"])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_of_a_weight_that_two_layers_share_is_refused(tmp_path, target, tied):
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "eos_token_id": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=tied)).eval()
    adapted, before = adapter_of(model, tmp_path, target_modules=[target, "k_proj"]), copy.deepcopy(model.state_dict())
    message = {"lm_head": "whose weight another layer shares" if tied else None, "q_proj": None}.get(
        target, "expected LoRA of linear products alone"
    )
    if message is None:
        starts.merge(model, tmp_path, torch.float32)
        ids = torch.arange(9)[None]
        torch.testing.assert_close(model(ids).logits, adapted(ids).logits)
        return
    with pytest.raises(UserError, match=f"{target}.*{message}") as error:
        starts.merge(model, tmp_path, torch.float32)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_adapter_is_added_to_transposed_weights(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=2, n_positions=64)).eval()
    adapted = adapter_of(model, tmp_path, target_modules="all-linear", fan_in_fan_out=True)
    ids = torch.arange(9)[None]
    assert (model(ids).logits - adapted(ids).logits).abs().max() > 1e-3
    starts.merge(model, tmp_path, torch.float32)
    torch.testing.assert_close(model(ids).logits, adapted(ids).logits)


# A model of one's own ------------------------------------------------------------------------------------------------


@pytest.fixture
def own(root, monkeypatch):
    """A function that has the settings name another folder as the source of `codellama`; it has no warm start."""
    starts.write_plain("codellama")

    def name(source):
        settings = SimpleNamespace(base_model=SimpleNamespace(codellama=SimpleNamespace(source=str(source))))
        monkeypatch.setattr(models, "load_defaults", lambda: settings)
        return models.card("codellama")

    for seed in (0, 1):
        build_tiny(root / f"own{seed}", ["def build_model(x_train, y_train):\n    return model"], seed)
        (root / f"own{seed}" / "card.json").unlink()
    return name


def test_a_model_of_ones_own_is_identified_by_its_files(root, own, capsys, monkeypatch):
    first = own(root / "own0")
    assert len(first["sha256"]) == 64 and first["name"] == "codellama"
    assert "not the weights" not in capsys.readouterr().out
    shutil.copytree(root / "own0", root / "copy")
    assert own(root / "copy")["sha256"] == first["sha256"]
    other = own(root / "own1")
    assert other["sha256"] != first["sha256"] and other["path"] == str(root / "own1")
    weights = load_file(root / "own1" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(load_model("codellama")[0].get_input_embeddings().weight, weights)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "file_sha256", lambda path: pytest.fail("a file that did not change is read again"))
        assert own(root / "own1") == other
    task = SimpleNamespace(sha256="0" * 64)
    assert fingerprint({}, first, task) != fingerprint({}, other, task)


def test_a_model_of_ones_own_that_changes_in_its_place_is_another_one(root, own):
    first = own(root / "own0")
    shutil.copy(root / "own1" / "model.safetensors", root / "own0")  # as many bytes
    with pytest.raises(UserError, match=r"own0 is not the model that .*codellama was made from"):
        load_model("codellama")
    second = own(root / "own0")
    assert second["sha256"] != first["sha256"]
    load_model("codellama")
    config = json.loads((root / "own0" / "config.json").read_text())
    (root / "own0" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert own(root / "own0")["sha256"] not in (first["sha256"], second["sha256"])


def test_a_file_with_a_new_date_and_the_same_bytes_is_the_same_model(root, own):
    first = own(root / "own0")
    os.utime(root / "own0" / "model.safetensors", (1, 1))
    load_model("codellama")
    assert own(root / "own0")["sha256"] == first["sha256"]


def test_a_warm_start_of_a_model_of_ones_own_is_a_model_of_its_own(root):
    build_tiny(root / "own", ["def build_model(x_train, y_train):\n    return model"], seed=5)
    (root / "models" / "small-base").unlink()
    base = loading.fetch_hub(str(root / "own"), root / "models" / "small-base")
    trained = write()
    made = models.model("small")
    assert not {"path", "files"} & (made.keys() | starts.read_start("small").keys())
    assert made["eos_token_id"] == base["eos_token_id"] and made["warm_start"]["base"] == base["sha256"]
    expected, found = (model(torch.arange(12)[None]).logits for model in (trained, load_model("small")[0]))
    assert (found - expected).abs().max() < 2**-9 * expected.abs().max()  # the start is float16


@pytest.mark.parametrize("name", ["tiny", "smollm2", "codellama"])
def test_the_starts_of_the_project_are_whole_and_of_todays_recipe(name):
    card = starts.read_start(name)
    assert card["name"] == name
    if name != "codellama":
        models.check_recipe(name, card)
        assert len(card["sha256"]) == 64 and card["start"]["dtype"] == "float16"
