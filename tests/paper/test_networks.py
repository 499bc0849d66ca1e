"""One contract, two implementations: the language model's networks and tables over its prefixes say the same.

The tables compute with the printed equations on whole rows of logits, the language model with closed forms that stream
the vocabulary. Both are given the same logits here: each role of a tiny language model becomes a table with one row a
prefix. Values, gradients and the first update of each method must then agree to float precision.
"""

import pytest
import torch

from etpo_core.interfaces import Alone, Transition
from etpo_core.losses import policy_loss, q_residual
from etpo_core.update import ETPO, PPOKL, ActionLevelETPO
from etpo_paper.model.batches import Sequences
from etpo_paper.tabular.networks import TabularNetworks
from etpo_paper.tabular.worlds import World

PROMPT, FAILED = (1, 2, 3), (1, 2, 3, 9, 9)
STATES = {PROMPT: (0,), FAILED: (1,)}
ACTIONS = [(4, 5, 6), (4, 7), (8,), (4, 5, 9)]
ROLES = ("policy", "critic", "target_critic")
BETA = 0.3


@pytest.fixture
def both(make_agent):
    """Networks over a language model whose roles differ, and tables that hold the same logits."""
    networks = make_agent().networks
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for role in ROLES:
            for parameter in networks.parameters(role):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    prefixes = sorted({a[:j] for a in ACTIONS for j in range(len(a))})
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    cells = [(prompt, prefix) for prompt in STATES for prefix in prefixes]
    sequences = Sequences.of([p + x for p, x in cells], [(0,)] * len(cells), "cpu")

    def logits(role):
        return networks.logits(networks.hidden(role, sequences))[sequences.copies]

    longest = max(map(len, ACTIONS))
    nothing = torch.zeros(len(STATES), len(ACTIONS))
    world = World(
        tokens=torch.tensor([[*a, *(0,) * (longest - len(a))] for a in ACTIONS]),
        lengths=torch.tensor([len(a) for a in ACTIONS]),
        prefixes=torch.tensor([[number[a[: min(j, len(a) - 1)]] for j in range(longest)] for a in ACTIONS]),
        transition=nothing,
        reward=nothing,
        terminated=nothing.bool(),
        reference_logits=logits("reference").view(len(STATES), len(prefixes), -1),
    )
    tables = TabularNetworks(world)
    with torch.no_grad():
        for role in ROLES:
            tables.parameters(role)[0].copy_(logits(role) - logits("reference"))
    return networks, tables


def transitions(of_tables=False):
    """Actions with an equal pair, tries in both states, and both kinds of ending."""
    rows = [
        (PROMPT, ACTIONS[0], 0.8, None),
        (PROMPT, ACTIONS[1], -1.0, FAILED),
        (FAILED, ACTIONS[2], -1.0, PROMPT),
        (PROMPT, ACTIONS[0], 0.8, None),
        (FAILED, ACTIONS[3], 0.5, None),
    ]
    name = STATES.get if of_tables else (lambda prompt: prompt)
    return [Transition(name(p), a, (0.0,) * len(a), r, n is None, n and name(n)) for p, a, r, n in rows]


def the_batch(networks, of_tables=False):
    (batch,) = networks.batches(transitions(of_tables))
    return batch


def in_order(batch, values):
    """Rows in the order of `transitions`, whatever order the networks prefer, as one flat list."""
    rows = {id(t): row[:length] for t, row, length in zip(batch.transitions, values, batch.lengths, strict=True)}
    key = {v: k for k, v in STATES.items()}
    named = [(key.get(t.prompt, t.prompt), t.action, id(t)) for t in batch.transitions]
    return torch.cat([rows[i] for _, _, i in sorted(named)])


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)


def gradient(networks, role, loss):
    """The gradient of a loss in a role's weights, as one vector; zeros where there is none."""
    parameters = networks.parameters(role)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    zeros = (torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True))
    return torch.cat([g.flatten() for g in zeros])


def pulled_back(networks, tables, role, loss):
    """The gradient of a table's loss, carried through the language model to the weights of the same role."""
    (of_table,) = torch.autograd.grad(loss, tables.parameters(role), allow_unused=True, retain_graph=True)
    if of_table is None:
        return torch.zeros(sum(p.numel() for p in networks.parameters(role)))
    cells = sorted({(t.prompt, t.action[:j]) for t in transitions() for j in range(len(t.action))})
    sequences = Sequences.of([p + x for p, x in cells], [(0,)] * len(cells), "cpu")
    logits = networks.logits(networks.hidden(role, sequences, grad=True))[sequences.copies]
    prefixes = sorted({a[:j] for a in ACTIONS for j in range(len(a))})
    rows = [STATES[p][0] * len(prefixes) + prefixes.index(x) for p, x in cells]
    return gradient(networks, role, (logits * of_table[rows]).sum())


