"""A language model of the user's own, by path or by its name on the hub."""

import itertools
import json
import re
import shutil

import huggingface_hub
import pytest
import torch
from own_models import CHAT, END, VOCABULARY, hub, write_model

from etpo_core.errors import UserError
from etpo_core.interfaces import Transition
from etpo_paper.environment.prompts import reflection_prompt, task_prompt
from etpo_paper.model import loading, own
from etpo_paper.model.agent import Agent
from etpo_paper.model.answers import SYSTEM
from etpo_paper.model.decoder import LlamaDecoder, TransformersDecoder
from etpo_paper.model.networks import ADAPTERS

OURS = ("smollm2", "tiny")
PROMPTS = [task_prompt("Toy", 3, 20), reflection_prompt("Balance Scale", 4, 62, "    model = 1\n", "NameError: x")]
BODY = "    from sklearn.svm import SVC\n    model = SVC(probability=True)\n    model.fit(x_train, y_train)\n"
OF_CHAT, OF_BASE = CHAT.replace("END", "<end>"), CHAT.replace("END", "<turn>")


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The folder of the cards."""
    monkeypatch.setattr(loading, "MODELS", tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function that returns the folder of a model, which is made once and must stay as it is."""
    place, known = tmp_path_factory.mktemp("made"), {}

    def make(family="qwen2", chat_template=None):
        key = family, chat_template
        if key not in known:
            known[key] = write_model(place / str(len(known)), family, chat_template)
        return known[key]

    return make


def agent_of(source, targets=None, layers=1):
    model, tokenizer, card = loading.load_model(own.register(str(source), targets, OURS))
    options = {"rank": 4, "alpha": 8, "layers": layers, "seed": 0, "precision": "float32", "momentum": 0.9}
    return Agent(model, tokenizer, card, **options, grad_norm=10.0, micro_batch_tokens=512)


def perturbed(agent):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in ADAPTERS:
            for parameter in agent.networks.parameters(adapter):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    agent.refresh()
    return agent


# What is written, and what is trained ------------------------------------------------------------------------------

