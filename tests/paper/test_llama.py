"""The layers written out compute what transformers and peft compute, forward and backward."""

import weakref

import pytest
import torch

from etpo_core.errors import UserError
from etpo_paper.model import llama
from etpo_paper.model import networks as networks_module
from etpo_paper.model.batches import Sequences
from etpo_paper.model.networks import ADAPTERS
from etpo_paper.model.output import causal_model

PROMPTS = [(1, 2, 3, 4), (1, 2, 3, 9, 9, 7), (1, 2, 3)]
ACTIONS = [(5, 6), (7,), (8, 9, 10, 11)]


@pytest.fixture(params=[0, 1], ids=["all layers", "last layer"])
def pair(make_agent, monkeypatch, request):
    """Equal networks with adapters that do something, twice: through our layers, and through transformers."""
    ours = make_agent(layers=request.param).networks
    with monkeypatch.context() as patch:
        patch.setattr(llama, "fits", lambda model: False)
        theirs = make_agent(layers=request.param).networks
    for networks in (ours, theirs):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for adapter in ADAPTERS:
                for parameter in networks.parameters(adapter):
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return ours, theirs


@pytest.fixture
def passes(monkeypatch):
    """Grows by one entry for every layer that is run."""
    found, run_layer = [], llama.run_layer
    monkeypatch.setattr(llama, "run_layer", lambda *a: found.append(1) or run_layer(*a))
    return found


@pytest.mark.parametrize("prompts", [PROMPTS, [(4, 5, 6), (7, 8)]], ids=["shared prefix", "nothing shared"])
@pytest.mark.parametrize("role", ["reference", *ADAPTERS])
def test_hidden_states_of_every_role(pair, role, prompts):
    ours, theirs = pair
    sequences = Sequences.of(prompts, ACTIONS[: len(prompts)], "cpu")
    expected = theirs.hidden(role, sequences)
    torch.testing.assert_close(ours.hidden(role, sequences), expected, rtol=1e-5, atol=1e-5)
    if role != "reference":
        assert (expected - theirs.hidden("reference", sequences)).abs().max() > 0.01


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_gradients_of_every_adapter_weight(pair, role):
    sequences = Sequences.of(PROMPTS, ACTIONS, "cpu")
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(len(sequences.tokens), pair[0].head_weight.shape[1], generator=generator)
    for networks in pair:
        (networks.hidden(role, sequences, grad=True) * weight).sum().backward()
    for ours, theirs in zip(*(networks.parameters(role) for networks in pair), strict=True):
        scale = theirs.grad.abs().max()
        assert scale > 0
        torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, rtol=1e-4, atol=1e-5)


def test_layers_computed_again_in_the_backward_pass_have_the_same_gradients(make_agent, passes, monkeypatch):
    sequences = Sequences.of(PROMPTS, ACTIONS, "cpu")

    def gradients():
        networks = make_agent().networks
        with torch.no_grad():  # B is 0 at the start, and with it the gradient of A
            for parameter in networks.parameters("policy"):
                parameter.add_(0.1)
        passes.clear()
        networks.hidden("policy", sequences, grad=True).square().sum().backward()
        return [p.grad for p in networks.parameters("policy")], len(passes) / layers_of(networks)

    kept, once = gradients()
    monkeypatch.setattr(llama, "RECOMPUTE", 0)
    again, twice = gradients()
    assert (once, twice) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def layers_of(networks):
    return causal_model(networks.model).config.num_hidden_layers


def test_weights_in_their_own_precision_are_held_once(make_agent):
    networks = make_agent(layers=1).networks
    same, again = llama.Body(networks.model, torch.float32), llama.Body(networks.model, torch.float32)
    other = llama.Body(networks.model, torch.bfloat16)
    attention = causal_model(networks.model).model.layers[0].self_attn
    assert same.layers[0].qkv.data_ptr() == attention.q_proj.weight.data_ptr()
    expected = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(same.layers[0].qkv, expected)
    for ours, second, rounded in zip(same.layers, again.layers, other.layers, strict=True):
        for name in ("qkv", "out", "gate_up", "down"):
            assert getattr(ours, name).data_ptr() == getattr(second, name).data_ptr(), "joined once, not again"
            assert torch.equal(getattr(ours, name).bfloat16(), getattr(rounded, name))


