import copy
import itertools
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from benchmarks import rollout
from etpo_paper.model import decoder
from etpo_paper.model.decoder import LlamaDecoder, TransformersDecoder, draw, sample
from etpo_paper.model.drafts import Drafts


@pytest.fixture
def decoders(tiny_language_model):
    model = tiny_language_model[0]
    return LlamaDecoder(model, torch.float32), TransformersDecoder(model)


PROMPTS = [[1, 2, 3, 4, 5], [7, 8], [9, 10, 11, 12, 13, 14, 15]]
BATCHES = {
    "nothing shared": PROMPTS,
    "one prompt": [PROMPTS[0]] * 4,
    "one row": PROMPTS[:1],
    "a common beginning": [[1, 2, 3], [1, 2, 3, 4, 5, 6], [1, 2, 9, 9]],
    "some prompts shared": [[1, 2, 3, 4], [1, 2], [1, 2, 3, 4], [1, 2, 5, 6, 7], [1, 2, 3, 4], [1, 2], [1, 2, 3, 4]],
    "one token": [[4], [5], [4]],
}


@torch.inference_mode()
@pytest.mark.parametrize("name", BATCHES)
def test_bare_decoder_computes_what_transformers_computes(decoders, name):
    ours, theirs = decoders
    prompts = BATCHES[name]
    a, b = ours.prefill(prompts), theirs.prefill(prompts)
    generator = torch.Generator().manual_seed(0)
    for step in range(40):  # more than the cache begins with, twice
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        if step in (3, 20) and len(a) > 1:
            rows = list(range(len(a)))[step == 3 :: 2]
            ours.keep(rows), theirs.keep(rows)
            a = a[rows]
        token = torch.randint(30, (len(a),), generator=generator)
        token = [[t] for t in token.tolist()]
        a, b = ours.step(token), theirs.step(token)


@torch.inference_mode()
@pytest.mark.parametrize("name", BATCHES)
def test_several_tokens_at_once_and_taken_back_leave_what_transformers_computes(decoders, name):
    ours, theirs = decoders
    prompts = [list(p) for p in BATCHES[name]]
    written, generator = [[] for _ in prompts], torch.Generator().manual_seed(0)
    ours.prefill(prompts)
    for step in range(12):
        counts = torch.randint(0 if step % 3 else 1, 6, (len(prompts),), generator=generator).tolist()
        counts[step % len(counts)] = 5  # some sequence goes on
        fed = [torch.randint(30, (n,), generator=generator).tolist() for n in counts]
        logits = ours.step(fed).split(counts)
        for prompt, before, new, found in zip(prompts, written, fed, logits, strict=True):
            whole = theirs.model(torch.tensor([[*prompt, *before, *new]])).logits[0]
            torch.testing.assert_close(found, whole[len(whole) - len(new) :], rtol=1e-4, atol=1e-4)
        back = [int(torch.randint(n + 1, (1,), generator=generator)) for n in counts]
        ours.take_back(back)
        written = [w + new[: len(new) - b] for w, new, b in zip(written, fed, back, strict=True)]
        if step == 6 and len(prompts) > 1:
            rows = list(range(len(prompts)))[::-2]
            ours.keep(rows)
            prompts, written = [prompts[r] for r in rows], [written[r] for r in rows]


@torch.inference_mode()
def test_equal_prompts_and_a_common_beginning_are_read_once(decoders, monkeypatch):
    ours, _ = decoders
    seen = []
    forward = ours.forward
    monkeypatch.setattr(ours, "forward", lambda trunk, part: seen.append(part.ids.tolist()) or forward(trunk, part))
    ours.prefill([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 4]])
    assert seen == [[1, 2, 3, 4, 5]]
    assert ours.blocks * ours.read_keys[0].shape[2] <= 2 * 4  # and their keys are held once