FAST = ("llama", "mistral")
SLOW = ("mistral with a window", "qwen2", "qwen3", "gemma", "gemma3", "gpt2", "neox", "phi3")
NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in (*FAST[1:], *SLOW) if name != "gpt2"]


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", *NIGHTLY])
def test_log_probabilities_are_those_of_a_plain_pass(made, models, family):
    agent = perturbed(agent_of(made(family)))
    assert (
        agent.decoder_name
        == agent.card["decoder"]
        == (LlamaDecoder if family in FAST else TransformersDecoder).__name__
    )
    prompts = PROMPTS * 2
    actions = agent.act(prompts, max_new_tokens=20, generator=torch.Generator().manual_seed(0))
    ids = [agent.encode(prompt) for prompt in prompts]
    with agent.networks.switched_to("policy"):
        whole = [
            agent.networks.model(input_ids=torch.tensor([[*i, *a.tokens]])) for i, a in zip(ids, actions, strict=True)
        ]
    batches = agent.networks.batches(
        [Transition(i, a.tokens, a.log_probs, 0.0, True, None) for i, a in zip(ids, actions, strict=True)]
    )
    trained = {}
    for batch in batches:
        for t, row in zip(batch.transitions, agent.networks.log_prob(batch, "policy"), strict=True):
            trained[t.prompt, t.action] = row[: len(t.action)]
    for i, action, out in zip(ids, actions, whole, strict=True):
        behind = out.logits[0, len(i) - 1 : -1].double().log_softmax(-1)
        expected = behind.gather(1, torch.tensor(action.tokens)[:, None])[:, 0].float()
        # Logits are sums of some hundred products of size 1 in float32.
        torch.testing.assert_close(torch.tensor(action.log_probs), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(trained[i, action.tokens], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family, targets", [("llama", "q_proj,v_proj"), ("gpt2", "c_attn")])
def test_named_products_alone_have_adapters(made, models, family, targets):
    agent = agent_of(made(family), targets, layers=0)
    adapted = {
        name.split(".lora_")[0].rpartition(".")[2]
        for name, _ in agent.networks.model.named_parameters()
        if "lora_" in name
    }
    assert adapted == set(targets.split(","))
    networks, (prompt, *_) = perturbed(agent).networks, PROMPTS
    [batch] = networks.batches([Transition(agent.encode(prompt), (5, 6, 7), (0.0,) * 3, 0.0, True, None)])
    loss = networks.log_prob(batch, "policy", grad=True).sum()
    loss.backward()
    ours = [p.grad.clone() for p in networks.parameters("policy")]
    with networks.switched_to("policy"):
        networks.model.zero_grad()
        logits = networks.model(input_ids=torch.tensor([[*agent.encode(prompt), 5, 6, 7]])).logits[0, -4:-1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor([[5], [6], [7]])).sum()
        expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for mine, parameter in zip(ours, networks.parameters("policy"), strict=True):
        assert mine.abs().max() > 0
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-5)


# How it is asked ---------------------------------------------------------------------------------------------------


def test_a_base_model_goes_on_from_the_code(made, models, capsys):
    source = made("gpt2")
    card = loading.read_card(own.register(str(source), None, OURS))
    assert card["format"] == loading.CONTINUATION and card["stops"] and card["context"] == 8192
    line = f"{source}: gpt2, through transformers; goes on from the code, because it has no chat template\n"
    assert capsys.readouterr().out == line and card["used"] in line and card["used"] in card["stand_in"]
    agent = agent_of(source)
    assert agent.tokenizer.decode(agent.encode(PROMPTS[0])) == PROMPTS[0].prefix


def test_a_chat_model_is_asked_in_its_template(made, models, capsys):
    agent = agent_of(made("llama", OF_CHAT))
    why = "that ends a turn with <end>, as the model does an answer"
    assert capsys.readouterr().out.endswith(f"llama, on the fast path; asked in its chat template, because {why}\n")
    text = agent.tokenizer.decode(agent.encode(PROMPTS[0]))
    assert text.startswith(f"<turn>user\n{SYSTEM}\n\n{PROMPTS[0].prefix}") and text.endswith("<turn>assistant\n")
    assert text.count("<turn>") == 2


@pytest.mark.parametrize(
    "template, why",
    [
        (OF_BASE, "does not end an answer as its chat template ends a turn: a base model"),
        ("{{ raise_exception('no roles') }}", r"its chat template fails \(TemplateError: no roles\)"),
        ("{% if %}", r"its chat template fails \(TemplateSyntaxError: "),
    ],
)
def test_a_template_does_not_make_a_chat_model(made, models, capsys, template, why):
    assert loading.read_card(own.register(str(made("llama", template)), None, OURS))["format"] == loading.CONTINUATION
    assert re.search(f"goes on from the code, because .*{why}", capsys.readouterr().out)


# Where a program ends ----------------------------------------------------------------------------------------------


class Scripted:
    """A decoder that writes the given tokens, over and over, in every row."""

    takes_back = False

    def __init__(self, tokens):
        self.tokens = itertools.cycle(tokens)

    def _logits(self, rows):
        logits = torch.full((rows, 2000), -100.0)
        logits[:, next(self.tokens)] = 100.0
        return logits

    def prefill(self, prompts):
        return self._logits(len(prompts))

    def step(self, tokens):
        return self._logits(len(tokens))

    def keep(self, rows):
        pass


def written(agent, text, longest=300):
    agent._decoder = Scripted(agent.tokenizer(text, add_special_tokens=False).input_ids)
    [action] = agent.act(PROMPTS[:1], max_new_tokens=longest, generator=torch.Generator())
    return action


def test_a_program_ends_without_an_end_token(made, models):
    agent = agent_of(made("gpt2"))
    action = written(agent, BODY + "\n\ndef main():\n")
    assert action.body == BODY + "\n\n" and action.finished and END not in action.tokens
    text = agent.tokenizer.decode(action.tokens)
    assert re.fullmatch(re.escape(BODY) + "\n\nd(ef?)?", text), "it ends with the token that has shown it"
    assert len(action.log_probs) == len(action.tokens) and agent.pieces(action.tokens)[-1] != ""
    cut = written(agent, BODY + "\n\ndef main():\n", longest=len(action.tokens) - 1)
    assert cut.tokens == action.tokens[:-1] and not cut.finished and cut.body == BODY + "\n\n"
    ends = written(agent, BODY + "<end>")
    assert ends.body == BODY and ends.finished and ends.tokens[-1] == END
    assert written(agent, BODY + "    return model\n    model = 1\n").body == BODY + "    return model\n"


def test_a_token_may_hold_the_end_of_a_program_and_more(made, models):
    agent = agent_of(made("gpt2"))
    agent.tokenizer.add_tokens([")\n\n\ndef"])
    action = written(agent, BODY + "\n\ndef main():\n")
    assert agent.pieces(action.tokens)[-1] == ")\n\n\ndef" and action.tokens[-1] == VOCABULARY
    assert action.body == BODY + "\n\n" and action.finished


def test_a_chat_model_answers_with_a_block_of_code(made, models):
    agent, bodies = agent_of(made("llama", OF_CHAT)), []
    agent._decoder = Scripted(
        agent.tokenizer(f"Here:\n```python\n{BODY}```\nIt fits.", add_special_tokens=False).input_ids
    )
    [action] = agent.act(PROMPTS[:1], max_new_tokens=300, generator=torch.Generator(), ended=bodies.append)
    assert action.body == BODY == bodies[0] and action.finished
    assert agent.tokenizer.decode(action.tokens).startswith(f"Here:\n```python\n{BODY}```\n")
    assert written(agent, f"{BODY}<end>").body == BODY


def test_our_models_end_by_their_end_token_alone(make_agent):
    agent = make_agent()
    assert agent._end is None
    text = BODY + "\n\ndef main():\n"
    action = written(agent, text, longest=len(agent.tokenizer(text).input_ids))
    assert action.body == text and not action.finished


# What cannot be used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, line",
    [
        ("t5", "is not a causal language model of transformers, but t5"),
        ("mamba", "MambaForCausalLM takes no LoRA adapters"),
        ("gemma2", "Gemma2ForCausalLM cannot be used: .*final_logit_softcapping"),
        ("phi", "PhiForCausalLM cannot be used: .*a head bias"),
    ],
)
def test_a_model_of_another_kind_is_one_line(made, models, family, line):
    with pytest.raises(UserError, match=line) as caught:
        agent_of(made(family))
    assert "\n" not in str(caught.value)


