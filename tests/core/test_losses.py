"""`etpo_core.losses` on small arrays worked out by hand, their gradients, extreme numbers and bad input."""

import math

import pytest
import torch
from hypothesis import example as always
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from etpo_core import bellman, losses

INF, NAN, LN2 = math.inf, math.nan, math.log(2)
quick = settings(max_examples=25, deadline=None)


def seeds(test):
    """Seeds that hypothesis draws, and two that are always tried, see CONTRIBUTING."""
    return always(0)(always(1)(given(st.integers(0, 10_000))(test)))


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


def close(actual, expected, tolerance=1e-14):
    torch.testing.assert_close(actual, f64(expected), rtol=tolerance, atol=tolerance)


def prefixes(seed, rows=3, vocabulary=5):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, vocabulary, generator=g, dtype=torch.float64) for _ in range(3)]


def policy_gradient(policy, reference, q, beta):
    policy = policy.clone().requires_grad_()
    losses.policy_loss(policy, reference, q, beta).sum().backward()
    return policy.grad


class TestCriticLoss:
    def test_square_by_hand(self):
        close(losses.critic_loss(f64([1, 2]), f64([3, 1.5])), [4, 0.25])

    def test_huber_by_hand(self):
        # within 2 the square; beyond, 2 (2 |e| - 2): also for large errors below, 16 for e = -5
        close(losses.critic_loss(f64([0, 0, 0]), f64([1, 5, -5]), huber_delta=2), [1, 16, 16])

    def test_huber_pulls_from_both_sides(self):
        q = f64([0, 0]).requires_grad_()
        losses.critic_loss(q, f64([50, -50]), huber_delta=10).sum().backward()
        close(q.grad, [-20, 20])

    def test_masked_elements_are_not_read(self):
        q = f64([1, NAN, 5]).requires_grad_()
        loss = losses.critic_loss(q, f64([3, NAN, INF]), mask=torch.tensor([True, False, False]))
        loss.sum().backward()
        close(loss, [4, 0, 0])
        close(q.grad, [-4, 0, 0])

    def test_no_gradient_into_the_targets(self):
        q, targets = f64([1.0]).requires_grad_(), f64([3.0]).requires_grad_()
        losses.critic_loss(q, targets).sum().backward()
        assert targets.grad is None and q.grad is not None

    def test_gradcheck(self):
        q = f64([0.3, 4.0, -7.0]).requires_grad_()
        assert gradcheck(lambda q: losses.critic_loss(q, f64([0, 0, 0])), q)
        assert gradcheck(lambda q: losses.critic_loss(q, f64([0, 0, 0]), huber_delta=1.5), q)

    def test_none_through_the_policy(self):
        """Targets that a policy made, and a centre that a policy made, send nothing back into it."""
        policy, critic, reference = (x.requires_grad_() for x in prefixes(0))
        value = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        q = losses.q_dueling(value, critic, reference, policy, 0.5)
        targets = bellman.soft_value(bellman.expected_q(policy, q), bellman.kl_divergence(policy, reference), 0.5)
        losses.critic_loss(q[:, 0], targets).sum().backward()
        assert policy.grad is None and reference.grad is None
        assert critic.grad.abs().sum() > 0 and value.grad.abs().sum() > 0


