"""The candidates for a better ETPO, on tables in small worlds."""

import pytest
import torch

from etpo_core.interfaces import Alone, Transition
from etpo_core.update import ETPO
from etpo_paper.methods.etpo_tried import TriedETPO
from etpo_paper.tabular.kinds import KINDS
from etpo_paper.tabular.learning import TabularEnvironments, learn
from etpo_paper.tabular.networks import TabularNetworks

BETA, GAMMA = 0.1, 0.9
SETTINGS = {
    "beta": BETA,
    "gamma": GAMMA,
    "lam": 1.0,
    "tau": 0.9,
    "advantage_prior": 0.0,
    "policy_lr": "exact",
    "critic_lr": 0.3,
    "value_decay": 0.9,
    "value_ridge": 0.001,
    "epochs": 1,
    "reflect": True,
}
CHANGES = {
    "cross_fit": {"cross_fit": True},
    "replay": {"replay": 3},
    "remember": {"remember": True},
    "anchor": {"anchor": 0.05},
    "first_kl": {"first_kl": 0.001},
    "first_beta": {"first_beta": 0.4},
    "low_lam": {"low_lam": 0.9, "explained": -10.0},
}


def world():
    return KINDS["repairs"].world(1)


def run(method, batches, networks=None):
    if networks is None:
        networks = TabularNetworks(world())
        method.start(networks, Alone())
    for batch in batches:
        method.update(batch)
    return networks.policy_logits


def drawn(count, seed=0):
    """Batches of the reference."""
    environments = TabularEnvironments(world(), 8, seed)
    return [environments.collect(world().reference_logits, 2) for _ in range(count)]


def test_with_every_change_off_it_is_etpo_to_the_last_bit():
    assert torch.equal(run(TriedETPO(**SETTINGS), drawn(5)), run(ETPO(**SETTINGS), drawn(5)))


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_changes_what_is_learnt_and_survives_a_checkpoint(name):
    batches = drawn(6)
    whole = run(TriedETPO(**SETTINGS, **CHANGES[name]), batches)
    assert not torch.equal(whole, run(ETPO(**SETTINGS), batches))
    first, second = TriedETPO(**SETTINGS, **CHANGES[name]), TriedETPO(**SETTINGS, **CHANGES[name])
    networks = TabularNetworks(world())
    first.start(networks, Alone())
    run(first, batches[:3], networks)
    second.start(networks, Alone())
    second.set_state(first.get_state())
    assert torch.equal(run(second, batches[3:], networks), whole)


@pytest.mark.parametrize("name", ["cross_fit", "replay", "remember"])
def test_it_comes_near_the_optimum(name):
    method = TriedETPO(**SETTINGS, **CHANGES[name])
    curve = learn(method, world(), updates=40, count=8, steps=4, seed=0, beta=BETA, gamma=GAMMA)
    assert curve[-1] < 0.1 * curve[0]


def test_v_of_an_action_is_fitted_to_the_others_of_its_batch():
    # Two different first actions in one state: the only thing known of it without the one is what the other earned.
    ends = [Transition((0,), (1, 3), (-1.0, -1.0), r, True, None) for r in (0.25, -1.0)]
    method = TriedETPO(**SETTINGS, cross_fit=True)
    run(method, [ends])
    assert [float(method._others[id(t)][0]) for t in ends] == pytest.approx([-1.0, 0.25], abs=0.01)


def test_the_first_steps_are_within_their_bound():
    batches, networks = drawn(1), TabularNetworks(world())
    before = networks.policy_logits.log_softmax(-1)
    method = TriedETPO(**SETTINGS | {"critic_lr": 3.0}, first_kl=0.1)
    method.start(networks, Alone())
    after = run(method, batches, networks).log_softmax(-1)
    at_prefix = (before.exp() * (before - after)).sum(-1)
    spent = 0.0
    for t in batches[0]:
        (batch,) = networks.batches([t])
        spent += float(at_prefix.flatten()[batch.rows].sum())
    assert 0 < spent / len(batches[0]) <= 0.1


def test_the_anchor_is_the_mean_square_of_the_advantage_under_the_reference():
    networks = TabularNetworks(world())
    method = TriedETPO(**SETTINGS, anchor=1.0)
    method.start(networks, Alone())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for role in ("policy", "critic"):
            (table,) = networks.parameters(role)
            table.copy_(torch.randn(table.shape, generator=generator))
    (batch,) = networks.batches([Transition((0,), (3,), (-1.0,), 0.0, True, None)])
    advantage = BETA * table[0].detach()
    expected = (networks.policy_logits[0, 0].softmax(-1) * advantage).sum()
    square = (world().reference_logits[0, 0].softmax(-1) * (advantage - expected) ** 2).sum()
    assert float(method._square_under_reference(batch).detach()[0, 0]) == pytest.approx(float(square), rel=1e-5)
