"""ETPO with Q read off the logits alone: what each parameterisation implies at the start."""

import pytest
import torch

from etpo_core import bellman, losses
from etpo_core.errors import UserError
from etpo_core.interfaces import Alone, Transition
from etpo_paper.methods.on_logits import OnLogitsETPO

PROMPT = (1, 2, 3)
SETTINGS = dict(beta=0.5, gamma=0.99, lam=1.0, tau=0.9, policy_lr=1e-3, critic_lr=1e-3, epochs=1, reflect=True)


def started(agent, parameterisation, **changes):
    method = OnLogitsETPO(parameterisation=parameterisation, **{**SETTINGS, **changes})
    method.start(agent.networks, Alone())
    return method


def the_batch(agent):
    rows = [(PROMPT, (7, 8, 9)), ((1, 2, 5, 6), (4,))]
    return agent.networks.batches([Transition(p, a, (0.0,) * len(a), 0.0, True, None) for p, a in rows])[0]


def moved(agent):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for role in ("policy", "critic", "target_critic"):
            for parameter in agent.networks.parameters(role):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return agent


@pytest.mark.parametrize("name", ["residual", "raw"])
def test_terms_and_backup_are_those_of_whole_logits(make_agent, name):
    agent = moved(make_agent())
    method, batch, networks = started(agent, name), the_batch(agent), agent.networks
    sequences = batch.sequences
    logits = {
        role: networks.logits(networks.hidden(role, sequences))[sequences.copies]
        for role in ("policy", "reference", "critic", "target_critic")
    }
    q = {role: method.q(logits, role) for role in ("critic", "target_critic")}
    terms = method._terms(batch, 0)
    near = {"rtol": 1e-4, "atol": 1e-4}  # of float32 logits of some units, summed over the vocabulary
    tokens = sequences.each(sequences.tokens)
    taken = q["critic"].gather(-1, tokens[:, None])[:, 0]
    level = method._level(batch, torch.zeros(0))
    torch.testing.assert_close(batch.flat(level + terms.advantage), taken, **near)
    expected = bellman.expected_q(logits["policy"], q["critic"])
    torch.testing.assert_close(batch.flat(terms.advantage), taken - expected, **near)
    loss = losses.policy_loss(logits["policy"], logits["reference"], q["critic"], method.beta)
    torch.testing.assert_close(batch.flat(terms.policy_loss), loss, **near)
    torch.testing.assert_close(
        batch.flat(terms.kl), bellman.kl_divergence(logits["policy"], logits["reference"]), **near
    )
    expected = bellman.expected_q(logits["policy"], q["target_critic"])
    torch.testing.assert_close(batch.flat(method._expected_q(batch)), expected, **near)


@pytest.mark.parametrize("name", ["residual", "raw"])
def test_no_gradient_crosses_between_policy_and_critic(make_agent, name):
    agent = moved(make_agent())
    terms = started(agent, name)._terms(the_batch(agent), 0)
    for value, own, other in ((terms.policy_loss, "policy", "critic"), (terms.advantage, "critic", "policy")):
        for role in (own, other):
            found = torch.autograd.grad(
                value.sum(), agent.networks.parameters(role), retain_graph=True, allow_unused=True
            )
            assert any(g is not None and g.abs().sum() > 0 for g in found) == (role == own)


def test_the_residual_form_starts_at_the_reference_and_raw_logits_far_from_it(make_agent):
    agent = make_agent()
    batch = the_batch(agent)
    residual = started(agent, "residual")
    assert residual._terms(batch, 0).policy_loss.abs().max() < 1e-5
    assert residual._expected_q(batch).abs().max() < 1e-6
    # rho exp(z / beta) is nearly an argmax for a small beta, whatever rho is.
    low, high = (started(agent, "raw", beta=beta)._terms(batch, 0).policy_loss for beta in (0.01, 1e3))
    assert batch.flat(low).min() > 10 * batch.flat(high).max()


def test_an_exact_policy_takes_the_critics_weights(make_agent):
    agent = make_agent()
    method = started(agent, "residual", policy_lr="exact")
    method.update([Transition(PROMPT, (4, 5), (0.0,) * 2, 0.9, True, None)])
    for policy, critic in zip(*(agent.networks.parameters(r) for r in ("policy", "critic")), strict=True):
        assert torch.equal(policy, critic)


def test_a_mistake_is_one_clear_line():
    with pytest.raises(UserError, match="unknown parameterisation of Q 'cooked'"):
        OnLogitsETPO(parameterisation="cooked", **SETTINGS)
    with pytest.raises(UserError, match="policy_lr: exact has no weights to take with parameterisation raw"):
        OnLogitsETPO(parameterisation="raw", **{**SETTINGS, "policy_lr": "exact"})