def edited(place, file, **changes):
    path = place / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "spoil, line",
    [
        (lambda place: (place / "model.safetensors").unlink(), "holds no weights: expected files"),
        (lambda place: (place / "config.json").unlink(), "check that it is a transformers folder"),
        (lambda place: edited(place, "config.json", model_type="mine"), "check that it is a transformers folder"),
        (lambda place: edited(place, "config.json", vocab_size=200), "tokenizer has a token .* the two do not belong"),
        (
            lambda place: edited(place, "config.json", quantization_config={"quant_method": "gptq"}),
            r"is quantised \(gptq\)",
        ),
        (lambda place: (place / "model.safetensors").write_bytes(b"12345678"), "cannot load the language model"),
        (lambda place: edited(place, "config.json", max_position_embeddings=99), "reads at most 99 tokens at once"),
    ],
)
def test_a_damaged_model_is_one_line(made, models, tmp_path, spoil, line):
    place = tmp_path / "spoilt"
    shutil.copytree(made(), place)
    spoil(place)
    with pytest.raises(UserError, match=line) as caught:
        agent_of(place).act(PROMPTS, max_new_tokens=20, generator=torch.Generator())
    assert "\n" not in str(caught.value)


def test_what_a_model_need_not_have(made, models, tmp_path):
    place = tmp_path / "bare"
    shutil.copytree(made("gpt2"), place)
    (place / "generation_config.json").unlink()
    edited(place, "tokenizer_config.json", pad_token=None)
    edited(place, "config.json", pad_token_id=None)
    agent = agent_of(place)
    assert agent.tokenizer.pad_token is None and loading.end_tokens(agent.card) == {END}
    assert len(agent.act(PROMPTS, max_new_tokens=3, generator=torch.Generator())) == 2