@pytest.mark.parametrize("policy", ["trained", "fixed", "critic"])
def test_terms_and_their_gradients(both, policy):
    networks, tables = both
    if policy == "critic":
        for each in both:
            each.polyak_update("critic", "policy", 0.0)
    of_model, of_tables = the_batch(networks), the_batch(tables, of_tables=True)
    ours = networks.terms(of_model, BETA, policy=policy)
    theirs = tables.terms(of_tables, BETA, policy=policy)
    weights = torch.randn(20, generator=torch.Generator().manual_seed(1))
    for name, a, b in zip(ours._fields, ours, theirs, strict=True):
        a, b = in_order(of_model, a), in_order(of_tables, b)
        assert_same(a, b)
        if not b.requires_grad:
            assert not a.requires_grad, name
            continue
        for role in ("policy", "critic"):
            found = gradient(networks, role, (a * weights[: len(a)]).sum())
            expected = pulled_back(networks, tables, role, (b * weights[: len(b)]).sum())
            assert_same(found, expected)
            of = {"policy_loss": "policy", "advantage": "critic", "advantage_square": "critic"}[name]
            assert bool(expected.abs().max() > 1e-4) == (role == of), (name, role)


def test_what_the_policy_says_and_its_gradient(both):
    networks, tables = both
    of_model, of_tables = the_batch(networks), the_batch(tables, of_tables=True)
    for a, b in zip(networks.evaluate(of_model), tables.evaluate(of_tables), strict=True):
        assert_same(in_order(of_model, a), in_order(of_tables, b))
    for role in ("reference", *ROLES):
        found, expected = networks.log_prob(of_model, role), tables.log_prob(of_tables, role)
        assert_same(in_order(of_model, found), in_order(of_tables, expected))
    a = networks.log_prob(of_model, "policy", grad=True).sum()
    b = tables.log_prob(of_tables, "policy", grad=True).sum()
    assert_same(gradient(networks, "policy", a), pulled_back(networks, tables, "policy", b))


def test_any_other_function_of_logits(both):
    networks, tables = both

    def losses(logits, tokens):
        q = q_residual(logits["critic"], logits["reference"], BETA)
        return [policy_loss(logits["policy"], logits["reference"], q, BETA), q.gather(-1, tokens[:, None])[:, 0]]

    found = []
    for each, of_tables in ((networks, False), (tables, True)):
        batch = the_batch(each, of_tables)
        found.append(
            [in_order(batch, v) for v in each.map_logits(batch, losses, ["reference", "policy", "critic"], "policy")]
        )
    for a, b in zip(*found, strict=True):
        assert_same(a, b)
    a, b = (values[0].sum() for values in found)
    assert_same(gradient(networks, "policy", a), pulled_back(networks, tables, "policy", b))


SETTINGS = {
    "etpo": (ETPO, {"policy_lr": 0.0}),
    "exact": (ETPO, {"policy_lr": "exact", "epochs": 2}),
    "one_step": (ETPO, {"policy_lr": 0.0, "lam": 0.0}),
    "action_level": (ActionLevelETPO, {"policy_lr": 0.0}),
    "ppo_kl": (PPOKL, {}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_update_reports_the_same(both, name):
    """The first update, without a step of the weights: V is 0 everywhere, so features play no part."""
    kind, changes = SETTINGS[name]
    if kind is PPOKL:
        settings = dict(beta=BETA, gamma=0.9, clip=0.2, epochs=2, policy_lr=0.0, value_lr=0.0, reflect=True)
    else:
        settings = dict(beta=BETA, gamma=0.9, lam=0.7, tau=0.9, advantage_prior=0.1, critic_lr=0.0, epochs=1)
        settings |= dict(value_decay=0.9, value_ridge=0.5, reflect=True)
    results = []
    for networks, of_tables in zip(both, (False, True), strict=True):
        if changes.get("policy_lr") == "exact":
            networks.polyak_update("critic", "policy", 0.0)
        method = kind(**settings | changes)
        method.start(networks, Alone())
        results.append(method.update(transitions(of_tables)))
    ours, theirs = results
    assert ours.logged == pytest.approx(theirs.logged, rel=1e-4, abs=1e-6)
    assert sum(ours.credit, []) == pytest.approx(sum(theirs.credit, []), rel=1e-4, abs=1e-5)
