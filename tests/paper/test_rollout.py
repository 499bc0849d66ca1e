"""What the methods learn from is what happened: each action beside the state that it was written in."""

import pytest
import torch

from etpo_paper.base.settings import load_defaults
from etpo_paper.environment.rollout import collect
from etpo_paper.environment.scikit_learn import episodes
from etpo_paper.model.batches import LanguageBatch


@pytest.fixture
def collected(make_agent, toy_task, stub_executor):
    agent = make_agent()
    environments = episodes(toy_task, stub_executor, load_defaults().environment, 6)
    generator = torch.Generator().manual_seed(0)
    options = {"max_new_tokens": 8, "generator": generator, "temperature": 1.0, "top_k": 0}
    return agent, *collect(agent, environments, 3, **options)


def test_a_transition_holds_the_state_that_was_acted_in_and_the_one_that_followed(collected):
    agent, transitions, records = collected
    assert {t.terminated for t in transitions} == {True, False}
    for t, (step, action) in zip(transitions, records, strict=True):
        assert t.prompt == agent.encode(step.prompt) and t.action == action.tokens
        assert t.next_prompt == (None if t.terminated else agent.encode(step.next_prompt))
        assert (step.body in step.prompt.prefix) is (step.body == ""), "no state shows the action that comes after it"
    first, second = transitions[:6], transitions[6:12]
    for before, after, (step, _) in zip(first, second, records[6:12], strict=True):
        if step.episode_step > 1:
            assert after.prompt == before.next_prompt


def test_actions_have_the_probability_that_they_were_drawn_with_in_their_states(collected):
    agent, transitions, _ = collected
    batch = LanguageBatch.of(transitions, "cpu")
    log_prob = batch.flat(agent.networks.log_prob(batch, "policy"))
    drawn = torch.tensor([p for t in transitions for p in t.log_probs])
    torch.testing.assert_close(log_prob, drawn, rtol=1e-4, atol=1e-4)