class TestTargetPolicy:
    def test_by_hand(self):
        # ρ exp(Q/β) = 1/2, 1/4 * 2, 1/4 * 4 -> 1/4, 1/4, 1/2 after division by Z = 2
        reference = f64([0.5, 0.25, 0.25]).log()
        q = f64([0, 3 * LN2, 6 * LN2])
        close(losses.target_policy_logits(reference, q, 3.0).exp(), [0.25, 0.25, 0.5])

    def test_forbidden_tokens_stay_forbidden(self):
        log_target = losses.target_policy_logits(f64([0.0, 0.0, -INF]), f64([1, 1, 9]), 1.0)
        close(log_target, [-LN2, -LN2, -INF])

    @quick
    @seeds
    def test_large_beta_gives_the_reference(self, seed):
        reference, q, _ = prefixes(seed)
        gap = losses.target_policy_logits(reference, q, 1e9).exp() - torch.softmax(reference, dim=-1)
        assert gap.abs().max() < 1e-7

    @quick
    @seeds
    def test_small_beta_gives_the_argmax(self, seed):
        reference, q, _ = prefixes(seed)
        target = losses.target_policy_logits(reference, q, 1e-6).exp()
        assert torch.equal(target.argmax(-1), q.argmax(-1)) and (target.amax(-1) > 1 - 1e-9).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("beta", [1e-30, 1e-40, 1e-46, 1e-300])
    def test_tiny_beta_gives_the_reference_among_the_best(self, dtype, beta):
        """Also where float32 rounds β to 0: the best two tokens keep ρ's odds of 1 to 3."""
        reference, q = f64([0.2, 0.2, 0.6, 0.0]).log().to(dtype), f64([1, 2, 2, 9]).to(dtype)
        target = losses.target_policy_logits(reference, q, beta)
        torch.testing.assert_close(target.exp().double(), f64([0, 0.25, 0.75, 0]), rtol=1e-6, atol=0)

    def test_tiny_beta_with_tiny_differences(self):
        """Q differs by 1e-45 = 2β: π* is 1/(1 + e²), e²/(1 + e²)."""
        q = torch.tensor([0.0, 1e-45])
        target = losses.target_policy_logits(torch.zeros(2), q, q[1].item() / 2).exp()
        torch.testing.assert_close(target.double(), f64([0.11920292, 0.88079708]), rtol=1e-6, atol=0)

    def test_huge_beta_gives_the_reference_where_q_allows(self):
        target = losses.target_policy_logits(torch.zeros(3), torch.tensor([1.0, 2.0, -INF]), 1e300)
        torch.testing.assert_close(target.double(), f64([-LN2, -LN2, -INF]), rtol=1e-6, atol=0)

    def test_gradient_reaches_the_best_token_too(self):
        q = f64([0.0, 0.0]).requires_grad_()
        losses.target_policy_logits(f64([0.0, 0.0]), q, 0.5)[1].backward()
        close(q.grad, [-1, 1])  # (1 - π*) / β and -π* / β