def test_what_decoding_does_not_agree_with_is_one_line(made, models, monkeypatch):
    agent, step = agent_of(made()), TransformersDecoder.step
    monkeypatch.setattr(TransformersDecoder, "step", lambda self, tokens: step(self, tokens).roll(1, -1))
    with pytest.raises(UserError, match="Qwen2ForCausalLM says something else token by token"):
        agent.refresh()
    monkeypatch.setattr(TransformersDecoder, "step", lambda self, tokens: tokens.shape)
    with pytest.raises(UserError, match=r"Qwen2ForCausalLM cannot write token by token .*\(AttributeError: "):
        agent.refresh()


@pytest.mark.parametrize("source", ["gpt", "no/such/folder", "/no/such/folder", "./gone"])
def test_an_unknown_model_is_one_line(models, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match="unknown model 'gpt'; expected smollm2, tiny, a folder|no model folder at"
    ) as e:
        own.register(source, None, OURS)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "targets, line",
    [
        ("q_proj,", "expected names with commas"),
        ("q_proj,c_attn", "Qwen2ForCausalLM have no linear product called 'c_attn'; choose among down_proj, gate_proj"),
    ],
)
def test_products_that_are_not_there_are_one_line(made, models, targets, line):
    with pytest.raises(UserError, match=line) as caught:
        agent_of(made(), targets)
    assert "\n" not in str(caught.value)


# Where it comes from -----------------------------------------------------------------------------------------------


def test_the_users_folder_stays_as_it_is_and_a_change_is_noticed(made, models, tmp_path):
    place = tmp_path / "mine"
    shutil.copytree(made(), place)
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in place.iterdir()}
    agent_of(place)
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in place.iterdir()} == before
    name = own.register(str(place), None, OURS)
    first = loading.read_card(name)
    (place / "model.safetensors").write_bytes(before["model.safetensors"][1][:-1] + b"\1")
    with pytest.raises(UserError, match="is not the model that .* was made from .*run the same command again"):
        loading.check_files(name)
    assert own.register(str(place), None, OURS) == name
    assert loading.check_files(name)["sha256"] != first["sha256"]
    assert own.register(str(place), "q_proj", OURS) != name, "other adapters, another card"


@pytest.fixture
def of_the_hub(made, tmp_path, monkeypatch):
    """Has the client ask a server of ours, in a cache of its own: the server's requests."""
    with hub({"some/model": made(), "asks/first": None}) as (address, requests):
        for name, value in {
            "ENDPOINT": address,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield requests


def test_a_model_of_the_hub_is_fetched_once(of_the_hub, made, models, monkeypatch, tmp_path):
    card = loading.read_card(name := own.register("some/model", None, OURS))
    assert card["name"] == card["source"] == "some/model" and len(card["revision"]) == 40
    assert card["sha256"] == loading.read_card(own.register(str(made()), None, OURS))["sha256"]
    agent_of("some/model")
    before = len(of_the_hub)
    assert own.register("some/model", None, OURS) == name and len(of_the_hub) == before
    shutil.rmtree(models)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert own.register("some/model", None, OURS) == name and len(of_the_hub) == before
    assert loading.read_card(name) == card


def test_what_the_hub_does_not_give_is_one_line(of_the_hub, models, monkeypatch):
    with pytest.raises(
        UserError, match="cannot fetch the language model no/such .*the hub has no such model"
    ) as unknown:
        own.register("no/such", None, OURS)
    with pytest.raises(UserError, match="asks/first .*accept its licence") as gated:
        own.register("asks/first", None, OURS)
    with pytest.raises(UserError, match="so me/model .*the hub has no such model"):
        own.register("so me/model", None, OURS)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match="some/model .*not in the hub's cache here, and the hub is not reached"
    ) as offline:
        own.register("some/model", None, OURS)
    assert not models.exists()
    assert all("\n" not in str(caught.value) for caught in (unknown, gated, offline))
