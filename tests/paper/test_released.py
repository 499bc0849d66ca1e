"""The released update, switch by switch."""

import pytest
import torch

from etpo_core import losses
from etpo_core.interfaces import Alone, Transition
from etpo_paper.base.settings import load_settings
from etpo_paper.methods import build_method
from etpo_paper.methods.released import Lion, one_sided_huber, uniform_policy_loss

OFF = dict.fromkeys(
    ["uniform_policy_loss", "no_reference", "late_kl", "one_sided_huber", "lion", "half_weights"],
    False,
)
PROMPT = (1, 2, 3)


@pytest.fixture(scope="module")
def settings():
    return load_settings("laptop")


def started(settings, agent, **changes):
    method = build_method("released", {**settings.methods["released"].plain(), **changes})
    method.start(agent.networks, Alone())
    return method


def batch(rewards=(0.9, -1.0, 0.4, -1.0)):
    """Two environments, two steps."""
    actions = [(4, 5, 6), (7, 8), (9,), (4, 4, 5, 5)]
    return [
        Transition(PROMPT, a, (0.0,) * len(a), r, r > 0, None if r > 0 else (1, 2, 9), environment=i % 2)
        for i, (a, r) in enumerate(zip(actions, rewards, strict=True))
    ]


def test_the_policys_gradient_is_the_same_for_any_q():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    gradients = []
    for scale in (0.0, 1.0, 1e6):
        q = scale * torch.randn(3, 7, generator=generator, dtype=torch.float64)
        gradients.append(torch.autograd.grad(uniform_policy_loss(logits, q, 0.01).sum(), logits)[0])
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])
    expected = 0.01 * (1 / 7 - logits.softmax(-1))
    torch.testing.assert_close(gradients[0], expected.detach(), rtol=1e-12, atol=1e-15)
    # The paper's loss, on the same numbers, does depend on Q.
    paper = [
        torch.autograd.grad(losses.policy_loss(logits, torch.zeros_like(logits), q, 0.01).sum(), logits)[0]
        for q in (torch.zeros_like(logits), torch.ones_like(logits).cumsum(-1))
    ]
    assert (paper[0] - paper[1]).abs().max() > 0.01


def test_no_critic_reaches_the_policy_of_the_released_update(make_agent, settings):
    """The whole method: two critics, one policy. With the mean under pi, two critics make two policies."""

    def run(shift, **changes):
        agent = make_agent()
        with torch.no_grad():
            for parameter in agent.networks.parameters("critic"):
                parameter.add_(shift)
        method = started(settings, agent, policy_lr=1e-3, half_weights=False, **changes)
        method.update(batch())
        return torch.cat([p.detach().flatten() for p in agent.networks.parameters("policy")])

    assert torch.equal(run(0.0), run(0.1))
    assert not torch.equal(run(0.0, uniform_policy_loss=False), run(0.1, uniform_policy_loss=False))


def test_huber_has_one_side():
    q = torch.tensor([0.0, 0.0, 5.0, -30.0, 30.0], requires_grad=True)
    loss = one_sided_huber(q, torch.tensor([1.0, -1.0, 5.0, 0.0, 0.0]), torch.ones(5).bool(), 10.0)
    whole = losses.critic_loss(q.detach(), torch.tensor([1.0, -1.0, 5.0, 0.0, 0.0]), huber_delta=10.0)
    assert loss[:4].tolist() == whole[:4].tolist() and loss[4] == 0 and whole[4] > 0
    loss.sum().backward()
    assert q.grad[4] == 0 and q.grad[3] < 0


def test_gradients_are_those_of_the_losses():
    generator = torch.Generator().manual_seed(0)
    logits, q = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: uniform_policy_loss(z, q, 0.3), logits)
    targets = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: one_sided_huber(z, targets, torch.ones(3, 5).bool(), 0.5), logits)
    with pytest.raises(ValueError, match=r"q: shape \(2, 5\), expected \[3, 5\], that of policy_logits"):
        uniform_policy_loss(logits, q[:2], 0.3)
    narrow = uniform_policy_loss(logits.detach().bfloat16(), q.detach().bfloat16(), 0.3)
    assert narrow.dtype == torch.float32 and torch.isfinite(narrow).all()
    into_q = torch.autograd.grad(uniform_policy_loss(logits, q, 0.3).sum(), q, allow_unused=True)[0]
    assert into_q is None