class TestPolicyLoss:
    def test_by_hand(self):
        # target 1/4, 1/4, 1/2 as above; π = 1/2, 1/4, 1/4: 1/2 ln 2 + 0 + 1/4 ln(1/2) = 1/4 ln 2
        reference, q = f64([0.5, 0.25, 0.25]).log(), f64([0, 3 * LN2, 6 * LN2])
        policy = f64([0.5, 0.25, 0.25]).log()
        close(losses.policy_loss(policy, reference, q, 3.0), LN2 / 4)

    def test_gradient_by_hand(self):
        # π (log π/π* - loss): 1/2 (ln 2 - 1/4 ln 2), 1/4 (0 - 1/4 ln 2), 1/4 (-ln 2 - 1/4 ln 2)
        reference, q = f64([0.5, 0.25, 0.25]).log(), f64([0, 3 * LN2, 6 * LN2])
        gradient = policy_gradient(f64([0.5, 0.25, 0.25]).log(), reference, q, 3.0)
        close(gradient, [3 / 8 * LN2, -1 / 16 * LN2, -5 / 16 * LN2])

    def test_the_equation_as_written(self):
        policy, reference, q = prefixes(4)
        pi, log_pi = torch.softmax(policy, -1), torch.log_softmax(policy, -1)
        log_rho = torch.log_softmax(reference, -1)
        log_z = torch.log((log_rho.exp() * torch.exp(q / 0.7)).sum(-1))
        expected = (pi * (log_pi - log_rho - q / 0.7)).sum(-1) + log_z
        torch.testing.assert_close(losses.policy_loss(policy, reference, q, 0.7), expected, rtol=1e-13, atol=1e-13)

    def test_zero_with_no_gradient_at_the_target(self):
        _, reference, q = prefixes(1)
        target = losses.target_policy_logits(reference, q, 0.1)
        assert losses.policy_loss(target, reference, q, 0.1).max() < 1e-14
        assert policy_gradient(target, reference, q, 0.1).abs().max() < 1e-14

    @pytest.mark.parametrize("distance", [1e-5, 1e-4, 1e-3])
    @pytest.mark.parametrize("vocabulary", [3, 500])
    def test_gradient_close_to_the_target(self, distance, vocabulary):
        """π (log π/π* - loss) in every row of float32, also where the sum is rounded up to 0."""
        g = torch.Generator().manual_seed(0)
        reference, q = torch.randn(400, vocabulary, generator=g), 0.1 * torch.randn(400, vocabulary, generator=g)
        target = losses.target_policy_logits(reference.double(), q.double(), 0.1)
        policy = (target + distance * torch.randn(400, vocabulary, generator=g)).float().requires_grad_()
        loss = losses.policy_loss(policy, reference, q, 0.1)
        loss.sum().backward()
        exact = policy_gradient(policy.detach().double(), reference.double(), q.double(), 0.1)
        # The gradient of a row is known to about the rounding error of its log-ratios, 1e-6, times π.
        error = (policy.grad - exact).norm(dim=-1) / torch.softmax(policy.detach().double(), -1).norm(dim=-1)
        assert error.max() < 2e-6
        assert (policy.grad != 0).any(dim=-1).all() and (loss >= 0).all()

    def test_a_loss_below_zero_is_rounded_up_without_losing_its_gradient(self):
        log_policy = f64([0.5, 0.5]).log().requires_grad_()
        log_other = log_policy.detach() + 1e-8  # not normalised: stands for what rounding does to a sum
        loss = bellman.mean_log_ratio(log_policy, log_other)
        loss.backward()
        assert loss == 0
        close(log_policy.grad, [(1 - 1e-8) / 2] * 2)  # of π (log π - log σ): π (1 + log π/σ)

    def test_gradient_into_the_policy_only(self):
        policy, reference, q = (x.requires_grad_() for x in prefixes(2))
        losses.policy_loss(policy, reference, q, 0.5).sum().backward()
        assert policy.grad.abs().sum() > 0 and reference.grad is None and q.grad is None

    def test_gradcheck(self):
        policy, reference, q = prefixes(3)
        assert gradcheck(lambda p: losses.policy_loss(p, reference, q, 0.5), policy.requires_grad_())

    def test_the_gradient_depends_on_q(self):
        policy, reference, q = prefixes(5)
        change = policy_gradient(policy, reference, q, 0.5) - policy_gradient(policy, reference, -q, 0.5)
        assert change.abs().max() > 0.1

    @quick
    @always(0, 100.0, 0.1)
    @always(1, -100.0, 10.0)
    @given(st.integers(0, 10_000), st.floats(-100, 100), st.sampled_from([0.1, 1.0, 10.0]))
    def test_a_constant_added_to_q_changes_nothing(self, seed, constant, beta):
        policy, reference, q = prefixes(seed)
        torch.testing.assert_close(
            policy_gradient(policy, reference, q + constant, beta),
            policy_gradient(policy, reference, q, beta),
            rtol=1e-9,
            atol=1e-11,
        )

    @quick
    @seeds
    def test_a_batch_of_one_equals_a_batch_of_many(self, seed):
        policy, reference, q = prefixes(seed)
        whole = losses.policy_loss(policy, reference, q, 0.5)
        for i in range(3):
            alone = losses.policy_loss(policy[i : i + 1], reference[i : i + 1], q[i : i + 1], 0.5)
            torch.testing.assert_close(alone[0], whole[i], rtol=1e-14, atol=1e-14)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("vocabulary", [2, 150_000])
    @pytest.mark.parametrize("beta", [1e-4, 1.0, 1e3])
    @pytest.mark.parametrize("scale", [1.0, 1e4])
    def test_extreme_numbers(self, dtype, vocabulary, beta, scale):
        g = torch.Generator().manual_seed(0)
        policy, reference, q = (
            (scale * torch.randn(2, vocabulary + 1, generator=g)).clamp(-1e4, 1e4).to(dtype) for _ in range(3)
        )
        policy[:, 0], reference[:, 0], q[:, 0] = -INF, -INF, -INF
        policy.requires_grad_()
        loss = losses.policy_loss(policy, reference, q, beta)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and torch.isfinite(policy.grad).all()
        exact = losses.policy_loss(policy.detach().double(), reference.double(), q.double(), beta)
        torch.testing.assert_close(loss, exact.float(), rtol=3e-5, atol=1e-4)
        assert not torch.isnan(losses.target_policy_logits(reference, q, beta)).any()

    def test_a_large_level_of_q_costs_no_precision(self):
        """In float32 a common 1000 at β = 1e-4 would be 1e7 nats and swallow the differences."""
        policy, reference = torch.zeros(3), torch.zeros(3)
        small = torch.tensor([0.0, 2.0**-12, 2.0**-11])
        level = losses.policy_loss(policy, reference, small + 1024, 1e-4)
        assert level == losses.policy_loss(policy, reference, small, 1e-4)