@torch.inference_mode()
@pytest.mark.parametrize("exact_up_to", [0, 2**17])
def test_lower_precision_stays_close(tiny_language_model, monkeypatch, exact_up_to):
    monkeypatch.setattr(decoder, "_EXACT", exact_up_to)
    model = tiny_language_model[0]
    exact, rounded = LlamaDecoder(model, torch.float32), LlamaDecoder(model, torch.bfloat16)
    prompts = BATCHES["some prompts shared"]
    pairs = [(exact.prefill(prompts), rounded.prefill(prompts))]
    token = [[t] for t in range(len(prompts))]
    pairs += [(exact.step(token), rounded.step(token)) for _ in range(20)]
    assert rounded.new[0].dtype == (torch.float32 if exact_up_to else torch.bfloat16)
    for a, b in pairs:
        assert b.dtype == torch.bfloat16
        assert (a - b).norm() / a.norm() < 0.03


def test_adapter_is_added_and_the_model_is_left_alone(make_agent):
    networks = make_agent().networks
    with torch.no_grad():
        for parameter in networks.parameters("policy"):
            parameter.add_(0.05)
    before = copy.deepcopy(networks.model.state_dict())
    ours = LlamaDecoder(networks.model, torch.float32, "policy")
    with torch.inference_mode():
        merged = ours.prefill(PROMPTS)
        with networks.switched_to("policy"):
            expected = TransformersDecoder(networks.model).prefill(PROMPTS)
        with networks.switched_to("reference"):
            reference = TransformersDecoder(networks.model).prefill(PROMPTS)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    assert (merged - reference).abs().max() > 0.05
    assert all(torch.equal(v, before[k]) for k, v in networks.model.state_dict().items())


def by_hand(logits, temperature, top_k):
    """The log-probabilities [n, vocabulary] of tokens sampled at a temperature among the k likeliest."""
    least = logits.sort(descending=True).values[:, (top_k or logits.shape[-1]) - 1, None]
    weights = (logits / temperature).exp() * (logits >= least)
    return (weights / weights.sum(-1, keepdim=True)).log()


@pytest.mark.parametrize("temperature, top_k", [(1.0, 0), (0.7, 5), (2.0, 10**6)])
def test_log_probs_are_those_of_the_distribution_drawn_from(decoders, temperature, top_k):
    ours, theirs = decoders
    sampled = sample(ours, PROMPTS, 10**6, 4, torch.Generator().manual_seed(0), temperature, top_k)
    with torch.inference_mode():
        for prompt, action in zip(PROMPTS, sampled, strict=True):
            ids = torch.tensor([[*prompt, *action.tokens]])
            logits = theirs.model(ids).logits[0, len(prompt) - 1 : -1]
            expected = by_hand(logits, temperature, min(top_k, logits.shape[-1]))
            expected = expected.gather(-1, torch.tensor(action.tokens)[:, None])
            torch.testing.assert_close(torch.tensor(action.log_probs), expected[:, 0], rtol=1e-4, atol=1e-4)


def test_an_action_ends_with_the_end_token_and_rows_do_not_disturb_each_other(decoders):
    ours, _ = decoders
    alone = sample(ours, PROMPTS, 10**6, 30, torch.Generator().manual_seed(3))
    end = alone[1].tokens[2]
    ended = sample(ours, PROMPTS, end, 30, torch.Generator().manual_seed(3))
    assert ended[1].finished and ended[1].tokens == alone[1].tokens[: alone[1].tokens.index(end) + 1]
    for a, b in zip(alone, ended, strict=True):
        assert b.tokens == a.tokens[: len(b.tokens)]


def test_several_tokens_may_end_an_action(decoders):
    def sampled(end):
        return sample(decoders[0], PROMPTS[:1] * 40, end, 12, torch.Generator().manual_seed(3))

    plain, ends = [action.tokens for action in sampled(-1)], {7, 9, 30}  # no token is -1
    cut = [next((t[: i + 1] for i, token in enumerate(t) if token in ends), t) for t in plain]
    assert [action.tokens for action in sampled(ends)] == cut and {t[-1] for t in cut} & ends
    assert [action.finished for action in sampled(ends)] == [t[-1] in ends for t in cut]


