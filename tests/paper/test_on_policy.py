"""What the run card says of log π in an update and when the tokens were drawn."""

import pytest
import torch

from etpo_core.interfaces import Alone, Transition
from etpo_paper.base.settings import load_settings
from etpo_paper.environment.prompts import Prompt
from etpo_paper.methods import build_method
from etpo_paper.model.on_policy import Gap


def test_the_differences_of_all_tokens_are_counted_and_survive_a_checkpoint():
    gap = Gap()
    assert gap.card() is None
    gap.add(torch.tensor([-1.0, -2.5]), [-1.0, -2.0])
    again = Gap()
    again.set_state(gap.get_state())
    again.add(torch.tensor([-1.0, -1.0]), [-2.0, -1.5])
    assert again.card() == {"tokens": 4, "equal": 1, "mean": 0.5, "largest": 1.0}


@pytest.mark.parametrize("name", ["etpo", "ppo_kl", "poad", "grpo"])
def test_a_run_compares_every_token_once_in_an_update_with_the_policy_that_drew_it(make_agent, name):
    agent = make_agent()
    method = build_method(name, load_settings("laptop").methods[name].plain())
    method.start(agent.networks, Alone())
    tokens = 0
    for seed in range(2):
        written = agent.act([Prompt("a", "b")] * 4, max_new_tokens=8, generator=torch.Generator().manual_seed(seed))
        batch = [
            Transition(agent.encode(Prompt("a", "b")), w.tokens, w.log_probs, float(i), True, None, i)
            for i, w in enumerate(written)
        ]
        method.update(batch)
        agent.refresh()
        tokens += sum(len(pair) for pair in {w.tokens for w in written})
    found = agent.networks.gap.card()
    assert found["tokens"] == tokens
    assert found["largest"] < 1e-4  # float32 sums of another order; a step of the policy moves it by far more
