"""The layers written out compute what transformers and peft compute, forward and backward."""

import pytest
import torch

from etpo_core.errors import UserError
from etpo_paper.model import agent as agent_module
from etpo_paper.model import llama
from etpo_paper.model.agent import ADAPTERS, Sequences

PROMPTS = [(1, 2, 3, 4), (1, 2, 3, 9, 9, 7), (1, 2, 3)]
ACTIONS = [(5, 6), (7,), (8, 9, 10, 11)]


@pytest.fixture(params=[0, 1], ids=["all layers", "last layer"])
def agents(make_agent, request):
    """Two equal agents with adapters that do something: ours, and one that runs transformers."""
    ours, theirs = make_agent(layers=request.param), make_agent(layers=request.param)
    theirs._body = None
    for agent in (ours, theirs):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for adapter in ADAPTERS:
                for parameter in agent.parameters(adapter):
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return ours, theirs


@pytest.mark.parametrize("prompts", [PROMPTS, [(4, 5, 6), (7, 8)]], ids=["shared prefix", "nothing shared"])
@pytest.mark.parametrize("role", ["reference", *ADAPTERS])
def test_hidden_states_of_every_role(agents, role, prompts):
    ours, theirs = agents
    sequences = Sequences.pack(prompts, ACTIONS[: len(prompts)], "cpu")
    expected = theirs.hidden(role, sequences)
    torch.testing.assert_close(ours.hidden(role, sequences), expected, rtol=1e-5, atol=1e-5)
    if role != "reference":
        assert (expected - theirs.hidden("reference", sequences)).abs().max() > 0.01


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_gradients_of_every_adapter_weight(agents, role):
    sequences = Sequences.pack(PROMPTS, ACTIONS, "cpu")
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(len(sequences.tokens), agents[0].head_weight.shape[1], generator=generator)
    for agent in agents:
        (agent.hidden(role, sequences, grad=True) * weight).sum().backward()
    for ours, theirs in zip(*(agent.parameters(role) for agent in agents), strict=True):
        scale = theirs.grad.abs().max()
        assert scale > 0
        torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, rtol=1e-4, atol=1e-5)


def test_layers_computed_again_on_the_way_back_have_the_same_gradients(make_agent, monkeypatch):
    sequences, through = Sequences.pack(PROMPTS, ACTIONS, "cpu"), []
    run_layer = llama.run_layer
    monkeypatch.setattr(llama, "run_layer", lambda *a: through.append(1) or run_layer(*a))

    def gradients():
        agent = make_agent()
        with torch.no_grad():  # B is 0 at the start, and with it the gradient of A
            for parameter in agent.parameters("policy"):
                parameter.add_(0.1)
        through.clear()
        agent.hidden("policy", sequences, grad=True).square().sum().backward()
        return [p.grad for p in agent.parameters("policy")], len(through) / len(agent._body.layers)

    kept, once = gradients()
    monkeypatch.setattr(llama, "RECOMPUTE", 0)
    again, twice = gradients()
    assert (once, twice) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_weights_in_their_own_precision_are_held_once(make_agent):
    agent = make_agent(layers=1)
    agent.refresh()
    attention = agent._causal.model.layers[0].self_attn
    assert agent._body.layers[0].qkv.data_ptr() == attention.q_proj.weight.data_ptr()
    expected = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(agent._body.layers[0].qkv, expected)
    same, other = llama.Body(agent.model, torch.float32), llama.Body(agent.model, torch.bfloat16)
    for ours, second, rounded in zip(agent._body.layers, same.layers, other.layers, strict=True):
        for name in ("qkv", "out", "gate_up", "down"):
            assert getattr(ours, name).data_ptr() == getattr(second, name).data_ptr(), "joined once, not again"
            assert torch.equal(getattr(ours, name).bfloat16(), getattr(rounded, name))
    # A layer with an adapter has a merged copy for the decoder, and the frozen weights are as they were.
    before = agent._body.layers[-1].qkv.clone()
    with torch.no_grad():
        for parameter in agent.parameters("policy"):
            parameter.add_(0.1)
    merged = list(llama.layers(agent.model, torch.float32, "policy"))[-1].qkv
    assert not torch.equal(merged, before) and torch.equal(agent._body.layers[-1].qkv, before)