def test_an_action_is_told_when_it_has_ended_not_after_the_last_one(decoders):
    ours, _ = decoders
    alone = sample(ours, PROMPTS, 10**6, 30, torch.Generator().manual_seed(3))
    steps, told, step = [], [], ours.step
    ours.step = lambda token: steps.append(token) or step(token)
    end = alone[1].tokens[2]
    sampled = sample(
        ours,
        PROMPTS,
        end,
        30,
        torch.Generator().manual_seed(3),
        ended=lambda *action: told.append((*action, len(steps))),
    )
    assert sorted(row for row, *_ in told) == [0, 1, 2]
    for row, action, taken in told:
        assert action == sampled[row] and taken == len(action.tokens) - 1
    assert told[0][2] < told[-1][2]


def test_draw_has_the_right_frequencies():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens = draw(probabilities.expand(1000, 4), uniform)
    assert torch.bincount(tokens, minlength=4).tolist() == [500, 0, 300, 200]


def test_draw_counts_rare_tokens_of_a_large_vocabulary_right():
    # Behind one likely token the others lie closer together than float32 tells numbers near 1 apart.
    rare = torch.full((49151,), 1e-9)
    probabilities = torch.cat([(1 - rare.sum()).view(1), rare])
    total = probabilities.double().sum()
    uniform = (1 - (torch.arange(200, dtype=torch.float64) + 0.5) * 1e-9 / total).flip(0)
    tokens = draw(probabilities.expand(200, -1), uniform)
    assert tokens.tolist() == list(range(48952, 49152))


def test_draw_never_takes_what_cannot_be_drawn():
    almost_one, zero = torch.tensor([1.0 - 2**-53], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for size in (4, 256, 1000):
        probabilities = torch.zeros(1, size)
        probabilities[0, 1:3] = torch.tensor([0.4, 0.6])
        assert draw(probabilities, almost_one).tolist() == [2]
        assert draw(probabilities, zero).tolist() == [1]
    probabilities = torch.zeros(1, 300)
    probabilities[0, 0], probabilities[0, 280] = 1.0, 3 * 2.0**-53  # their sum is rounded up
    assert draw(probabilities, torch.tensor([1.0 - 2**-51], dtype=torch.float64)).tolist() == [280]


class Guesser:
    """Stands in for `Drafts`: guesses by a function of the tokens written."""

    def __init__(self, guess):
        self._guess = guess

    def guess(self, written, most):
        return self._guess(tuple(written))[:most]


def test_guesses_right_or_wrong_change_nothing_but_the_number_of_passes(decoders):
    ours, _ = decoders
    passes, step = [], ours.step
    ours.step = lambda tokens: passes.append(tokens) or step(tokens)
    prompts = [*PROMPTS, PROMPTS[0]]

    def sampled(guess, end, prompts=prompts):
        passes.clear()
        generator, told = torch.Generator().manual_seed(3), []
        drafts = None if guess is None else Guesser(guess)
        actions = sample(ours, prompts, end, 30, generator, ended=lambda *a: told.append(a), drafts=drafts)
        assert sorted(row for row, _ in told) == list(range(len(prompts)))
        assert all(actions[row] == action for row, action in told)
        return actions, torch.rand(1, generator=generator), len(passes)

    # All run to the limit; some end before; a single one ends before, perhaps within a guess.
    ends = [sampled(None, 10**6, p)[0][0].tokens[7] for p in (prompts, prompts[:1])]
    cases = [(10**6, prompts), (ends[0], prompts), (ends[1], prompts[:1])]
    whole = {}

    def right(written):
        return list(whole[written][len(written) :]) if written in whole else []

    noise = torch.Generator().manual_seed(0)
    guesses = {
        "right": right,
        "wrong": lambda written: [(t + 1) % 30 for t in right(written)],
        "right, then wrong": lambda written: [t if i < 2 else 0 for i, t in enumerate(right(written))],
        "any": lambda written: torch.randint(30, (int(torch.randint(4, (1,), generator=noise)),)).tolist(),
    }
    for case in cases:
        expected = sampled(None, *case)
        whole = {action.tokens[:i]: action.tokens for action in sampled(None, 10**6, case[1])[0] for i in range(31)}
        for name, guess in guesses.items():
            actions, number, taken = sampled(guess, *case)
            for a, b in zip(actions, expected[0], strict=True):
                assert a.tokens == b.tokens and a.finished == b.finished, name
                assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5), name
            assert number == expected[1], name  # the generator is where it would have been
            assert taken <= expected[2] and (name != "right" or taken <= 2), name