class TestPpo:
    def test_by_hand(self):
        # ratios 2, 2, 1/2, 1/2, 1.1 with clip 0.2, advantages 1, -1, 1, -1, 3
        log_prob = f64([2, 2, 0.5, 0.5, 1.1]).log() - 40
        loss = losses.ppo_clipped_loss(log_prob, f64([-40.0] * 5), f64([1, -1, 1, -1, 3]), 0.2)
        close(loss, [-1.2, 2, -0.5, 0.8, -3.3], 1e-13)

    def test_gradient_by_hand(self):
        log_prob = f64([2, 2, 0.5, 0.5, 1.1]).log().requires_grad_()
        behaviour, advantage = f64([0.0] * 5).requires_grad_(), f64([1, -1, 1, -1, 3]).requires_grad_()
        losses.ppo_clipped_loss(log_prob, behaviour, advantage, 0.2).sum().backward()
        close(log_prob.grad, [0, 2, -0.5, 0, -3.3], 1e-13)
        assert behaviour.grad is None and advantage.grad is None

    def test_gradcheck(self):
        log_prob = f64([0.05, 0.7, -0.7]).requires_grad_()
        assert gradcheck(lambda x: losses.ppo_clipped_loss(x, f64([0, 0, 0]), f64([1, -1, 0.5]), 0.2), log_prob)

    def test_a_long_action_overflows_nothing(self):
        log_prob = torch.tensor([0.0, 0.0, 0.0, -9e3], requires_grad=True)
        loss = losses.ppo_clipped_loss(
            log_prob, torch.tensor([-9e3, -9e3, -9e3, 0.0]), torch.tensor([1.0, -1.0, 0.0, 1.0]), 0.2
        )
        loss.sum().backward()
        assert torch.isfinite(loss).all() and torch.isfinite(log_prob.grad).all()


class TestParameterisationsOfQ:
    """What each of them means at the start, where critic, reference and policy are one model."""

    model = f64([0.5, 0.25, 0.25]).log()
    beta = 0.01

    def start(self, parameterisation):
        q = {
            "raw": lambda: losses.q_raw(self.model),
            "residual": lambda: losses.q_residual(self.model, self.model, self.beta),
            "dueling": lambda: losses.q_dueling(f64(0.3), self.model, self.model, self.model, self.beta),
        }[parameterisation]()
        return q, losses.target_policy_logits(self.model, q, self.beta).exp()

    def test_raw_starts_at_an_argmax(self):
        q, target = self.start("raw")
        assert target[0] > 1 - 1e-12
        close(bellman.expected_q(self.model, q), -1.5 * LN2)  # first target: logits, not rewards

    def test_residual_starts_at_the_model_with_target_zero(self):
        q, target = self.start("residual")
        close(q, [0, 0, 0])
        close(target, [0.5, 0.25, 0.25])

    def test_dueling_starts_at_the_model_with_the_value_as_target(self):
        q, target = self.start("dueling")
        close(q, [0.3, 0.3, 0.3])
        close(target, [0.5, 0.25, 0.25], 1e-13)

    def test_by_hand(self):
        critic, reference = f64([1, 2, 3]), f64([0, 1, 0])
        policy = f64([0.5, 0.25, 0.25]).log()
        close(losses.q_residual(critic, reference, 2.0), [2, 2, 6])
        # A = 2, 2, 6 has mean 3 under π
        close(losses.q_dueling(f64(10), critic, reference, policy, 2.0), [9, 9, 13])

    @quick
    @seeds
    def test_dueling_has_the_value_as_its_mean(self, seed):
        policy, critic, reference = prefixes(seed)
        value = torch.linspace(-1, 1, 3, dtype=torch.float64)
        q = losses.q_dueling(value, critic, reference, policy, 0.5)
        torch.testing.assert_close(bellman.expected_q(policy, q), value, rtol=1e-13, atol=1e-13)

    def test_the_trap_of_the_drawn_token(self):
        """One step towards a target that says nothing about tokens: who takes it for an advantage?

        Only token 0 is drawn and its target is 0.8 above its Q. In the residual form all of it lands on the logit
        of the token drawn; in the dueling form the value takes 1/β times what the logit takes.
        """
        logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        value = torch.zeros((), dtype=torch.float64, requires_grad=True)
        reference = torch.zeros(3, dtype=torch.float64)
        fitted = f64([0.8 / self.beta, 0, 0])  # the residual critic after it has learnt the target
        target = losses.target_policy_logits(reference, losses.q_residual(fitted, reference, self.beta), self.beta)
        assert target[0].exp() > 1 - 1e-12  # 80 nats of advantage that nothing has earned
        q = losses.q_dueling(value, logits, reference, reference, self.beta)
        losses.critic_loss(q[0], f64(0.8)).backward()
        close(value.grad, -1.6)
        close(logits.grad, [-1.6 * self.beta * 2 / 3, 1.6 * self.beta / 3, 1.6 * self.beta / 3])

    def test_forbidden_tokens(self):
        masked = f64([0.0, 1.0, -INF])
        close(losses.q_residual(masked, masked, 0.5), [0, 0, 0])
        close(losses.q_dueling(f64(1.0), masked, masked, masked, 0.5), [1, 1, 1])
        assert torch.isneginf(losses.q_raw(masked)[2])

    def test_gradcheck(self):
        policy, critic, reference = prefixes(6)
        critic, value = critic.requires_grad_(), f64([0.1, 0.2, 0.3]).requires_grad_()
        assert gradcheck(lambda c, v: losses.q_dueling(v, c, reference, policy, 0.5), (critic, value))
        assert gradcheck(lambda c: losses.q_residual(c, reference, 0.5), critic)

    def test_half_precision_is_widened(self):
        logits = torch.randn(2, 7, dtype=torch.bfloat16)
        results = (
            losses.q_raw(logits),
            losses.q_residual(logits, logits, 0.1),
            losses.q_dueling(torch.zeros(2, dtype=torch.bfloat16), logits, logits, logits, 0.1),
        )
        assert all(q.dtype == torch.float32 for q in results)