def test_late_kl_is_that_of_the_environments_next_action(make_agent, settings):
    agent = make_agent()
    with torch.no_grad():
        for parameter in agent.networks.parameters("policy"):
            parameter.add_(0.05)
    method = started(settings, agent, **OFF | {"late_kl": True}, parameterisation="residual", beta=1.0)
    transitions = batch()
    method._kl_after = method._kl_of_following(transitions)
    assert set(method._kl_after) == {id(transitions[0]), id(transitions[1])}  # two environments, two steps
    assert [len(method._kl_after[id(t)]) for t in transitions[:2]] == [1, 4]
    (packed,) = agent.networks.batches(transitions)
    zeros = torch.zeros(packed.mask.shape)
    kl = torch.full_like(zeros, 7.0)
    found = method._targets(packed, zeros, kl, torch.zeros(4), method.lam)
    shown = [found[packed.transitions.index(t)] for t in transitions]
    assert shown[0].tolist() == pytest.approx([0.0, 0.0, 0.9, 0.0])  # the next action has one token: KL 0 beyond
    following = method._kl_after[id(transitions[1])]
    assert following[1] > 1e-4
    assert shown[1].tolist() == pytest.approx([-float(following[1]), -1.0, 0.0, 0.0])
    assert shown[3].tolist() == pytest.approx([0.0, 0.0, 0.0, -1.0])  # nothing follows in the batch


def test_every_switch_off_is_etpo_on_logits(make_agent, settings):
    common = {"beta": 0.3, "gamma": 0.99, "lam": 0.0, "tau": 0.9, "parameterisation": "residual", "reflect": True}
    common |= {"policy_lr": 1e-3, "critic_lr": 1e-3}
    agents = make_agent(), make_agent()
    off = started(settings, agents[0], **OFF, **common, huber_delta=1e6)
    etpo = build_method("etpo_on_logits", {**common, "epochs": 1})
    etpo.start(agents[1].networks, Alone())
    for _ in range(2):
        assert off.update(batch()) == etpo.update(batch())
    for a, b in zip(agents[0].networks.parameters("policy"), agents[1].networks.parameters("policy"), strict=True):
        assert torch.equal(a, b)


def test_small_steps_vanish_in_float16(make_agent, settings):
    agent = make_agent()
    method = started(settings, agent)
    with torch.no_grad():
        for parameter in agent.networks.parameters("policy"):
            parameter.copy_(torch.where(parameter == 0, 0.05, parameter).half())
    before = [p.detach().clone() for p in agent.networks.parameters("policy")]
    method.update(batch())
    for old, new in zip(before, agent.networks.parameters("policy"), strict=True):
        large = old.abs() > 0.005
        assert torch.equal(old[large], new.detach()[large])


def test_a_lion_step_has_the_size_of_its_learning_rate():
    weight = torch.nn.Parameter(torch.zeros(3))
    optimiser = Lion([weight], lr=0.1)
    for gradient in ([1.0, -1e-9, 0.0], [-0.095, 1.0, 0.0]):
        weight.grad = torch.tensor(gradient)
        optimiser.step()
    # After the first step the mean is 0.01 g, so the second goes along 0.9 * 0.01 - 0.1 * 0.095 < 0, and back.
    assert weight.tolist() == pytest.approx([0.0, 0.0, 0.0])
    weight.grad = torch.tensor([-0.08, 0.0, 0.0])
    optimiser.step()  # 0.9 * (0.99 * 0.01 - 0.01 * 0.095) - 0.1 * 0.08 = 0.000055 > 0
    assert weight.tolist() == pytest.approx([-0.1, -0.1, 0.0])