@pytest.mark.parametrize("guessed", [False, True])
@pytest.mark.parametrize("temperature, top_k", [(1.0, 0), (0.6, 4)])
def test_sampled_sequences_have_the_right_distribution(temperature, top_k, guessed):
    torch.manual_seed(0)
    shape = dict(vocab_size=6, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(**shape, num_key_value_heads=2, initializer_range=0.4, eos_token_id=5)
    model = LlamaForCausalLM(config).eval()
    prompts, end, limit, count = [[1, 2, 3], [1, 4]], 5, 3, 2000
    sampled = sample(
        LlamaDecoder(model, torch.float32),
        [p for p in prompts for _ in range(count)],
        end,
        limit,
        torch.Generator().manual_seed(0),
        temperature,
        top_k,
        drafts=Guesser(lambda written: [3, 1, 5, 2][len(written) :]) if guessed else None,
    )
    # Every sequence that can be written, with its probability by transformers.
    sequences = [
        s for n in range(1, limit + 1) for s in itertools.product(range(6), repeat=n)
        if end not in s[:-1] and (n == limit or s[-1] == end)
    ]  # fmt: skip
    for i, prompt in enumerate(prompts):
        counts = Counter(s.tokens for s in sampled[i * count : (i + 1) * count])
        expected = []
        padded = [[*prompt, *sequence, *[0] * (limit - len(sequence))] for sequence in sequences]
        with torch.no_grad():
            all_logits = model(torch.tensor(padded)).logits[:, len(prompt) - 1 : -1]
        for sequence, logits in zip(sequences, all_logits, strict=True):
            steps = by_hand(logits[: len(sequence)], temperature, top_k)
            expected.append(steps.gather(-1, torch.tensor(sequence)[:, None]).sum().exp().item() * count)
        assert sum(expected) == pytest.approx(count, rel=1e-5)
        assert not {s for s, e in zip(sequences, expected, strict=True) if e == 0} & set(counts)
        common = [(counts[s], e) for s, e in zip(sequences, expected, strict=True) if e >= 5]
        assert len(common) > 10
        seen, means = zip(*common, strict=True)
        rest = (count - sum(seen), count - sum(means))
        assert chisquare([*seen, rest[0]], [*means, rest[1]]).pvalue > 1e-3


def test_other_architectures_are_sampled_through_transformers():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    for prompt, action in zip(
        PROMPTS, sample(TransformersDecoder(model), PROMPTS, 3, 20, torch.Generator().manual_seed(0)), strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *action.tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(action.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(action.log_probs), expected, rtol=1e-4, atol=1e-4)


def test_the_benchmark_runs(tmp_path, capsys):
    file = tmp_path / "rollout.csv"
    small = ["--small", "--batches", "2", "4", "--limit", "8", "--repeats", "1", "--csv", str(file)]
    rows = rollout.main(small)
    ran = ["limit", "our decoder", "transformers generate", "generate to the limit"]
    assert [r["run"] for r in rows[:3]] == ran[:3] and [r["run"] for r in rows[-4:]] == ran
    assert {(r["workload"], r["batch"]) for r in rows} == {(k, b) for k in ("equal", "mixed") for b in (2, 4)}
    assert len(file.read_text().splitlines()) == 1 + len(rows) == 15
    assert "useful_tokens_s" in capsys.readouterr().out


def test_a_stop_rule_ends_an_action_as_end_tokens_do(decoders):
    ends, right = range(0, 1536, 7), Drafts()

    def sampled(end_token, stops, drafts=None):
        generator = torch.Generator().manual_seed(0)
        found = sample(decoders[0], [PROMPTS[0]] * 6, end_token, 30, generator, drafts=drafts, stops=stops)
        return [(s.tokens, s.finished) for s in found], generator.get_state()

    by_token, state = sampled(set(ends), None)
    right.observe([tokens for tokens, _ in by_token] * 2)
    for drafts in (None, right):
        by_rule, same = sampled(-1, lambda tokens: tokens[-1] in ends, drafts)
        assert by_rule == by_token and torch.equal(state, same)
    assert any(finished and 1 < len(tokens) < 30 for tokens, finished in by_token)
