import copy

import pytest
import torch

from etpo_core.decoder import LlamaDecoder, TransformersDecoder, draw, next_token_distribution, sample


@pytest.fixture
def decoders(tiny_language_model):
    model = tiny_language_model[0]
    return LlamaDecoder(model, torch.float32), TransformersDecoder(model)


PROMPTS = [[1, 2, 3, 4, 5], [7, 8], [9, 10, 11, 12, 13, 14, 15]]


@torch.inference_mode()
def test_bare_decoder_computes_what_transformers_computes(decoders):
    ours, theirs = decoders
    a, b = ours.prefill(PROMPTS, 4), theirs.prefill(PROMPTS, 4)
    for step in range(3):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        token = torch.tensor([3, 17, 29])[: len(a)]
        a, b = ours.step(token), theirs.step(token)
        if step == 0:
            rows = torch.tensor([0, 2])
            ours.keep(rows), theirs.keep(rows)
            a, b = a[rows], b[rows]


@torch.inference_mode()
def test_a_shared_prompt_is_read_once_and_gives_the_same(decoders):
    ours, theirs = decoders
    a, b = ours.prefill([PROMPTS[0]] * 3, 4), theirs.prefill([PROMPTS[0]] * 3, 4)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    token = torch.tensor([3, 17, 29])
    torch.testing.assert_close(ours.step(token), theirs.step(token), rtol=1e-5, atol=1e-5)


def test_adapter_is_merged_into_the_copy_only(make_agent):
    agent = make_agent()
    with torch.no_grad():
        for parameter in agent.parameters("policy"):
            parameter.add_(0.05)
    before = copy.deepcopy(agent.model.state_dict())
    agent.refresh()
    with torch.inference_mode():
        merged = agent._decoder.prefill(PROMPTS, 2)
        with agent._role("policy"):
            expected = TransformersDecoder(agent.model).prefill(PROMPTS, 2)
        with agent._role("reference"):
            reference = TransformersDecoder(agent.model).prefill(PROMPTS, 2)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert (merged - reference).abs().max() > 0.05
    assert all(torch.equal(v, before[k]) for k, v in agent.model.state_dict().items())


def test_log_probs_are_those_of_the_distribution_drawn_from(decoders):
    ours, theirs = decoders
    sampled = sample(ours, PROMPTS, 10**6, 4, torch.Generator().manual_seed(0), temperature=0.7, top_k=5)
    with torch.inference_mode():
        for prompt, action in zip(PROMPTS, sampled, strict=True):
            ids = torch.tensor([[*prompt, *action.tokens]])
            logits = theirs.model(ids).logits[0, len(prompt) - 1 : -1]
            expected = next_token_distribution(logits, 0.7, 5).gather(-1, torch.tensor(action.tokens)[:, None])
            torch.testing.assert_close(torch.tensor(action.log_probs), expected[:, 0], rtol=1e-4, atol=1e-4)


def test_an_action_ends_with_the_end_token_and_rows_do_not_disturb_each_other(decoders):
    ours, _ = decoders
    alone = sample(ours, PROMPTS, 10**6, 30, torch.Generator().manual_seed(3))
    end = alone[1].tokens[2]
    ended = sample(ours, PROMPTS, end, 30, torch.Generator().manual_seed(3))
    assert ended[1].finished and ended[1].tokens == alone[1].tokens[: alone[1].tokens.index(end) + 1]
    for a, b in zip(alone, ended, strict=True):
        assert b.tokens == a.tokens[: len(b.tokens)]


def test_draw_has_the_right_frequencies():
    log_probs = torch.tensor([0.5, 0.0, 0.3, 0.2]).log()
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = draw(log_probs.expand(1000, 4), uniform)
    assert torch.bincount(tokens, minlength=4).tolist() == [500, 0, 300, 200]


def test_draw_never_takes_what_cannot_be_drawn():
    log_probs = torch.tensor([[0.4, 0.6, 0.0, 0.0]]).log()
    almost_one = torch.tensor([1.0 - 2**-53], dtype=torch.float64)
    assert draw(log_probs, almost_one).tolist() == [1]
