import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, CodeLlamaTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from etpo_core.errors import UserError
from etpo_paper.environment.prompts import Prompt, task_prompt
from etpo_paper.model import loading as language_model
from etpo_paper.model.loading import (
    CODE,
    CONTINUATION,
    INFILL,
    build_tiny,
    check_files,
    decode_action,
    encode_prompt,
    end_tokens,
    fetch_hub,
    front,
    load_model,
)

BODY = "    from sklearn.svm import SVC\n    model = SVC(probability=True)\n    model.fit(x_train, y_train)\n"
TEXTS = [task_prompt("Balance Scale", 4, 62).prefix, BODY] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A models folder with one tiny model."""
    models = tmp_path_factory.mktemp("models")
    build_tiny(models / "tiny-base", TEXTS, seed=3)
    return models


@pytest.fixture
def models(folder, monkeypatch):
    monkeypatch.setattr(language_model, "MODELS", folder)
    return folder


def test_tiny_is_loaded_frozen_with_its_card(models):
    model, tokenizer, card = load_model("tiny-base")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "eager"
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert 100_000 < card["parameters"] < 1_000_000
    assert card["format"] == CONTINUATION and card["warm_start"] is None and card["stand_in"]
    assert card["eos_token_id"] == tokenizer.eos_token_id != tokenizer.pad_token_id
    assert len(tokenizer) == model.config.vocab_size
    assert not list(models.glob(".*")), "no half-written folder stays behind"


def test_tiny_is_a_function_of_texts_and_seed(models, tmp_path):
    again = build_tiny(tmp_path / "tiny-base", TEXTS, seed=3)
    other = build_tiny(tmp_path / "other", TEXTS, seed=4)
    assert again["sha256"] == check_files("tiny-base", whole=True)["sha256"] != other["sha256"]
    tokenizers = [path / "tokenizer.json" for path in (models / "tiny-base", tmp_path / "tiny-base")]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()


def test_building_a_model_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_tiny(tmp_path / "m", TEXTS, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_loads_in_another_precision(models):
    assert load_model("tiny-base", torch.bfloat16)[0].dtype == torch.bfloat16


def test_missing_and_damaged_models_name_the_stage(models, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no language model at .*python -m pipeline.warm_start --model smollm2"):
        load_model("smollm2")
    with pytest.raises(UserError, match="known models are codellama, codellama-base, smollm2"):
        load_model("nonsense")
    monkeypatch.setattr(language_model, "MODELS", tmp_path)
    build_tiny(tmp_path / "tiny-base", TEXTS)
    weights = tmp_path / "tiny-base" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # same size
    check_files("tiny-base")
    with pytest.raises(UserError, match=r"SHA-256.*pipeline.base_model --model tiny"):
        check_files("tiny-base", whole=True)
    weights.write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"has 1000 bytes.*pipeline.base_model --model tiny"):
        load_model("tiny-base")
    (tmp_path / "tiny-base" / "card.json").write_text("[]")
    with pytest.raises(UserError, match="is not a model card"):
        load_model("tiny-base")


def test_continuation_is_the_prefix_and_nothing_else(models):
    _, tokenizer, card = load_model("tiny-base")
    prompt = task_prompt("Balance Scale", 4, 62)
    ids = encode_prompt(tokenizer, prompt, card["format"])
    assert tokenizer.decode(ids) == prompt.prefix
    assert card["eos_token_id"] not in ids
    with pytest.raises(UserError, match="no <PRE>"):
        encode_prompt(tokenizer, prompt, INFILL)
    with pytest.raises(UserError, match="unknown prompt format 'prose'"):
        encode_prompt(tokenizer, prompt, "prose")


def test_action_text_is_exact_and_ends_at_the_end_token(models):
    _, tokenizer, card = load_model("tiny-base")
    ids = tokenizer(BODY).input_ids
    assert decode_action(tokenizer, [*ids, card["eos_token_id"], *ids], card["eos_token_id"]) == BODY
    assert decode_action(tokenizer, [card["eos_token_id"]], card["eos_token_id"]) == ""


@pytest.fixture(scope="module")
def infill_tokenizer():
    """A tokenizer of CodeLlama's class: characters only, with the four infilling tokens."""
    special = ["<unk>", "<s>", "</s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    characters = sorted(set("".join(TEXTS).replace(" ", "▁")) | set("\n=▁return model"))
    vocabulary = {token: i for i, token in enumerate([*special, *[c for c in characters if c != " "]])}
    return CodeLlamaTokenizer(vocab=vocabulary, merges=[])


def test_infill_is_prefix_suffix_middle(infill_tokenizer):
    prompt = Prompt("def f(x):\n", "    return model\n")
    ids = encode_prompt(infill_tokenizer, prompt, INFILL)
    tokens = infill_tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:2] == ["<s>", "▁<PRE>"] and tokens[-1] == "▁<MID>"
    middle = tokens.index("▁<SUF>")
    assert "".join(tokens[2:middle]) == "▁def▁f(x):\n"
    assert "".join(tokens[middle + 1 : -1]) == "▁▁▁▁return▁model\n"


