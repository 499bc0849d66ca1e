"""Prompts and actions as a tree of token ids, and how they are grouped."""

import pytest
import torch

from etpo_core.interfaces import Transition
from etpo_paper.model.batches import LanguageBatch, Sequences, micro_batches
from etpo_paper.model.decoder import shared_length

PROMPTS, ACTIONS = [(1, 2, 3), (4, 5, 6, 7, 8)], [(9, 10, 11, 12), (13,)]


def batch_of(prompts, actions):
    pairs = zip(prompts, actions, strict=True)
    return LanguageBatch.of([Transition(p, a, (0.0,) * len(a), 0.0, True, None) for p, a in pairs], "cpu")


@pytest.fixture
def sequences():
    return Sequences.of(PROMPTS, ACTIONS, "cpu")


def test_positions_are_those_that_the_action_tokens_are_drawn_from(sequences):
    assert sequences.tokens.tolist() == [9, 10, 11, 12, 13]
    assert sequences.ids.tolist() == [1, 2, 3, 9, 10, 11, 4, 5, 6, 7, 8]
    assert sequences.positions.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    assert sequences.places.tolist() == [2, 3, 4, 5, 10]


def test_what_sequences_begin_with_is_held_once():
    packed = Sequences.of([(1, 2, 3), (1, 2, 4, 5), (1, 2, 4)], [(6,), (7, 8), (5, 7, 9)], "cpu")
    assert packed.ids.tolist() == [1, 2, 3, 4, 5, 7]
    assert packed.positions.tolist() == [0, 1, 2, 2, 3, 4]
    # The third sequence has no token of its own, but it draws two that the others do not draw, the first and the last.
    assert [path.tolist() for path in packed.paths] == [[0, 1, 2], [0, 1, 3, 4, 5]] and packed.own == [3, 3]
    assert packed.places.tolist() == [2, 4, 5, 3, 5] and packed.tokens.tolist() == [6, 7, 8, 5, 9]
    assert packed.copies.tolist() == [0, 1, 2, 3, 1, 4]


@pytest.mark.parametrize(
    "prompts, shared",
    [([(1, 2, 3)], 2), ([(1, 2, 3)] * 2, 2), ([(1, 2), (1, 2, 3)], 1), ([(1,), (1, 2)], 0), ([(3, 1), (2, 1)], 0)],
)
def test_the_shared_start_leaves_each_prompt_its_last_token(prompts, shared):
    assert shared_length(prompts) == shared


def test_padded_and_flat_are_inverse():
    batch, values = batch_of(PROMPTS, ACTIONS), torch.arange(1.0, 6.0, requires_grad=True)
    padded = batch.padded(values)
    assert padded.tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    assert batch.flat(padded).tolist() == values.tolist()
    (gradient,) = torch.autograd.grad((padded * torch.arange(8.0).view(2, 4)).sum(), values)
    assert gradient.tolist() == [0, 1, 2, 3, 4]
    assert batch.padded(torch.ones(5, 3)).shape == (2, 4, 3)


def test_equal_sequences_are_held_once():
    # The same action behind another prompt, and another action behind the same prompt, are sequences of their own.
    batch = batch_of([(1, 2), (1, 2), (1, 3), (1, 2)], [(6, 7), (8,), (6, 7), (6, 7)])
    packed = batch.sequences
    assert packed.ids.tolist() == [1, 2, 6, 3, 6]
    assert packed.tokens.tolist() == [6, 7, 8, 6, 7] and packed.lengths.tolist() == [2, 1, 2, 2]
    assert packed.copies.tolist() == [0, 1, 2, 3, 4, 0, 1]
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert packed.each(values).tolist() == [1, 2, 3, 4, 5, 1, 2]
    assert batch.spread(values).tolist() == [[1, 2], [3, 0], [4, 5], [1, 2]]


@pytest.fixture
def on_threads():
    """A function that sets the number of threads until the end of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_gradients_of_equal_sequences_add_up_in_one_order_for_any_number_of_threads(on_threads):
    packed = batch_of([PROMPTS[0]] * 90, [tuple(range(20 + i % 3, 80)) for i in range(90)]).sequences
    distinct, positions, width = len(packed.tokens), int(packed.lengths.sum()), 96
    generator = torch.Generator().manual_seed(0)
    values, weight = (torch.randn(n, width, generator=generator) for n in (distinct, positions))

    def gradient(threads):
        on_threads(threads)
        leaf = values.clone().requires_grad_()
        (packed.each(leaf) * weight).sum().backward()
        return leaf.grad

    alone = gradient(1)
    assert all(torch.equal(gradient(2), alone) for _ in range(5))
    exact = torch.zeros(distinct, width, dtype=torch.float64).index_add_(0, packed.copies, weight.double())
    torch.testing.assert_close(alone.double(), exact, rtol=1e-5, atol=1e-5)  # sums of 30 numbers in float32


def test_micro_batches_keep_every_transition_and_the_limit():
    prompts = [(1, 2, 3), (1, 2, 3, 9, 9), (1, 2, 7), (1, 2, 3, 9, 8, 8)]
    batch = [Transition(p, (4,) * n, (0.0,) * n, 0.0, True, None) for p in prompts for n in (1, 2, 5)]
    groups = list(micro_batches(batch, 16))
    assert sorted((t for g in groups for t in g), key=repr) == sorted(batch, key=repr)
    for group in groups:
        packed = LanguageBatch.of(group, "cpu").sequences
        assert len(packed.ids) <= 16
    assert any(len(group) > 1 for group in groups)
    assert [len(group) for group in micro_batches(batch, 1)] == [1] * len(batch)