def test_layers_without_adapters_are_computed_once_for_all_roles(make_agent, passes):
    networks = make_agent(layers=1).networks
    count = layers_of(networks)
    trained = [name for name, p in networks.model.named_parameters() if p.requires_grad]
    assert trained and all(f".layers.{count - 1}." in name for name in trained)
    sequences = Sequences.of(PROMPTS, ACTIONS, "cpu")
    networks.hidden("policy", sequences, grad=True).sum().backward()
    for role in ("reference", *ADAPTERS):
        networks.hidden(role, sequences)
    assert len(passes) == count - 1 + 5
    kept = weakref.ref(sequences)
    del sequences
    assert kept() is None, "what belongs to a batch must not keep it alive"


def test_the_common_states_of_few_batches_are_kept(make_agent, passes, monkeypatch):
    monkeypatch.setattr(networks_module, "KEPT", 2)
    networks = make_agent(layers=1).networks
    batches = [Sequences.of(PROMPTS[:n], ACTIONS[:n], "cpu") for n in (1, 2, 3)]
    first = [networks.hidden("policy", batch) for batch in batches]
    for number, layers in ((1, 1), (2, 1), (0, layers_of(networks))):  # the first batch's states are gone
        passes.clear()
        assert torch.equal(networks.hidden("policy", batches[number]), first[number])
        assert len(passes) == layers


def test_the_norm_and_its_gradient():
    x, weight = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.rand(7)
    weight, leaf = weight.double(), x.clone().requires_grad_()
    torch.testing.assert_close(llama.normed(x, weight, 0.1), torch.nn.functional.rms_norm(x, (7,), weight, 0.1))
    assert torch.autograd.gradcheck(lambda h: llama.normed(h, weight, 0.1), leaf)


def test_how_many_layers_have_adapters(make_agent):
    whole, last = make_agent(layers=0).networks, make_agent(layers=1).networks
    assert llama.Body(whole.model, torch.float32).lowest == 0
    assert llama.Body(make_agent(layers=99).networks.model, torch.float32).lowest == 0
    assert llama.Body(last.model, torch.float32).lowest == layers_of(last) - 1
    assert len(whole.parameters("policy")) == layers_of(whole) * len(last.parameters("policy"))
    with pytest.raises(UserError, match="lora_layers is -1; expected a number of layers"):
        make_agent(layers=-1)


def test_lower_precision_stays_close(pair):
    body = llama.Body(pair[0].model, torch.float32), llama.Body(pair[0].model, torch.bfloat16)
    sequences = Sequences.of(PROMPTS, ACTIONS, "cpu")
    exact, rounded = (b.hidden(sequences, "policy", b.below(sequences)) for b in body)
    assert rounded.dtype == torch.float32
    # Some dozens of roundings of 2^-9 each, in sequence and independent.
    assert (rounded - exact).norm() / exact.norm() < 0.05


def test_other_architectures_run_through_transformers(make_agent, monkeypatch):
    sequences = Sequences.of(PROMPTS, ACTIONS, "cpu")
    reference = make_agent().networks.hidden("reference", sequences)
    monkeypatch.setattr(llama, "fits", lambda model: False)
    agent = make_agent()
    networks = agent.networks
    torch.testing.assert_close(networks.hidden("policy", sequences), reference, rtol=1e-5, atol=1e-5)
    agent.refresh()
    assert agent.decoder_name == "TransformersDecoder"
    graph = networks.hidden("policy", sequences, grad=True).square().sum()
    networks.hidden("critic", sequences, grad=True)  # a change of role in between
    graph.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in networks.parameters("policy"))
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in networks.parameters("critic"))
