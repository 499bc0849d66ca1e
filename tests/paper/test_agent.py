import pytest
import torch

from etpo_paper.environment.prompts import task_prompt
from etpo_paper.methods.common import token_log_prob
from etpo_paper.model import agent as agent_module
from etpo_paper.model.agent import ADAPTERS, Sequences, shared_length
from etpo_paper.model.decoder import LlamaDecoder

PROMPTS, ACTIONS = [(1, 2, 3), (4, 5, 6, 7, 8)], [(9, 10, 11, 12), (13,)]


@pytest.fixture
def sequences():
    return Sequences.pack(PROMPTS, ACTIONS, "cpu")


def test_positions_are_those_that_the_action_tokens_are_drawn_from(sequences):
    assert sequences.tokens.tolist() == [9, 10, 11, 12, 13]
    assert sequences.rows.tolist() == [0, 0, 0, 0, 1]
    assert sequences.columns.tolist() == [2, 3, 4, 5, 4]
    assert sequences.prefix.tolist() == []
    assert sequences.ids.tolist() == [[1, 2, 3, 9, 10, 11, 12], [4, 5, 6, 7, 8, 13, 0]]


def test_what_all_prompts_begin_with_is_held_once():
    packed = Sequences.pack([(1, 2, 3), (1, 2, 4, 5)], [(6,), (7, 8)], "cpu")
    assert packed.prefix.tolist() == [1, 2]
    assert packed.ids.tolist() == [[3, 6, 0, 0], [4, 5, 7, 8]]
    assert packed.columns.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "prompts, shared",
    [([(1, 2, 3)], 2), ([(1, 2, 3)] * 2, 2), ([(1, 2), (1, 2, 3)], 1), ([(1,), (1, 2)], 0), ([(3, 1), (2, 1)], 0)],
)
def test_the_shared_start_leaves_each_prompt_its_last_token(prompts, shared):
    assert shared_length(prompts) == shared


def test_padded_and_flat_are_inverse(sequences):
    values = torch.arange(1.0, 6.0)
    padded = sequences.to_padded(values)
    assert padded.tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    assert sequences.to_flat(padded).tolist() == values.tolist()


def test_equal_sequences_are_held_once():
    # The same action behind another prompt, and another action behind the same prompt, are sequences of their own.
    packed = Sequences.pack([(1, 2), (1, 2), (1, 3), (1, 2)], [(6, 7), (8,), (6, 7), (6, 7)], "cpu")
    assert packed.ids.tolist() == [[2, 6, 7], [2, 8, 0], [3, 6, 7]]
    assert packed.tokens.tolist() == [6, 7, 8, 6, 7] and packed.lengths.tolist() == [2, 1, 2, 2]
    assert packed.copies.tolist() == [0, 1, 2, 3, 4, 0, 1]
    values = packed.each(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert packed.to_padded(values).tolist() == [[1, 2], [3, 0], [4, 5], [1, 2]]
    assert packed.to_flat(packed.to_padded(values)).tolist() == values.tolist()


def test_every_role_starts_at_the_reference_bit_for_bit(make_agent, sequences):
    agent = make_agent()
    reference = agent.hidden("reference", sequences)
    for role in ADAPTERS:
        assert torch.equal(agent.hidden(role, sequences), reference)


def test_in_bfloat16_log_probabilities_and_logits_keep_float32(make_agent, sequences):
    agent = make_agent(precision="bfloat16")
    assert agent.head_weight.dtype == torch.bfloat16 and agent._body.dtype == torch.bfloat16
    hidden = agent.hidden("policy", sequences)
    logits = agent.logits(hidden)
    assert torch.equal(logits, hidden @ make_agent().head_weight.T)
    expected = (hidden @ agent.head_weight.float().T).log_softmax(-1).gather(-1, sequences.tokens[:, None])[:, 0]
    torch.testing.assert_close(token_log_prob(agent, sequences, hidden), expected, rtol=1e-6, atol=1e-6)


def test_padding_does_not_change_a_row(make_agent):
    agent = make_agent()
    both = agent.hidden("reference", Sequences.pack(PROMPTS, ACTIONS, "cpu"))
    alone = agent.hidden("reference", Sequences.pack(PROMPTS[1:], ACTIONS[1:], "cpu"))
    torch.testing.assert_close(both[4:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_a_loss_reaches_its_own_adapter_and_nothing_else(make_agent, sequences, role):
    agent = make_agent()
    graph = agent.hidden(role, sequences, grad=True).square().sum()
    agent.hidden("reference", sequences), agent.hidden("target_critic", sequences)  # role changes in between
    agent.hidden("policy", sequences, grad=True)
    graph.backward()
    got = {n for n, p in agent.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert got and all(f".{role}." in name for name in got)
    # B starts at 0, so the first gradient is all in B; after a step of B, A moves as well.
    assert len(got) == sum(f".{role}." in n and "lora_B" in n for n, _ in agent.model.named_parameters())


def test_training_one_role_leaves_the_others(make_agent, sequences):
    agent = make_agent()
    reference = agent.hidden("reference", sequences)
    with torch.no_grad():
        for parameter in agent.parameters("policy"):
            parameter.add_(0.05)
    assert not torch.allclose(agent.hidden("policy", sequences), reference, atol=1e-3)
    for role in ("reference", "critic", "target_critic"):
        assert torch.equal(agent.hidden(role, sequences), reference)


def test_the_target_critic_follows_by_polyak_averaging(make_agent):
    agent = make_agent()
    with torch.no_grad():
        for parameter in agent.parameters("critic"):
            parameter.add_(1.0)
        agent.value_heads["critic"].weight.fill_(2.0)
    start = [p.clone() for p in agent.parameters("target_critic")]
    agent.track(("critic", "target_critic"), 0.75)
    for old, new in zip(start, agent.parameters("target_critic"), strict=True):
        torch.testing.assert_close(new, old + 0.25, rtol=1e-6, atol=1e-6)
    assert torch.all(agent.value_heads["target_critic"].weight == 0.5)


def test_critic_and_target_start_equal(make_agent):
    agent = make_agent(seed=5)
    for a, b in zip(agent.parameters("critic"), agent.parameters("target_critic"), strict=True):
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
    monkeypatch.setattr(agent.model, "set_adapter", lambda name: pytest.fail("the decoder has its own weights"))
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
        for parameter in agent.parameters("policy"):
            parameter.add_(0.05)
    other.set_state(agent.get_state())
    for role in ADAPTERS:
        assert torch.equal(agent.hidden(role, sequences), other.hidden(role, sequences))


def test_saved_policy_is_a_plain_peft_adapter(make_agent, sequences, tmp_path, tiny_language_model):
    import copy

    from peft import PeftModel

    agent = make_agent()
    with torch.no_grad():
        for parameter in agent.parameters("policy"):
            parameter.add_(0.05)
    agent.save_policy(tmp_path / "policy")
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny_language_model[0]), tmp_path / "policy")
    hidden = loaded.get_base_model().model(sequences.ids).last_hidden_state
    expected = agent.hidden("policy", sequences)
    torch.testing.assert_close(hidden[sequences.rows, sequences.columns], expected, rtol=1e-5, atol=1e-5)


def test_an_agent_without_adapters_refuses_trained_roles(make_agent, sequences):
    agent = make_agent(rank=None)
    agent.hidden("reference", sequences)
    with pytest.raises(ValueError, match="without adapters"):
        agent.hidden("critic", sequences)