class TestAdvantageSquare:
    policy = f64([0.5, 0.25, 0.25]).log()

    def test_by_hand(self):
        # A = 2, 2, 6 has mean 3 under π: 1/2 * 1 + 1/4 * 1 + 1/4 * 9
        close(losses.advantage_square(self.policy, f64([2, 2, 6])), 3)
        close(losses.advantage_square(self.policy, f64([-1, -1, 3])), 3)

    def test_gradient_by_hand(self):
        policy, q = self.policy.clone().requires_grad_(), f64([2, 2, 6]).requires_grad_()
        losses.advantage_square(policy, q).backward()
        close(q.grad, [-1, -0.5, 1.5])  # 2 π (A - 3)
        assert policy.grad is None

    def test_gradcheck(self):
        policy, q, _ = prefixes(7)
        assert gradcheck(lambda q: losses.advantage_square(policy, q), q.requires_grad_())

    def test_it_is_the_variance_of_the_dueling_q(self):
        policy, critic, reference = prefixes(8)
        q = losses.q_dueling(f64([0.1, 0.2, 0.3]), critic, reference, policy, 0.5)
        mean, pi = bellman.expected_q(policy, q), torch.softmax(policy, -1)
        torch.testing.assert_close(losses.advantage_square(policy, q), (pi * q.square()).sum(-1) - mean.square())

    def test_forbidden_tokens(self):
        q = torch.tensor([1.0, 3.0, -INF], requires_grad=True)
        square = losses.advantage_square(torch.tensor([0.0, 0.0, -INF]), q)
        square.backward()
        assert square == 1 and q.grad.tolist() == [-1, 1, 0]