def test_infill_is_what_transformers_makes_of_it(infill_tokenizer):
    prompt = task_prompt("Balance Scale", 4, 62)
    ours = encode_prompt(infill_tokenizer, prompt, INFILL)
    assert infill_tokenizer(prompt.prefix, suffix=prompt.suffix).input_ids == ours


def test_infill_action_keeps_its_first_space(infill_tokenizer):
    tokens = list(BODY.replace(" ", "▁"))
    ids = infill_tokenizer.convert_tokens_to_ids(tokens)
    end = infill_tokenizer.convert_tokens_to_ids("▁<EOT>")
    assert infill_tokenizer.decode(ids) != BODY  # why decode_action exists
    assert decode_action(infill_tokenizer, [*ids, end], end) == BODY


def test_a_local_model_is_referred_to_and_not_copied(models, tmp_path, monkeypatch):
    source = models / "tiny-base"
    card = fetch_hub(str(source), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["card.json"]
    assert card["path"] == str(source) and card["format"] == CONTINUATION and "CodeLlama" in card["stand_in"]
    monkeypatch.setattr(language_model, "MODELS", tmp_path)
    model, _, loaded = load_model("mine")
    assert loaded == json.loads((tmp_path / "mine" / "card.json").read_text())
    assert model.config.vocab_size > 0


def test_infilling_tokens_decide_the_format(infill_tokenizer, tmp_path):
    infill_tokenizer.save_pretrained(tmp_path / "source")
    LlamaConfig(vocab_size=len(infill_tokenizer)).save_pretrained(tmp_path / "source")
    card = fetch_hub(str(tmp_path / "source"), tmp_path / "codellama")
    assert card["format"] == INFILL
    assert card["eos_token_id"] == infill_tokenizer.convert_tokens_to_ids("▁<EOT>")


VOCABULARY = 400  # of a model of one's own


def own_model(
    place, *, pre_tokenizer=None, normalizer=None, behind=None, eos_token="<end>", end_tokens=1, tokenizer_class=None
):
    """A model of one's own: a folder of transformers, whose byte-level tokenizer has the tokens <end> and <turn>."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = byte_level, decoders.ByteLevel()
    special, alphabet = ["<pad>", "<end>", "<turn>"], sorted(byte_level.alphabet())
    trainer = BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([CODE, "12345 " * 9, *TEXTS], trainer)
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizer, byte_level])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if behind is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"<turn> $A {behind}", special_tokens=[("<turn>", 2), ("<end>", 1)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token=eos_token)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"bos_token_id": None, "pad_token_id": 0, "eos_token_id": end_tokens}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), **sizes))
    model.save_pretrained(place)
    fast.save_pretrained(place)
    if tokenizer_class is not None:
        path = place / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": tokenizer_class}))
    return str(place)


@pytest.mark.parametrize(
    ("named", "main", "ends"),
    [
        ({}, 1, [1]),
        ({"end_tokens": 2}, 1, [1, 2]),
        ({"end_tokens": [2, 1]}, 1, [1, 2]),
        ({"end_tokens": 2, "eos_token": None}, 2, [2]),
        ({"end_tokens": [2, 1], "eos_token": None}, 2, [1, 2]),
        ({"end_tokens": None}, 1, [1]),
        ({"end_tokens": [2, -1, VOCABULARY, VOCABULARY - 1]}, 1, [1, 2, VOCABULARY - 1]),
        ({"end_tokens": [-1, 2], "eos_token": None}, 2, [2]),
    ],
)
def test_every_token_that_ends_an_answer_ends_an_action(tmp_path, named, main, ends):
    card = fetch_hub(own_model(tmp_path / "own", **named), tmp_path / "card")
    assert card["eos_token_id"] == main and card["end_token_ids"] == ends
    assert end_tokens(card) == set(ends) and end_tokens({"eos_token_id": 7}) == {7}


def test_without_a_generation_config_the_config_names_the_end_tokens(tmp_path):
    source = own_model(tmp_path / "own", end_tokens=[2, 1])
    (tmp_path / "own" / "generation_config.json").unlink()
    assert fetch_hub(source, tmp_path / "card")["end_token_ids"] == [1, 2]


@pytest.mark.parametrize("none", [None, -1, [-1, VOCABULARY]])
def test_a_model_without_an_end_token_is_refused(tmp_path, none):
    source = own_model(tmp_path / "own", eos_token=None, end_tokens=none)
    with pytest.raises(UserError, match="own has no end token, so no program would end: name it as eos_token"):
        fetch_hub(source, tmp_path / "card")
    assert not (tmp_path / "card").exists()


@pytest.mark.parametrize("token", ["<end>", ["<end>"], 1.5])
def test_an_end_token_that_is_no_id_is_one_line(tmp_path, token):
    source = own_model(tmp_path / "own")
    (tmp_path / "own" / "generation_config.json").write_text(json.dumps({"eos_token_id": token}))
    with pytest.raises(UserError, match="own has ('<end>'|1.5) as an end token where its id is expected: write the id"):
        fetch_hub(source, tmp_path / "card")
    assert not (tmp_path / "card").exists()


def test_no_token_stands_behind_a_prompt(tmp_path, monkeypatch):
    fetch_hub(own_model(tmp_path / "own", behind="<end>"), tmp_path / "mine")
    monkeypatch.setattr(language_model, "MODELS", tmp_path)
    _, tokenizer, card = load_model("mine")
    prompt = task_prompt("Balance Scale", 4, 62)
    bare = tokenizer(prompt.prefix, add_special_tokens=False).input_ids
    assert tokenizer(prompt.prefix).input_ids == [2, *bare, 1]
    assert encode_prompt(tokenizer, prompt, card["format"]) == [2, *bare]
    assert front(tokenizer) == [2]


def test_an_action_ends_at_whichever_end_token_comes_first(models):
    _, tokenizer, _ = load_model("tiny-base")
    ids = tokenizer(BODY).input_ids
    assert decode_action(tokenizer, [*ids, 7, *ids, 1], {1, 7}) == BODY
    assert decode_action(tokenizer, [*ids, 1, *ids, 7], {1, 7}) == BODY


def own_tokenizer(tmp_path, monkeypatch, **options):
    fetch_hub(own_model(tmp_path / "own", **options), tmp_path / "mine")
    monkeypatch.setattr(language_model, "MODELS", tmp_path)
    return load_model("mine")[1]


def digits():
    return pre_tokenizers.Digits(individual_digits=True)


def test_a_tokenizer_splits_code_as_its_file_says(tmp_path, monkeypatch):
    whole = own_tokenizer(tmp_path, monkeypatch)
    assert whole.tokenize("12345") == ["12345"]
    split = own_tokenizer(tmp_path, monkeypatch, pre_tokenizer=digits())
    assert split.tokenize("12345") == list("12345")


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer", "CodeLlamaTokenizer"])
def test_a_class_that_splits_code_otherwise_gives_way_to_the_file(tmp_path, monkeypatch, capsys, kind):
    tokenizer = own_tokenizer(tmp_path, monkeypatch, pre_tokenizer=digits(), tokenizer_class=kind)
    assert tokenizer.tokenize("12345") == list("12345") and tokenizer.eos_token_id == 1
    assert load_model("mine")[2]["format"] == CONTINUATION
    (line,) = set(capsys.readouterr().out.splitlines())
    assert line == f"{tmp_path / 'own'}: {kind} splits Python otherwise than tokenizer.json, which is followed"


def test_a_class_that_the_type_of_the_model_brings_gives_way_as_well(tmp_path, monkeypatch):
    own_model(tmp_path / "own", pre_tokenizer=digits())
    path = tmp_path / "own" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "qwen2"}))
    assert type(AutoTokenizer.from_pretrained(tmp_path / "own")).__name__ == "Qwen2Tokenizer"
    fetch_hub(str(tmp_path / "own"), tmp_path / "mine")
    monkeypatch.setattr(language_model, "MODELS", tmp_path)
    assert load_model("mine")[1].backend_tokenizer.pre_tokenizer.pre_tokenize_str("12") == [
        ("1", (0, 1)),
        ("2", (1, 2)),
    ]


@pytest.mark.parametrize(
    ("normalizer", "message"),
    [
        (normalizers.Lowercase(), "'X_2"),
        (normalizers.Replace("\t", " "), r"'\\treturn"),
        (normalizers.Replace("漢", ""), "'漢 and ∀"),
        (normalizers.Strip(), r"'\\n' becomes ''"),
        (normalizers.NFKC(), r"'ﬁ and ²\\n' becomes 'fi and 2\\n'"),
    ],
)
def test_a_tokenizer_that_does_not_give_code_back_is_refused(tmp_path, monkeypatch, normalizer, message):
    with pytest.raises(UserError, match=f"does not give Python code back: {message}") as error:
        own_tokenizer(tmp_path, monkeypatch, normalizer=normalizer)
    assert "\n" not in str(error.value)


def test_a_path_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no model folder at /nowhere/model"):
        fetch_hub("/nowhere/model", tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="check that it is a transformers folder") as caught:
        fetch_hub(str(tmp_path / "empty"), tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_a_model_of_the_hub_is_held_at_one_revision(tmp_path, monkeypatch):
    import huggingface_hub

    own_model(tmp_path / "snapshots" / "abc123")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "snapshots" / "abc123"))
    card = fetch_hub("a/b", tmp_path / "mine")
    assert card["source"] == "a/b" and card["revision"] == "abc123" and len(card["sha256"]) == 64
    monkeypatch.setattr(language_model, "MODELS", tmp_path)
    assert load_model("mine")[2] == check_files("mine", whole=True) == card
    assert fetch_hub(str(tmp_path / "snapshots" / "abc123"), tmp_path / "local")["sha256"] == card["sha256"]


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match="cannot fetch the language model a/b .*check the name and the network") as e:
        fetch_hub("a/b", tmp_path / "m")
    assert "\n" not in str(e.value)
