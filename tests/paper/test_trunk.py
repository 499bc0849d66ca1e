"""Passes over the tokens of several runs: a run in company is the run alone, to the last bit."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from etpo_paper.base.lockstep import Lockstep
from etpo_paper.model import trunk as trunk_module
from etpo_paper.model.decoder import LlamaDecoder, sample
from etpo_paper.model.drafts import Drafts
from etpo_paper.model.trunk import Rows, Trunk, blocked, row_rule

# Of three runs: their prompts, of different numbers and lengths.
RUNS = [
    [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [5, 6, 3]],
    [[1, 2]],
    [[9] * 40, [9] * 33 + [4], [9] * 12, [9] * 12, [9] * 12],
]


@pytest.fixture(params=["float32", "bfloat16"])
def runs(request, make_agent):
    """Three decoders with adapters of their own on one trunk, on a model whose last layer has them."""
    dtype, trunk, decoders = getattr(torch, request.param), None, []
    for seed in range(3):
        networks = make_agent(layers=1, seed=seed).networks
        with torch.no_grad():
            for parameter in networks.parameters("policy"):
                parameter.normal_(std=0.2)
        trunk = trunk or Trunk(networks.model, dtype)
        decoders.append(LlamaDecoder(networks.model, dtype, "policy", trunk))
    return decoders


def written(decoder, prompts, seed):
    """What a decoder samples, and the states that it leaves, one batch after another with guesses."""
    generator, drafts, found = torch.Generator().manual_seed(seed), Drafts(), []
    for _ in range(2):
        actions = sample(decoder, prompts, 3, 25, generator, drafts=drafts)
        drafts.observe(a.tokens for a in actions)
        pairs = zip(prompts, actions, strict=True)
        below = [decoder.states_below(i, len(p) + len(a.tokens) - 1) for i, (p, a) in enumerate(pairs)]
        found.append((actions, below))
    return found


def together(decoders, which):
    """The same of some of the decoders in one group."""
    found = {}

    def function(i):
        def run(ask):
            decoders[i].forward = lambda _, part: ask(part)
            found[i] = written(decoders[i], RUNS[i], i)

        return run

    assert Lockstep(decoders[0].trunk.forward).run([function(i) for i in which]) == [None] * len(which)
    return found


def equal(one, other):
    return all(a == b and all(map(torch.equal, x, y)) for (a, x), (b, y) in zip(one, other, strict=True))


def test_a_run_is_the_same_in_any_company(runs):
    alone = [written(decoder, prompts, i) for i, (decoder, prompts) in enumerate(zip(runs, RUNS, strict=True))]
    assert len({a.tokens for actions, _ in alone[2] for a in actions}) > 3
    for which in itertools.chain(itertools.combinations(range(3), 2), [(2, 1, 0)]):
        found = together(runs, which)
        assert all(equal(found[i], alone[i]) for i in which), which


def test_an_operation_that_looks_at_the_whole_batch_is_noticed(runs, monkeypatch):
    alone = written(runs[0], RUNS[0], 0)
    plain = trunk_module.blocked

    def scaled(product, x, rule):  # as a quantised product would, whose scale is the largest entry of all rows
        scale = x.float().abs().amax()
        return plain(product, (x / scale * scale).to(x.dtype), rule)

    monkeypatch.setattr(trunk_module, "blocked", scaled)
    assert not equal(together(runs, (0, 2))[0], alone)


def test_adapters_change_their_own_rows_only(runs):
    logits = [decoder.prefill(RUNS[0]) for decoder in runs]
    assert all((a - b).abs().max() > 0.01 for a, b in itertools.combinations(logits, 2))


@pytest.mark.parametrize(
    "least, most, expected",
    [(1, None, Rows(1, None, True)), (4, None, Rows(4, None, True)), (40, 250, Rows(48, 240, True)),
     (70, None, Rows(1, None, False))],
)  # fmt: skip
def test_the_rule_is_the_cheapest_under_which_a_row_is_always_the_same(least, most, expected):
    weight = torch.randn(8, 16)

    def product(x):  # another kernel where there are few rows or many
        other = len(x) < least or (most is not None and len(x) > most)
        return F.linear(x, weight) * (1 + 1e-6) if other else F.linear(x.double(), weight.double()).float()

    assert row_rule([(product, weight)]) == expected


def test_rows_are_padded_and_cut_as_the_rule_says():
    seen = []

    def product(x):
        seen.append(len(x))
        return 2 * x

    for count in (1, 3, 4, 9, 10, 25):
        x = torch.randn(count, 2)
        assert torch.equal(blocked(product, x, Rows(4, 9, True)), 2 * x)
    assert seen == [4, 4, 4, 9, 5, 5, 9, 8, 8]