class TestErrors:
    """A message names the argument, says its shape and what was expected."""

    two, three = torch.zeros(2), torch.zeros(3)
    nan, inf = torch.tensor([0.0, NAN]), torch.tensor([INF, 0.0])

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda t: losses.critic_loss(t.two, t.three), r"targets: shape \(3,\), expected \[2\]"),
            (lambda t: losses.critic_loss(t.nan, t.two), r"q_taken: shape \(2,\) holds NaN"),
            (lambda t: losses.critic_loss(t.two, t.nan), r"targets: shape \(2,\) holds NaN"),
            (
                lambda t: losses.critic_loss(t.two, t.two, t.two),
                r"mask: shape \(2,\) of torch.float32, expected torch.bool",
            ),
            (lambda t: losses.critic_loss(t.two, t.two, huber_delta=0.0), "huber_delta: got 0.0, expected"),
            (lambda t: losses.critic_loss([1.0], t.two), "q_taken: got list, expected a tensor"),
            (lambda t: losses.policy_loss(t.nan, t.two, t.two, 1.0), r"policy_logits: shape \(2,\) holds NaN"),
            (lambda t: losses.policy_loss(t.two, t.nan, t.two, 1.0), r"reference_logits: shape \(2,\) holds NaN"),
            (lambda t: losses.policy_loss(t.two, t.two, t.nan, 1.0), r"q: shape \(2,\) holds NaN"),
            (lambda t: losses.policy_loss(t.two, t.two, t.three, 1.0), r"q: shape \(3,\), expected \[2\]"),
            (lambda t: losses.policy_loss(t.two, t.two, t.two, 0.0), "beta: got 0.0, expected"),
            (lambda t: losses.policy_loss(t.two.long(), t.two, t.two, 1.0), "policy_logits: .*floating"),
            (
                lambda t: losses.policy_loss(t.two, torch.tensor([0.0, -INF]), t.two, 1.0),
                "policy_logits: .* allows a token that reference_logits or q / beta forbids",
            ),
            (  # a probability of e^-200 is 0 in float32, and still allowed
                lambda t: losses.policy_loss(torch.tensor([0.0, -200.0]), torch.tensor([0.0, -INF]), t.two, 1.0),
                "policy_logits: .* allows a token that reference_logits or q / beta forbids",
            ),
            (  # log π* of token 0 is -1e40
                lambda t: losses.policy_loss(t.two, t.two, torch.tensor([0.0, 1.0]), 1e-40),
                "policy_logits: .* allows a token that reference_logits or q / beta forbids",
            ),
            (lambda t: losses.policy_loss(t.two, t.two, [0.0, 0.0], 1.0), "q: got list, expected a tensor"),
            (lambda t: losses.target_policy_logits(t.two, t.inf, 1.0), r"q: shape \(2,\) holds NaN or \+inf"),
            (
                lambda t: losses.target_policy_logits(torch.tensor([3e38, -3e38]), torch.tensor([-3e38, 3e38]), 1.0),
                r"reference_logits, q: shape \(2,\) beyond torch.float32",
            ),
            (
                lambda t: losses.target_policy_logits(t.two, torch.tensor([-INF, -INF]), 1.0),
                r"q: shape \(2,\) has a row of -inf only",
            ),
            (lambda t: losses.target_policy_logits(t.two, t.two, True), "beta: got True"),
            (lambda t: losses.ppo_clipped_loss(t.two, t.two, t.nan, 0.2), "advantage: .* holds NaN"),
            (lambda t: losses.ppo_clipped_loss(t.two, t.three, t.two, 0.2), r"behaviour_log_prob: shape \(3,\)"),
            (lambda t: losses.ppo_clipped_loss(t.two, t.two, t.two, -0.2), "clip: got -0.2"),
            (lambda t: losses.q_raw(t.nan), r"critic_logits: shape \(2,\) holds NaN"),
            (lambda t: losses.q_raw(t.inf), r"critic_logits: shape \(2,\) holds NaN or \+inf"),
            (lambda t: losses.q_residual(t.two, t.nan, 1.0), r"reference_logits: shape \(2,\) holds NaN"),
            (lambda t: losses.q_residual(t.inf, t.inf, 1.0), r"critic_logits: shape \(2,\) holds NaN or \+inf"),
            (lambda t: losses.q_residual(t.two, t.inf, 1.0), r"reference_logits: shape \(2,\) holds NaN or \+inf"),
            (lambda t: losses.q_residual(t.two, t.two, -1.0), "beta: got -1.0"),
            (lambda t: losses.advantage_square(t.two, t.three), r"q: shape \(3,\), expected \[2\]"),
            (lambda t: losses.advantage_square(t.two, t.nan), r"q: shape \(2,\) holds NaN"),
            (lambda t: losses.advantage_square(t.two, -t.inf), r"q: shape \(2,\) holds NaN or infinity"),
            (lambda t: losses.advantage_square(t.nan, t.two), r"policy_logits: shape \(2,\) holds NaN"),
            (lambda t: losses.q_dueling(t.two, t.two, t.two, t.two, 1.0), r"value: shape \(2,\), expected \[\]"),
            (
                lambda t: losses.q_dueling(torch.tensor(NAN), t.two, t.two, t.two, 1.0),
                r"value: shape \(\) holds NaN",
            ),
            (
                lambda t: losses.q_dueling(torch.tensor(0.0), t.two, t.two, t.nan, 1.0),
                r"policy_logits: shape \(2,\) holds NaN",
            ),
            (
                lambda t: losses.q_dueling(torch.tensor(0.0), torch.tensor([0.0, -INF]), t.two, t.two, 1.0),
                r"critic_logits: shape \(2,\) is infinite",
            ),
        ],
    )
    def test_message(self, call, words):
        with pytest.raises(ValueError, match=words):
            call(self)
