"""`etpo_core.bellman` on small arrays worked out by hand, at the edge of the number formats, and on bad input."""

import math

import pytest
import torch
from hypothesis import example as always
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from etpo_core import bellman

INF, NAN, LN2 = math.inf, math.nan, math.log(2)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, tolerance=1e-14):
    torch.testing.assert_close(actual, f64(expected), rtol=tolerance, atol=tolerance)


def batch(seed, rows, tokens):
    """Random arguments of `lambda_targets`, with importance and baseline, valid everywhere (padding too)."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return {
        "expected_q": normal(rows, tokens),
        "kl": normal(rows, tokens).abs(),
        "lengths": torch.randint(1, tokens + 1, (rows,), generator=g),
        "reward": normal(rows),
        "terminated": torch.rand(rows, generator=g) < 0.5,
        "next_soft_value": normal(rows),
        "importance": normal(rows, tokens).exp(),
        "baseline": normal(rows, tokens),
    }


PER_TOKEN = ("expected_q", "kl", "importance", "baseline")
SCALARS = {"beta": 0.3, "gamma": 0.9, "lam": 0.7}
quick = settings(max_examples=25, deadline=None)


def shapes(test):
    """Batches that hypothesis draws, and the smallest and a large one, which are always tried, see CONTRIBUTING."""
    drawn = given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), tokens=st.integers(1, 6))(test)
    return always(seed=0, rows=1, tokens=1)(always(seed=1, rows=5, tokens=6)(drawn))


class TestPositionMask:
    def test_by_hand(self):
        mask = bellman.position_mask(torch.tensor([1, 3, 2]), 3)
        assert mask.tolist() == [[True, False, False], [True, True, True], [True, True, False]]

    @pytest.mark.parametrize("lengths", [[0, 1], [1, 4]])
    def test_length_out_of_range(self, lengths):
        with pytest.raises(ValueError, match=r"lengths: shape \(2,\) holds .* expected 1 to 3"):
            bellman.position_mask(torch.tensor(lengths), 3)


class TestKl:
    def test_by_hand(self):
        policy, reference = f64([0.5, 0.25, 0.25]).log(), f64([0.25, 0.5, 0.25]).log()
        # 1/2 ln(2) + 1/4 ln(1/2) + 1/4 ln(1) = 1/4 ln 2; logits may be shifted
        close(bellman.kl_divergence(policy + 3, reference - 5), LN2 / 4)

    def test_direction(self):
        policy, reference = f64([0.75, 0.25]).log(), f64([0.5, 0.5]).log()
        close(bellman.kl_divergence(policy, reference), 0.75 * math.log(1.5) + 0.25 * math.log(0.5))

    def test_forbidden_tokens(self):
        same = bellman.kl_divergence(f64([0.0, 0.0, -INF]), f64([0.0, 0.0, -INF]))
        only_policy = bellman.kl_divergence(f64([0.0, 0.0, -INF, -INF]), f64([0.0, 0.0, 0.0, 0.0]))
        only_reference = bellman.kl_divergence(f64([0.0, 0.0]), f64([0.0, -INF]))
        close(torch.stack([same, only_policy]), [0, LN2])
        assert only_reference == INF

    def test_a_forbidden_token_counts_however_improbable(self):
        """π allows token 1 with a probability of e^-200, which is 0 in float32, and ρ forbids it."""
        policy = torch.tensor([[0.0, -200.0], [0.0, -INF], [0.0, -1.0]], requires_grad=True)
        reference = torch.tensor([[0.0, -INF], [0.0, -INF], [0.0, -INF]], requires_grad=True)
        kl = bellman.kl_divergence(policy, reference)
        assert kl.tolist() == [INF, 0, INF]
        kl.sum().backward()  # where KL is +inf it is constant, so nothing comes from there, and no NaN
        assert policy.grad.tolist() == [[0, 0]] * 3 and reference.grad.tolist() == [[0, 0]] * 3

    def test_any_leading_shape(self):
        policy, reference = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
        whole = bellman.kl_divergence(policy, reference)
        assert whole.shape == (2, 3, 4)
        assert torch.allclose(whole[1, 2, 3], bellman.kl_divergence(policy[1, 2, 3], reference[1, 2, 3]))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("vocabulary", [2, 150_000])
    @pytest.mark.parametrize("scale", [1.0, 1e4])
    def test_low_precision_in_wide_sums(self, dtype, vocabulary, scale):
        g = torch.Generator().manual_seed(0)
        policy = (scale * torch.randn(3, vocabulary, generator=g)).clamp(-1e4, 1e4).to(dtype)
        reference = (scale * torch.randn(3, vocabulary, generator=g)).clamp(-1e4, 1e4).to(dtype)
        policy[:, 1:2], reference[:, 1:2] = -INF, -INF
        kl = bellman.kl_divergence(policy, reference)
        assert kl.dtype == torch.float32
        exact = bellman.kl_divergence(policy.double(), reference.double())
        torch.testing.assert_close(kl, exact.float(), rtol=2e-5, atol=2e-5)
        assert (kl >= 0).all() and torch.isfinite(kl).all()

    def test_the_far_ends(self):
        kl = bellman.kl_divergence(torch.tensor([1e4, -1e4]), torch.tensor([-1e4, 1e4]))
        assert kl == 2e4

    def test_zero_at_the_start(self):
        logits = torch.randn(4, 1000, dtype=torch.bfloat16)
        assert (bellman.kl_divergence(logits, logits) == 0).all()

    def test_gradient_close_to_the_reference(self):
        """d KL / d logit = π (log π/ρ - KL), also where rounding would leave the sum below 0."""
        g = torch.Generator().manual_seed(0)
        reference = torch.randn(500, 40, generator=g)
        policy = (reference + 1e-4 * torch.randn(500, 40, generator=g)).requires_grad_()
        kl = bellman.kl_divergence(policy, reference)
        kl.sum().backward()
        log_ratio = torch.log_softmax(policy.double(), -1) - torch.log_softmax(reference.double(), -1)
        pi = torch.softmax(policy.double(), -1)
        exact = pi * (log_ratio - (pi * log_ratio).sum(-1, keepdim=True))
        assert (kl == 0).sum() > 100 and (kl >= 0).all()  # many rows are rounded up
        error = (policy.grad - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert error.max() < 0.03  # float32 logits carry the log-ratio of 1e-4 to about this

    def test_gradient_has_no_nan_where_tokens_are_forbidden(self):
        policy = torch.tensor([1e4, -1e4, -INF, 3.0], requires_grad=True)
        bellman.kl_divergence(policy, torch.tensor([-1e4, 1e4, -INF, 0.0])).backward()
        assert torch.isfinite(policy.grad).all()


class TestTokensTaken:
    logits = f64([[[0.5, 0.25, 0.25], [0.25, 0.75, 0.0]]]).log()

    def test_taken_by_hand(self):
        q = f64([[[1, 2, 3], [4, 5, 6]]])
        close(bellman.taken(q, torch.tensor([[2, 0]])), [[3, 4]])

    def test_log_prob_by_hand(self):
        close(bellman.token_log_prob(self.logits + 7, torch.tensor([[0, 1]])), [[-LN2, math.log(0.75)]])
        assert bellman.token_log_prob(self.logits, torch.tensor([[0, 2]])).tolist()[0][1] == -INF

    def test_small_integer_types_and_half_precision(self):
        logits = torch.zeros(2, 4, dtype=torch.bfloat16)
        log_prob = bellman.token_log_prob(logits, torch.tensor([3, 0], dtype=torch.int16))
        assert log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob, torch.full((2,), -2 * LN2))

    def test_gradient_by_hand(self):
        logits = self.logits[0, :1].clone().requires_grad_()
        bellman.token_log_prob(logits, torch.tensor([1])).sum().backward()
        close(logits.grad, [[-0.5, 0.75, -0.25]])  # 1 at the token taken, less π

    @pytest.mark.parametrize("token", [-1, 3])
    def test_a_token_outside_the_vocabulary(self, token):
        with pytest.raises(ValueError, match=r"tokens: shape \(1, 2\) holds .* expected 0 to 2"):
            bellman.token_log_prob(self.logits, torch.tensor([[0, token]]))


class TestExpectedQ:
    def test_by_hand(self):
        logits = f64([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]]).log()
        close(bellman.expected_q(logits, f64([[4, 2, -2], [4, 2, -2]])), [2, 0.5])

    def test_q_of_a_forbidden_token_is_ignored(self):
        close(bellman.expected_q(f64([0.0, -INF]), f64([3.0, -INF])), 3)
        close(bellman.expected_q(f64([0.0, -INF]), f64([3.0, INF])), 3)

    def test_bfloat16_is_summed_wide(self):
        logits = torch.zeros(150_000, dtype=torch.bfloat16)
        q = torch.full((150_000,), 0.5, dtype=torch.bfloat16)
        mean = bellman.expected_q(logits, q)
        assert mean.dtype == torch.float32 and abs(mean - 0.5) < 1e-5

    def test_overlap(self):
        policy, behaviour = f64([0.5, 0.25, 0.25]).log(), f64([0.25, 0.75, 0.0]).log()
        # minima 1/4, 1/4, 0: the mean of 4 and 2
        close(bellman.overlap_q(policy, behaviour, f64([4, 2, -2])), 3)
        close(bellman.overlap_q(policy, policy, f64([4, 2, -2])), 2)
        close(bellman.overlap_q(f64([0.0, -INF]), f64([-INF, 0.0]), f64([4, 2])), 0)


class TestSoftValue:
    def test_by_hand(self):
        close(bellman.soft_value(f64([2, 1]), f64([4, 0]), 0.25), [1, 1])


class TestTokenTargets:
    soft_values = f64([[9, 1, 2], [5, NAN, NAN], [3, 4, NAN]])
    rest = (
        torch.tensor([3, 1, 2]),
        f64([1, -1, 0.5]),
        torch.tensor([True, False, False]),
        f64([NAN, 2, 4]),
        0.5,
    )

    def test_by_hand(self):
        # row 0 terminates; rows 1 (one token) and 2 bootstrap: -1 + 0.5 * 2 and 0.5 + 0.5 * 4
        close(bellman.token_targets(self.soft_values, *self.rest), [[1, 2, 1], [0, 0, 0], [4, 2.5, 0]])

    def test_inner_discount_by_hand(self):
        targets = bellman.token_targets(self.soft_values, *self.rest, inner_discount=0.5)
        close(targets, [[0.5, 1, 1], [0, 0, 0], [2, 2.5, 0]])

    def test_termination_ends_and_truncation_bootstraps(self):
        for terminated, last in ((True, 1.0), (False, 1.0 + 0.5 * 8)):
            targets = bellman.token_targets(
                f64([[0.0, 7.0]]), torch.tensor([2]), f64([1.0]), torch.tensor([terminated]), f64([8.0]), 0.5
            )
            close(targets, [[7.0, last]])


class TestLambdaTargets:
    # one action of three tokens: V = E[Q] - 0.5 KL = ., 2, 2; it ends with reward 1
    example = {
        "expected_q": f64([[9, 3, 4]]),
        "kl": f64([[1, 2, 4]]),
        "lengths": torch.tensor([3]),
        "reward": f64([1]),
        "terminated": torch.tensor([True]),
        "next_soft_value": f64([NAN]),
        "beta": 0.5,
        "gamma": 0.9,
    }

    def test_half_by_hand(self):
        # y1 = 2 + 0.5 (1 - 4) = 0.5, y0 = 2 + 0.5 (0.5 - 3) = 0.75
        close(bellman.lambda_targets(**self.example, lam=0.5), [[0.75, 0.5, 1]])

    def test_a_discount_between_tokens_by_hand(self):
        # y1 = 0.8 (2 + 0.5 (1 - 4)) = 0.4, y0 = 0.8 (2 + 0.5 (0.4 - 3)) = 0.56
        close(bellman.lambda_targets(**self.example, lam=0.5, inner_discount=0.8), [[0.56, 0.4, 1]])
        with pytest.raises(ValueError, match="inner_discount: got 1.1, expected a finite number between 0 and 1"):
            bellman.lambda_targets(**self.example, lam=0.5, inner_discount=1.1)

    def test_one_is_the_return_by_hand(self):
        # y1 = 1 - 0.5 * 4, y0 = y1 - 0.5 * 2
        close(bellman.lambda_targets(**self.example, lam=1.0), [[-2, -1, 1]])

    def test_weights_are_truncated_by_hand(self):
        # c = ., min(1, 4), min(1, 0.5): y1 = 2 + 0.5 (1 - 4) = 0.5, y0 = 2 + 1 (0.5 - 3) = -0.5
        importance = f64([[7, 4, 0.5]])
        close(bellman.lambda_targets(**self.example, lam=1.0, importance=importance), [[-0.5, 0.5, 1]])

    def test_baseline_by_hand(self):
        # y1 = 2 + 0.5 (1 - 2) = 1.5, y0 = 2 + 1 (1.5 - 1) = 2.5
        targets = bellman.lambda_targets(
            **self.example, lam=1.0, importance=f64([[1, 4, 0.5]]), baseline=f64([[0, 1, 2]])
        )
        close(targets, [[2.5, 1.5, 1]])

    @quick
    @always(seed=0, lam=0.0)
    @always(seed=0, lam=0.4)
    @always(seed=0, lam=1.0)
    @given(seed=st.integers(0, 10_000), lam=st.sampled_from([0.0, 0.4, 1.0]))
    def test_two_short_actions_are_one_long_one(self, seed, lam):
        """With γ = 1 and no reward between them, if the first bootstraps from what the second hands back."""
        b = batch(seed, 1, 6)
        b["lengths"] = torch.tensor([6])
        scalars = {"beta": 0.3, "gamma": 1.0, "lam": lam}
        whole = bellman.lambda_targets(**b, **scalars)
        later = b | {name: b[name][:, 3:] for name in PER_TOKEN} | {"lengths": torch.tensor([3])}
        second = bellman.lambda_targets(**later, **scalars)
        weight = lam * later["importance"][:, 0].clamp(max=1)
        back = later["expected_q"][:, 0] - 0.3 * later["kl"][:, 0] + weight * (second[:, 0] - later["baseline"][:, 0])
        earlier = later | {name: b[name][:, :3] for name in PER_TOKEN}
        earlier |= {"reward": f64([0]), "terminated": torch.tensor([False]), "next_soft_value": back}
        first = bellman.lambda_targets(**earlier, **scalars)
        torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-13, atol=1e-13)

    @quick
    @shapes
    def test_zero_is_the_one_step_backup(self, seed, rows, tokens):
        b = batch(seed, rows, tokens)
        lam = bellman.lambda_targets(**b, **(SCALARS | {"lam": 0.0}))
        values = bellman.soft_value(b["expected_q"], b["kl"], 0.3)
        one = bellman.token_targets(values, b["lengths"], b["reward"], b["terminated"], b["next_soft_value"], 0.9)
        assert torch.equal(lam, one)

    @quick
    @shapes
    def test_one_is_the_monte_carlo_return(self, seed, rows, tokens):
        b = batch(seed, rows, tokens)
        del b["importance"], b["baseline"]
        targets = bellman.lambda_targets(**b, **(SCALARS | {"lam": 1.0}))
        for i in range(rows):
            onward = 0.0 if b["terminated"][i] else 0.9 * b["next_soft_value"][i].item()
            for j in range(b["lengths"][i]):
                later = b["kl"][i, j + 1 : b["lengths"][i]].sum().item()
                expected = b["reward"][i].item() - 0.3 * later + onward
                assert targets[i, j].item() == pytest.approx(expected, abs=1e-12)

    @quick
    @shapes
    def test_importance_of_one_changes_nothing(self, seed, rows, tokens):
        b = batch(seed, rows, tokens)
        del b["importance"]
        with_ones = bellman.lambda_targets(**b, **SCALARS, importance=torch.ones(rows, tokens).double())
        assert torch.equal(with_ones, bellman.lambda_targets(**b, **SCALARS))


class TestActionTargets:
    def test_by_hand(self):
        targets = bellman.action_targets(
            torch.tensor([3, 1]), 3, f64([1, -1]), torch.tensor([True, False]), f64([NAN, 2]), 0.5
        )
        close(targets, [[1, 1, 1], [0, 0, 0]])

    def test_agrees_with_the_token_targets_at_the_last_token(self):
        b = batch(3, 5, 4)
        rest = (b["reward"], b["terminated"], b["next_soft_value"], 0.9)
        action = bellman.action_targets(b["lengths"], 4, *rest)
        token = bellman.token_targets(b["expected_q"], b["lengths"], *rest)
        last = (b["lengths"] - 1)[:, None]
        assert torch.equal(action.gather(1, last), token.gather(1, last))


class TestBatches:
    """What must hold for any batch, whatever the numbers are."""

    @quick
    @shapes
    def test_a_batch_of_one_equals_a_batch_of_many(self, seed, rows, tokens):
        b = batch(seed, rows, tokens)
        whole = bellman.lambda_targets(**b, **SCALARS)
        for i in range(rows):
            alone = bellman.lambda_targets(**{name: v[i : i + 1] for name, v in b.items()}, **SCALARS)
            assert torch.equal(alone[0], whole[i])

    @quick
    @shapes
    def test_order_of_the_batch(self, seed, rows, tokens):
        b = batch(seed, rows, tokens)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        shuffled = bellman.lambda_targets(**{name: v[order] for name, v in b.items()}, **SCALARS)
        assert torch.equal(shuffled, bellman.lambda_targets(**b, **SCALARS)[order])

    @quick
    @shapes
    @pytest.mark.parametrize("junk", [NAN, INF, -1e30])
    def test_padding_is_never_read(self, junk, seed, rows, tokens):
        b = batch(seed, rows, tokens)
        padding = ~bellman.position_mask(b["lengths"], tokens)
        dirty = {n: v.masked_fill(padding, junk) if n in PER_TOKEN else v for n, v in b.items()}
        dirty["next_soft_value"] = b["next_soft_value"].masked_fill(b["terminated"], junk)
        targets = bellman.lambda_targets(**dirty, **SCALARS)
        assert torch.equal(targets, bellman.lambda_targets(**b, **SCALARS))
        assert (targets[padding] == 0).all()
        wider = {n: torch.nn.functional.pad(v, (0, 3), value=junk) if n in PER_TOKEN else v for n, v in dirty.items()}
        assert torch.equal(bellman.lambda_targets(**wider, **SCALARS)[:, :tokens], targets)


class TestGradients:
    def test_gradcheck(self):
        torch.manual_seed(0)
        policy = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
        other = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
        q = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
        assert gradcheck(bellman.kl_divergence, (policy, other))
        assert gradcheck(bellman.expected_q, (policy, q))
        assert gradcheck(bellman.overlap_q, (policy, other, q))

    def test_gradcheck_of_targets(self):
        b = batch(1, 3, 4)
        b["importance"] = torch.full_like(b["importance"], 0.6)
        free = [b[name].requires_grad_() for name in ("expected_q", "kl", "reward", "next_soft_value", "baseline")]

        def targets(expected_q, kl, reward, next_soft_value, baseline):
            given = b | dict(
                expected_q=expected_q, kl=kl, reward=reward, next_soft_value=next_soft_value, baseline=baseline
            )
            return bellman.lambda_targets(**given, **SCALARS)

        assert gradcheck(targets, free)


def tokens_call(**change):
    example = {
        "soft_values": torch.zeros(2, 3),
        "lengths": torch.tensor([3, 2]),
        "reward": torch.zeros(2),
        "terminated": torch.tensor([True, False]),
        "next_soft_value": torch.zeros(2),
        "gamma": 0.9,
    }
    return bellman.token_targets(**(example | change))


def lambda_call(**change):
    given = batch(0, 2, 3) | SCALARS
    return bellman.lambda_targets(**(given | change))


class TestErrors:
    """A message names the argument, says its shape and what was expected."""

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda: tokens_call(reward=torch.zeros(3)), r"reward: shape \(3,\), expected \[2\]"),
            (lambda: tokens_call(reward=torch.zeros(2, 1)), r"reward: shape \(2, 1\), expected \[2\]"),
            (lambda: tokens_call(reward=torch.zeros(2).long()), r"reward: shape \(2,\) of torch.int64"),
            (lambda: tokens_call(reward=torch.tensor([0, NAN])), r"reward: shape \(2,\) holds NaN"),
            (lambda: tokens_call(next_soft_value=torch.tensor([0, NAN])), "next_soft_value: .* holds NaN"),
            (
                lambda: tokens_call(terminated=torch.zeros(2)),
                r"terminated: shape \(2,\) of torch.float32, expected torch.bool",
            ),
            (lambda: tokens_call(lengths=torch.tensor([3.0, 2.0])), "lengths: .* expected an integer dtype"),
            (lambda: tokens_call(lengths=torch.tensor([3, 2, 1])), r"lengths: shape \(3,\), expected \[2\]"),
            (lambda: tokens_call(lengths=torch.tensor([4, 1])), r"lengths: .* expected 1 to 3"),
            (lambda: tokens_call(soft_values=torch.zeros(6)), r"soft_values: .* expected \[batch, tokens\]"),
            (lambda: tokens_call(soft_values=torch.full((2, 3), NAN)), r"soft_values: shape \(2, 3\) holds NaN"),
            (lambda: tokens_call(soft_values=[[0.0]]), "soft_values: got list, expected a tensor"),
            (lambda: tokens_call(gamma=1.5), "gamma: got 1.5, expected a finite number between 0 and 1"),
            (lambda: tokens_call(inner_discount=-0.1), "inner_discount: got -0.1"),
            (lambda: lambda_call(kl=torch.zeros(2, 4)), r"kl: shape \(2, 4\), expected \[2, 3\]"),
            (lambda: lambda_call(lam=NAN), "lam: got nan, expected"),
            (lambda: lambda_call(beta=-1.0), "beta: got -1.0, expected a finite number of at least 0"),
            (lambda: lambda_call(importance=-torch.ones(2, 3)), r"importance: shape \(2, 3\) holds NaN or neg"),
            (lambda: lambda_call(importance=torch.full((2, 3), NAN)), "importance: .* holds NaN"),
            (lambda: lambda_call(baseline=torch.full((2, 3), NAN)), "baseline: .* holds NaN"),
            (
                lambda: bellman.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 4)),
                r"reference_logits: shape \(2, 4\), expected \[2, 3\]",
            ),
            (
                lambda: bellman.kl_divergence(torch.tensor([0.0, NAN]), torch.zeros(2)),
                r"policy_logits: shape \(2,\) holds NaN or \+inf",
            ),
            (
                lambda: bellman.kl_divergence(torch.zeros(2), torch.tensor([0.0, INF])),
                r"reference_logits: shape \(2,\) holds NaN or \+inf",
            ),
            (lambda: bellman.kl_divergence(torch.zeros(2).long(), torch.zeros(2)), "policy_logits: .*floating"),
            (lambda: bellman.kl_divergence(torch.full((2,), -INF), torch.zeros(2)), "policy_logits: .*row of -inf"),
            (lambda: bellman.expected_q(torch.zeros(2), torch.tensor([NAN, 0.0])), r"q: shape \(2,\) holds NaN"),
            (lambda: bellman.expected_q(torch.zeros(2), torch.zeros(3)), r"q: shape \(3,\), expected \[2\]"),
            (lambda: bellman.expected_q(torch.tensor(1.0), torch.tensor(1.0)), "policy_logits: .*vocabulary"),
            (
                lambda: bellman.overlap_q(torch.zeros(2), torch.tensor([NAN, 0.0]), torch.zeros(2)),
                "behaviour_logits: .* holds NaN",
            ),
            (lambda: bellman.kl_divergence(torch.zeros(2), torch.full((2,), -INF)), "reference_logits: .*row of -inf"),
            (
                lambda: bellman.overlap_q(torch.tensor([NAN, 0.0]), torch.zeros(2), torch.zeros(2)),
                "policy_logits: .* holds NaN",
            ),
            (lambda: bellman.expected_q(torch.zeros(2), torch.tensor([INF, -INF])), r"q: shape \(2,\) holds .*\+inf"),
            (lambda: bellman.soft_value(torch.zeros(2), torch.tensor([NAN, 0.0]), 0.1), "kl: .* holds NaN"),
            (
                lambda: bellman.soft_value(torch.tensor([INF]), torch.tensor([INF]), 0.1),
                "expected_q: .* holds NaN or infinity",
            ),
            (lambda: bellman.taken(torch.zeros(2, 3), torch.tensor([0])), r"tokens: shape \(1,\), expected \[2\]"),
            (lambda: bellman.taken(torch.zeros(2, 3), torch.zeros(2)), "tokens: .* expected an integer dtype"),
            (lambda: bellman.token_log_prob(torch.tensor([[NAN, 0.0]]), torch.tensor([0])), "logits: .* holds NaN"),
            (lambda: bellman.position_mask(torch.tensor([1]), 0), "tokens: got 0"),
        ],
    )
    def test_message(self, call, words):
        with pytest.raises(ValueError, match=words):
            call()
