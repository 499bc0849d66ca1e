"""Of which models the logits are a product with one matrix, and that all others are refused before they are used."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from etpo_core.errors import UserError
from etpo_paper.measure.perplexity import causal_log_likelihood
from etpo_paper.model.batches import Sequences
from etpo_paper.model.networks import LanguageModelNetworks
from etpo_paper.model.output import output_weight

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.5, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
OF_GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "eos_token_id": 1}
OF_OPT = {"hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4, "vocab_size": 97}
OF_OPT |= {"word_embed_proj_dim": 16, "max_position_embeddings": 64}

FITS = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "Llama with a tied head": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "Qwen 2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(**OF_GPT)),
    "OPT, which calls the decoder and not the body": lambda: OPTForCausalLM(OPTConfig(**OF_OPT)),
    "GPT-J with a bias of 0": lambda: GPTJForCausalLM(GPTJConfig(**OF_GPT, rotary_dim=4)),
    "Gemma 2 without a cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=None)),
}


def with_bias(model):
    torch.nn.init.normal_(model.lm_head.bias, std=0.01)
    return model


REFUSED = {
    "Gemma2ForCausalLM .*final_logit_softcapping 30.0": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)),
    "CohereForCausalLM .*logit_scale 0.0625": lambda: CohereForCausalLM(CohereConfig(**SIZES)),
    "GraniteForCausalLM .*logits_scaling 8": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8)),
    "PhiForCausalLM .*a head bias": lambda: with_bias(PhiForCausalLM(PhiConfig(**SIZES))),
    "GPTJForCausalLM .*a head bias": lambda: with_bias(GPTJForCausalLM(GPTJConfig(**OF_GPT, rotary_dim=4))),
    "BertLMHeadModel .*its head computes something else": lambda: BertLMHeadModel(
        BertConfig(
            **{key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
            is_decoder=True,
        )
    ),
}  # fmt: skip


def networks_of(model, **changes):
    options = {"rank": 2, "alpha": 4, "layers": 0, "seed": 0, "precision": "float32", "momentum": 0.9}
    return LanguageModelNetworks(model, **options | {"grad_norm": 1.0, "micro_batch_tokens": 512} | changes)


@pytest.mark.parametrize("name", FITS)
def test_log_probabilities_are_those_of_the_model_itself(name):
    torch.manual_seed(0)
    model = FITS[name]().eval()
    ids = torch.randint(2, 97, (12,))
    with torch.no_grad():
        expected = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    # logits of at most some tens in float32
    torch.testing.assert_close(causal_log_likelihood(model)(ids, 1), expected, rtol=0, atol=1e-4)
    networks = networks_of(model)
    sequences = Sequences.of([ids[:1].tolist()], [ids[1:].tolist()], "cpu")
    logits = networks.logits(networks.hidden("reference", sequences))
    of_tokens = logits.log_softmax(-1).gather(-1, sequences.tokens[:, None])[:, 0]
    torch.testing.assert_close(of_tokens, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", REFUSED)
def test_a_head_that_does_more_is_refused_wherever_it_would_be_left_out(what, dtype):
    torch.manual_seed(0)
    model = REFUSED[what]().eval().to(dtype)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules="all-linear"))
    for refuses in (
        lambda: output_weight(model),
        lambda: networks_of(model),
        lambda: causal_log_likelihood(model),
        lambda: causal_log_likelihood(adapted),
    ):
        with pytest.raises(UserError, match=f"^{what}") as error:
            refuses()
        assert "\n" not in str(error.value)
    assert not model.base_model._forward_hooks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_wide_vocabulary_and_few_digits_are_no_reason_to_refuse(dtype):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"vocab_size": 20_000, "hidden_size": 64})).to(dtype)
    assert output_weight(model).data_ptr() == model.lm_head.weight.data_ptr()


def test_the_trial_draws_no_random_number_and_changes_no_output():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    ids = torch.arange(5)[None]
    before, state = model(ids).logits, torch.get_rng_state()
    output_weight(model)
    assert torch.equal(model(ids).logits, before) and torch.equal(torch.get_rng_state(), state)


def test_an_adapter_on_the_head_is_refused():
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), LoraConfig(r=2, target_modules=["lm_head"]))
    assert output_weight(model) is not None  # it adds nothing yet
    torch.nn.init.normal_(model.get_base_model().lm_head.lora_B["default"].weight)
    with pytest.raises(UserError, match="LlamaForCausalLM cannot be used: .* times one matrix"):
        output_weight(model)


def test_the_warm_start_refuses_it_before_it_mines_a_corpus(monkeypatch, tmp_path):
    from pipeline import warm_start

    model = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8))
    monkeypatch.setattr(warm_start.paths, "MODELS", tmp_path)
    (tmp_path / "own-base").mkdir()
    (tmp_path / "own-base" / "card.json").write_text("{}")
    monkeypatch.setattr(warm_start.models, "base", lambda name: {})
    monkeypatch.setattr(warm_start, "check_files", lambda name, whole: {})
    monkeypatch.setattr(warm_start, "load_model", lambda name: (model, None, {}))
    monkeypatch.setattr(warm_start, "good_bodies", lambda *_: pytest.fail("a corpus is mined"))
    recipe = {"steps": 1, "batch": 8, "learning_rate": 0.1, "lora_rank": 4, "max_tokens": 9, "seed": 0}
    with pytest.raises(UserError, match="GraniteForCausalLM cannot be used"):
        warm_start.train_start("own", recipe, tmp_path / "start")


@pytest.mark.parametrize("layers", [0, 1])
def test_gpt_2_learns_although_it_has_no_linear_layer(layers):
    networks = networks_of(FITS["GPT-2"]().eval(), layers=layers)
    names = [name for name, _ in networks.model.named_parameters() if ".policy." in name]
    adapted = {name.split(".lora_")[0].removeprefix("base_model.model.transformer.") for name in names}
    products = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert adapted == {f"h.{i}.{product}" for i in range(2)[-layers:] for product in products}
    sequences = Sequences.of([(3, 4)], [(5, 6, 7)], "cpu")
    optimiser = torch.optim.SGD(networks.parameters("policy"), lr=1.0)
    for _ in range(2):
        before = networks.hidden("policy", sequences, grad=True)
        before.square().sum().backward()
        optimiser.step()
    assert not torch.equal(networks.hidden("policy", sequences), before)
    assert torch.equal(networks.hidden("critic", sequences), networks.hidden("reference", sequences))


def test_a_pass_of_the_reference_changes_what_learns_in_no_way():
    networks = networks_of(FITS["GPT-2"]().eval(), layers=0)
    sequences = Sequences.of([(3, 4)], [(5, 6, 7)], "cpu")
    critic = networks.hidden("critic", sequences, grad=True)
    networks.hidden("reference", sequences)  # peft would freeze all adapters but the active one
    critic.square().sum().backward()
    for role, learns in {"policy": True, "critic": True, "target_critic": False}.items():
        assert {p.requires_grad for p in networks.parameters(role)} == {learns}
    assert any(p.grad is not None and p.grad.any() for p in networks.parameters("critic"))


def test_a_model_without_linear_products_is_refused():
    model = FITS["Llama"]()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(UserError, match="LlamaForCausalLM cannot be trained: its layers hold no linear product"):
        networks_of(model)
