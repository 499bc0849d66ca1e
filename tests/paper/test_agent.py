import json
import os
import subprocess
import sys

import pytest
import torch

from etpo_core.interfaces import Transition
from etpo_paper.base import paths
from etpo_paper.environment.prompts import task_prompt
from etpo_paper.model import agent as agent_module
from etpo_paper.model.batches import LanguageBatch, Sequences
from etpo_paper.model.decoder import LlamaDecoder
from etpo_paper.model.networks import ADAPTERS

PROMPTS, ACTIONS = [(1, 2, 3), (4, 5, 6, 7, 8)], [(9, 10, 11, 12), (13,)]


@pytest.fixture
def sequences():
    return Sequences.of(PROMPTS, ACTIONS, "cpu")


def test_every_role_starts_at_the_reference_bit_for_bit(make_agent, sequences):
    agent = make_agent()
    reference = agent.networks.hidden("reference", sequences)
    for role in ADAPTERS:
        assert torch.equal(agent.networks.hidden(role, sequences), reference)


def test_in_bfloat16_log_probabilities_and_logits_keep_float32(make_agent, sequences):
    agent = make_agent(precision="bfloat16")
    assert agent.networks.head_weight.dtype == torch.bfloat16 and agent.networks._body.dtype == torch.bfloat16
    hidden = agent.networks.hidden("policy", sequences)
    logits = agent.networks.logits(hidden)
    assert torch.equal(logits, hidden @ make_agent().networks.head_weight.T)
    expected = (
        (hidden @ agent.networks.head_weight.float().T).log_softmax(-1).gather(-1, sequences.tokens[:, None])[:, 0]
    )
    pairs = zip(PROMPTS, ACTIONS, strict=True)
    batch = LanguageBatch.of([Transition(p, a, (0.0,) * len(a), 0.0, True, None) for p, a in pairs], "cpu")
    found = batch.flat(agent.networks.log_prob(batch, "policy"))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_padding_does_not_change_a_row(make_agent):
    agent = make_agent()
    both = agent.networks.hidden("reference", Sequences.of(PROMPTS, ACTIONS, "cpu"))
    alone = agent.networks.hidden("reference", Sequences.of(PROMPTS[1:], ACTIONS[1:], "cpu"))
    torch.testing.assert_close(both[4:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_a_loss_reaches_its_own_adapter_and_nothing_else(make_agent, sequences, role):
    agent = make_agent()
    graph = agent.networks.hidden(role, sequences, grad=True).square().sum()
    (
        agent.networks.hidden("reference", sequences),
        agent.networks.hidden("target_critic", sequences),
    )  # role changes in between
    agent.networks.hidden("policy", sequences, grad=True)
    graph.backward()
    got = {n for n, p in agent.networks.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert got and all(f".{role}." in name for name in got)
    # B starts at 0, so the first gradient is all in B; after a step of B, A moves as well.
    assert len(got) == sum(f".{role}." in n and "lora_B" in n for n, _ in agent.networks.model.named_parameters())


def test_training_one_role_leaves_the_others(make_agent, sequences):
    agent = make_agent()
    reference = agent.networks.hidden("reference", sequences)
    with torch.no_grad():
        for parameter in agent.networks.parameters("policy"):
            parameter.add_(0.05)
    assert not torch.allclose(agent.networks.hidden("policy", sequences), reference, atol=1e-3)
    for role in ("reference", "critic", "target_critic"):
        assert torch.equal(agent.networks.hidden(role, sequences), reference)


def test_the_target_critic_follows_by_polyak_averaging(make_agent):
    networks = make_agent().networks
    with torch.no_grad():
        for parameter in networks.parameters("critic"):
            parameter.add_(1.0)
    start = [p.clone() for p in networks.parameters("target_critic")]
    networks.polyak_update("critic", "target_critic", 0.75)
    for old, new in zip(start, networks.parameters("target_critic"), strict=True):
        torch.testing.assert_close(new, old + 0.25, rtol=1e-6, atol=1e-6)


def test_states_of_the_reference_are_computed_once_for_the_batches_that_live(make_agent, monkeypatch):
    networks = make_agent().networks
    batches = [Sequences.of(PROMPTS[:1], ACTIONS[:1], "cpu") for _ in range(10)]
    for sequences in batches:
        networks.hidden("reference", sequences)
    computed, below = [], networks._body.hidden
    monkeypatch.setattr(networks._body, "hidden", lambda *a: computed.append(a) or below(*a))
    networks.hidden("reference", batches[-1])
    assert computed == [], "the last batch's states are still there"
    networks.hidden("reference", batches[0])
    assert len(computed) == 1, "memory is bounded, so the first batch's are not"


def test_critic_and_target_start_equal(make_agent):
    agent = make_agent(seed=5)
    for a, b in zip(agent.networks.parameters("critic"), agent.networks.parameters("target_critic"), strict=True):
        assert torch.equal(a, b)


def test_act_returns_the_sampled_ids_and_their_text(make_agent):
    agent = make_agent()
    prompt = task_prompt("Toy", 3, 20)
    action, *_ = agent.act([prompt] * 2, max_new_tokens=8, generator=torch.Generator().manual_seed(0))
    assert action.token_count == len(action.tokens) == len(action.log_probs) <= 8
    assert isinstance(action.body, str)
    again, *_ = agent.act([prompt] * 2, max_new_tokens=8, generator=torch.Generator().manual_seed(0))
    # Guessed now from what was written before, two tokens may be computed in one pass: the same but for rounding.
    assert again.tokens == action.tokens and again.log_probs == pytest.approx(action.log_probs, abs=1e-5)


def test_the_text_of_an_action_is_told_as_it_ends(make_agent):
    agent, told = make_agent(), []
    prompts = [task_prompt("Toy", 3, 20)] * 4
    generator = torch.Generator().manual_seed(0)
    actions = agent.act(prompts, max_new_tokens=8, generator=generator, ended=told.append)
    assert sorted(told) == sorted(action.body for action in actions)


def test_acting_switches_no_adapter_and_tokenises_a_state_once(make_agent, monkeypatch):
    agent = make_agent()
    seen, loads = [], []
    encode, load = agent_module.encode_prompt, LlamaDecoder.load
    monkeypatch.setattr(agent_module, "encode_prompt", lambda t, p, f: seen.append(p) or encode(t, p, f))
    monkeypatch.setattr(LlamaDecoder, "load", lambda self, adapter: loads.append(adapter) or load(self, adapter))
    monkeypatch.setattr(
        agent.networks.model, "set_adapter", lambda name: pytest.fail("the decoder has its own weights")
    )
    prompt, other = task_prompt("Toy", 3, 20), task_prompt("Other", 3, 20)
    agent.act([prompt, other, prompt], max_new_tokens=2, generator=torch.Generator().manual_seed(0))
    agent.encode(prompt)
    assert seen == [prompt, other]
    assert loads == ["policy"]
    agent.refresh()
    assert loads == ["policy"] * 2


def test_state_round_trip(make_agent, sequences):
    agent, other = make_agent(seed=1), make_agent(seed=2)
    with torch.no_grad():
        for parameter in agent.networks.parameters("policy"):
            parameter.add_(0.05)
    other.set_state(agent.get_state())
    for role in ADAPTERS:
        assert torch.equal(agent.networks.hidden(role, sequences), other.networks.hidden(role, sequences))


def test_saved_policy_is_a_plain_peft_adapter(make_agent, sequences, tmp_path, tiny_language_model):
    import copy

    from peft import PeftModel

    agent = make_agent()
    with torch.no_grad():
        for parameter in agent.networks.parameters("policy"):
            parameter.add_(0.05)
    agent.save_policy(tmp_path / "policy")
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny_language_model[0]), tmp_path / "policy")
    paths = [sequences.ids[path][None] for path in sequences.paths]
    hidden = torch.cat([loaded.get_base_model().model(ids).last_hidden_state[0] for ids in paths])
    expected = agent.networks.hidden("policy", sequences)
    torch.testing.assert_close(hidden[sequences.places], expected, rtol=1e-5, atol=1e-5)


SAVE = """
import sys
from pathlib import Path
from etpo_paper.model import loading
from etpo_paper.model.agent import Agent
loading.MODELS = Path(sys.argv[1])
options = {"rank": 4, "alpha": 8, "layers": 1, "seed": 0, "precision": "float32", "momentum": 0.9, "grad_norm": 10.0}
agent = Agent(*loading.load_model("small"), **options, micro_batch_tokens=512)
agent.save_policy(Path(sys.argv[2]))
"""


def test_a_saved_policy_names_no_place_and_lists_its_modules_in_order(make_agent, tmp_path):
    make_agent().save_policy(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-base" and len(config["target_modules"]) > 1
    assert config["target_modules"] == sorted(config["target_modules"])


@pytest.mark.nightly  # two processes that import all of transformers
def test_saved_policies_are_the_same_bytes_in_every_process_and_name_no_place(tmp_path):
    from etpo_paper.model.loading import build_tiny

    saved = []
    for seed in "01":
        place, environment = tmp_path / f"place{seed}", os.environ | {"PYTHONHASHSEED": seed}
        build_tiny(place / "small", ["def build_model(x_train, y_train):\n    return model"])
        command = [sys.executable, "-c", SAVE, place, place / "policy"]
        subprocess.run(command, cwd=paths.ROOT, env=environment, check=True, capture_output=True)
        saved.append({file.name: file.read_bytes() for file in (place / "policy").iterdir()})
    assert saved[0] == saved[1] and saved[0].keys() == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(saved[0]["adapter_config.json"])
    assert config["base_model_name_or_path"] == "small" and config["target_modules"] == sorted(config["target_modules"])


def test_an_agent_without_adapters_refuses_trained_roles(make_agent, sequences):
    agent = make_agent(rank=None)
    agent.networks.hidden("reference", sequences)
    with pytest.raises(ValueError, match="without adapters"):
        agent.networks.hidden("critic", sequences)
