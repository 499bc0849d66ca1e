"""The four readings of Q: what each implies at the start, against whole logits, and that each one learns or not."""

import pytest
import torch

from etpo_core import bellman, losses
from etpo_core.errors import UserError
from etpo_paper.base.settings import Settings, load_settings
from etpo_paper.methods import build_method
from etpo_paper.methods.readings import READINGS
from etpo_paper.model.agent import Sequences

BETA = 0.5
NAMES = sorted(READINGS)


@pytest.fixture
def moved(make_agent):
    """An agent whose roles differ, and a batch."""
    agent = make_agent()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for adapter in ("policy", "critic", "target_critic"):
            for parameter in agent.parameters(adapter):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return agent, Sequences.pack([(1, 2, 3), (1, 2, 5, 6)], [(7, 8, 9), (4,)], "cpu")


def whole_q(name, logits):
    reference, critic, policy = logits["reference"], logits["critic"], logits["policy"]
    if name == "raw":
        return losses.q_raw(critic)
    if name == "scaled":
        return losses.q_scaled(critic, BETA)
    if name == "residual":
        return losses.q_residual(critic, reference, BETA)
    return losses.q_dueling(torch.zeros(len(critic)), critic, reference, policy, BETA)


@pytest.mark.parametrize("name", NAMES)
def test_streamed_terms_are_those_of_whole_logits(moved, name):
    agent, batch = moved
    hidden = {r: agent.hidden(r, batch, grad=r in ("policy", "critic")) for r in ("policy", "reference", "critic")}
    terms = READINGS[name].terms(agent, hidden["policy"], hidden["reference"], hidden["critic"], batch.tokens, BETA)
    logits = {role: agent.logits(h).detach() for role, h in hidden.items()}
    q = whole_q(name, logits)
    near = {"rtol": 1e-4, "atol": 1e-4}  # of float32 logits of some units, summed over the vocabulary
    torch.testing.assert_close(terms.q_taken, q.gather(-1, batch.tokens[:, None])[:, 0], **near)
    prior = torch.zeros_like(logits["reference"]) if name == "scaled" else logits["reference"]
    torch.testing.assert_close(terms.policy_loss, losses.policy_loss(logits["policy"], prior, q, BETA), **near)
    torch.testing.assert_close(terms.kl, bellman.kl_divergence(logits["policy"], logits["reference"]), **near)
    # E_pi[Q] is asked of the target critic.
    target = agent.hidden("target_critic", batch)
    logits["critic"] = agent.logits(target)
    expected = bellman.expected_q(logits["policy"], whole_q(name, logits))
    got = READINGS[name].expected(agent, hidden["policy"], hidden["reference"], target, BETA)
    torch.testing.assert_close(got, expected, **near)


@pytest.mark.parametrize("name", [name for name in NAMES if READINGS[name].critic_is_target])
def test_no_policy_stands_for_one_with_the_critics_weights(moved, name):
    agent, batch = moved
    reference, critic = agent.hidden("reference", batch), agent.hidden("critic", batch, grad=True)
    given = READINGS[name].terms(agent, critic.detach(), reference, critic, batch.tokens, BETA)
    implied = READINGS[name].terms(agent, None, reference, critic, batch.tokens, BETA)
    for field, expected, got in zip(given._fields, given, implied, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6, msg=lambda m, field=field: f"{field}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_crosses_between_policy_and_critic(moved, name):
    agent, batch = moved
    policy, critic = (agent.hidden(role, batch).requires_grad_(True) for role in ("policy", "critic"))
    reference = agent.hidden("reference", batch).requires_grad_(True)
    terms = READINGS[name].terms(agent, policy, reference.detach(), critic, batch.tokens, BETA)
    (into_policy,) = torch.autograd.grad(terms.policy_loss.sum(), policy, retain_graph=True)
    assert into_policy.abs().sum() > 0
    (into_critic,) = torch.autograd.grad(terms.q_taken.sum(), critic, retain_graph=True)
    assert into_critic.abs().sum() > 0
    for loss, other in ((terms.policy_loss, critic), (terms.q_taken, policy), (terms.prior, policy)):
        if loss.requires_grad:
            crossed = torch.autograd.grad(loss.sum(), other, retain_graph=True, allow_unused=True)[0]
            assert crossed is None or crossed.abs().sum() == 0


@pytest.mark.parametrize(
    ("name", "at_rest", "first_target"), [("dueling", True, 0.0), ("residual", True, 0.0), ("scaled", True, None)]
)
def test_training_starts_at_the_reference(make_agent, name, at_rest, first_target):
    """Fresh adapters: the policy is at its target (loss 0), and targets inside an action are what the module says."""
    agent = make_agent()
    batch = Sequences.pack([(1, 2, 3)], [(7, 8, 9)], "cpu")
    reference = agent.hidden("reference", batch)
    terms = READINGS[name].terms(agent, reference, reference, reference, batch.tokens, BETA)
    assert float(terms.policy_loss.abs().max()) < 1e-5
    expected = READINGS[name].expected(agent, reference, reference, reference, BETA)
    if first_target is not None:
        assert float((expected - first_target).abs().max()) < 1e-6
    else:  # beta times the mean logit: not a reward, but of the size of beta
        logits = agent.logits(reference)
        torch.testing.assert_close(expected, BETA * (logits.softmax(-1) * logits).sum(-1), rtol=1e-4, atol=1e-5)


def test_raw_logits_start_far_from_the_reference(make_agent):
    agent = make_agent()
    batch = Sequences.pack([(1, 2, 3)], [(7, 8, 9)], "cpu")
    reference = agent.hidden("reference", batch)
    low = READINGS["raw"].terms(agent, reference, reference, reference, batch.tokens, 0.01)
    high = READINGS["raw"].terms(agent, reference, reference, reference, batch.tokens, 1e3)
    assert float(low.policy_loss.min()) > 10 * float(high.policy_loss.max())
    # rho exp(z / beta) is nearly an argmax, whatever rho is.
    logits = agent.logits(reference)
    target = losses.target_policy_logits(logits, losses.q_raw(logits), 0.01).exp()
    assert float(target.amax(-1).min()) > 10 * float(logits.softmax(-1).amax(-1).max())


@pytest.mark.parametrize("name", NAMES)
def test_sampling_away_from_the_policy_is_corrected_in_every_reading(make_agent, name):
    from etpo_paper.environment.rollout import Transition

    settings = load_settings("laptop")
    section = settings.methods.etpo.plain() | {"reading": name, "policy_lr": 1e-3}
    method = build_method("etpo", Settings(**section))
    agent = make_agent()
    method.start(agent, Settings(**{**vars(settings.training), "temperature": 0.5, "top_k": 5}))
    logged = method.update([Transition((1, 2, 3), (4, 5), (-1.0, -2.0), 0.9, True, None)]).logged
    assert all(value == value for value in logged.values())


def test_an_unknown_reading_is_one_clear_line():
    section = load_settings("laptop").methods.etpo.plain() | {"reading": "cooked"}
    with pytest.raises(UserError, match="unknown reading of Q 'cooked'; choose one of: dueling"):
        build_method("etpo", Settings(**section))