def test_layers_without_adapters_are_computed_once_for_all_roles(make_agent, monkeypatch):
    agent, through = make_agent(layers=1), []
    count = len(agent._body.layers)
    assert agent._body.lowest == count - 1
    trained = [name for name, p in agent.model.named_parameters() if p.requires_grad]
    assert trained and all(f".layers.{count - 1}." in name for name in trained)
    run_layer = llama.run_layer
    monkeypatch.setattr(llama, "run_layer", lambda *a: through.append(1) or run_layer(*a))
    sequences = Sequences.pack(PROMPTS, ACTIONS, "cpu")
    agent.hidden("policy", sequences, grad=True).sum().backward()
    for role in ("reference", *ADAPTERS):
        agent.hidden(role, sequences)
    assert len(through) == count - 1 + 5
    assert len(agent._below) == 1
    del sequences
    assert len(agent._below) == 0, "what belongs to a batch outlives it"


def test_the_common_states_of_few_batches_are_kept(make_agent, monkeypatch):
    monkeypatch.setattr(agent_module, "BATCHES_BELOW", 2)
    agent = make_agent(layers=1)
    batches = [Sequences.pack(PROMPTS[:n], ACTIONS[:n], "cpu") for n in (1, 2, 3)]
    first = [agent.hidden("policy", batch) for batch in batches]
    assert [batch in agent._below for batch in batches] == [False, True, True]
    assert all(torch.equal(agent.hidden("policy", b), h) for b, h in zip(batches, first, strict=True))


def test_the_norm_and_its_gradient():
    x, weight = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.rand(7)
    weight, leaf = weight.double(), x.clone().requires_grad_()
    torch.testing.assert_close(llama.normed(x, weight, 0.1), torch.nn.functional.rms_norm(x, (7,), weight, 0.1))
    assert torch.autograd.gradcheck(lambda h: llama.normed(h, weight, 0.1), leaf)


def test_how_many_layers_have_adapters(make_agent):
    whole = make_agent(layers=0)
    assert whole._body.lowest == make_agent(layers=99)._body.lowest == 0
    assert len(whole.parameters("policy")) == len(whole._body.layers) * len(make_agent(layers=1).parameters("policy"))
    with pytest.raises(UserError, match="lora_layers is -1; expected a number of layers"):
        make_agent(layers=-1)


def test_lower_precision_stays_close(agents, tiny_language_model):
    ours, _ = agents
    sequences = Sequences.pack(PROMPTS, ACTIONS, "cpu")
    exact = ours.hidden("policy", sequences)
    ours._body = llama.Body(ours.model, torch.bfloat16)
    rounded = ours.hidden("policy", sequences)
    assert rounded.dtype == torch.float32
    # Some dozens of roundings of 2^-9 each, in sequence and independent.
    assert (rounded - exact).norm() / exact.norm() < 0.05


def test_other_architectures_run_through_transformers(make_agent, monkeypatch):
    monkeypatch.setattr(llama, "fits", lambda model: False)
    agent = make_agent()
    sequences = Sequences.pack(PROMPTS, ACTIONS, "cpu")
    reference = make_agent().hidden("reference", sequences)
    torch.testing.assert_close(agent.hidden("policy", sequences), reference, rtol=1e-5, atol=1e-5)
    agent.refresh()
    assert agent.decoder_name == "TransformersDecoder"
    graph = agent.hidden("policy", sequences, grad=True).square().sum()
    agent.hidden("critic", sequences, grad=True)  # a change of role in between
    graph.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in agent.parameters("policy"))
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in agent.parameters("critic"))
