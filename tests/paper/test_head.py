"""The streaming head against whole logits and the pure functions, in three dtypes, with gradients."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from etpo_core.bellman import expected_q, kl_divergence
from etpo_core.losses import policy_loss, q_dueling
from etpo_paper.model import head
from etpo_paper.model.head import (
    Blocks,
    dueling_terms,
    logit_taken,
    own_dueling_terms,
    policy_terms,
    statistics,
    streamed,
)

BETA = 0.3
BLOCKS = [Blocks(1, 1), Blocks(3, 4), Blocks(2, 64), Blocks(64, 5), Blocks(64, 64)]


@pytest.fixture(autouse=True)
def eager_kernels():
    yield
    head.use_eager()


def states(positions, width, vocabulary, change=0.5, seed=0):
    """Hidden states of policy, reference and critic, head and tokens, in float64 but exact in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    base, a, b = torch.randn(3, positions, width, generator=generator)
    weight = torch.randn(vocabulary, width, generator=generator)
    tokens = torch.randint(0, vocabulary, (positions,), generator=generator)
    tensors = [base, base + change * a, base + change * b, weight]
    return *(t.bfloat16().double() for t in tensors), tokens


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def gather(values, tokens):
    return values.gather(-1, tokens[:, None])[:, 0]


def gradient(values, leaf):
    """d values[i] / d leaf[i]; values of a position depend on its own hidden state only."""
    return torch.autograd.grad(values.sum(), leaf, retain_graph=True)[0]


def oracle(policy, reference, critic, weight, tokens):
    """Everything from whole logits by the pure functions: values, and gradients under "d name"."""
    policy, critic = leaves(policy, critic)
    z, z_reference, z_critic = policy @ weight.T, reference @ weight.T, critic @ weight.T
    q = q_dueling(z.new_zeros(len(z)).float(), z_critic.float(), z_reference.float(), z.detach().float(), BETA)
    if z.dtype == torch.float64:
        q = q_dueling(z.new_zeros(len(z)), z_critic, z_reference, z.detach(), BETA)
    wide = z.to(q.dtype)
    found = {
        "loss": policy_loss(z, z_reference, q.detach(), BETA),
        "raw_loss": policy_loss(z, z_reference, z_critic.detach(), BETA),
        "kl": kl_divergence(z.detach(), z_reference),
        "log_prob": gather(wide.log_softmax(-1), tokens),
        "advantage": gather(q, tokens),
        "spread": (wide.detach().softmax(-1) * q.square()).sum(-1),
        "expected_q": expected_q(z.detach(), z_critic.detach()),
        "q_taken": gather(z_critic.detach(), tokens).to(q.dtype),
    }
    leaf = {"loss": policy, "raw_loss": policy, "log_prob": policy, "advantage": critic, "spread": critic}
    found |= {f"d {name}": gradient(found[name], of) for name, of in leaf.items()}
    return {name: value.detach() for name, value in found.items()}


def ours(policy, reference, critic, weight, tokens, blocks=None):
    """The same by the streaming head; what several functions return must agree."""
    policy, critic = leaves(policy, critic)
    s = statistics(policy, weight, reference=reference, q=critic, tokens=tokens, blocks=blocks)
    raw = policy_terms(policy, reference, reference + critic.detach() / BETA, weight, tokens, blocks=blocks)
    p = policy_terms(policy, reference, critic, weight, tokens, blocks=blocks)
    d = dueling_terms(policy, reference, critic, weight, tokens, BETA, blocks=blocks)
    for one in (s, p, raw):
        torch.testing.assert_close(one.kl, d.kl)
        torch.testing.assert_close(one.log_prob.detach(), d.log_prob)
    torch.testing.assert_close(p.loss, d.policy_loss)
    assert not any(t.requires_grad for t in (s.kl, s.expected_q, s.q_taken, p.kl, p.log_prob, d.kl, d.log_prob))
    found = {"loss": d.policy_loss, "raw_loss": raw.loss, **s._asdict(), "advantage": d.advantage, "spread": d.spread}
    leaf = {"loss": policy, "raw_loss": policy, "log_prob": policy, "advantage": critic, "spread": critic}
    found |= {f"d {name}": gradient(found[name], of) for name, of in leaf.items()}
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("positions", [1, 7])
def test_equal_to_the_pure_functions_on_whole_logits(positions, blocks):
    inputs = states(positions, 5, 13)
    expected, got = oracle(*inputs), ours(*inputs, blocks)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=lambda m, name=name: f"{name}: {m}")


# Relative error (2-norm over positions) against float64. With a bfloat16 head the policy's logits, and so log pi, are
# still float32; differences of networks keep 8 bits: KL, advantage and the losses are as exact as the dtype.
ERRORS = {
    torch.float32: dict.fromkeys(oracle(*states(1, 2, 3)), 2e-6) | {"kl": 1e-5, "loss": 1e-5},
    torch.bfloat16: dict.fromkeys(oracle(*states(1, 2, 3)), 5e-3) | {"q_taken": 1e-6, "log_prob": 2e-6},
}


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
def test_precision_of_every_quantity_against_float64(dtype):
    inputs = states(150, 64, 3000, change=0.05)
    inputs = [t / 8**0.5 if i < 3 else t for i, t in enumerate(inputs)]  # logits of a few units
    inputs = [t.bfloat16().double() if t.is_floating_point() else t for t in inputs]
    narrow = [t.to(dtype) if t.is_floating_point() else t for t in inputs]
    exact, got, naive = oracle(*inputs), ours(*narrow, Blocks(64, 700)), oracle(*narrow)
    for name, limit in ERRORS[dtype].items():
        size = exact[name].norm()
        error, other = ((x[name].double() - exact[name]).norm() / size for x in (got, naive))
        if "raw_loss" in name:  # reference + critic / beta is rounded to the dtype of the hidden states here
            limit, other = 4 * limit, 4 * other
        assert error <= limit, name
        assert error <= 1.2 * other + 1e-7, f"{name}: less exact than whole logits ({error:.1e}, {other:.1e})"
        assert got[name].dtype == (dtype if name.startswith("d ") else torch.float32), name


def test_float32_states_with_a_bfloat16_head_keep_their_small_differences():
    policy, reference, critic, weight, tokens = states(20, 64, 500)
    reference = policy + 1e-3 * reference
    exact = kl_divergence(policy @ weight.T, reference @ weight.T)
    got = statistics(policy.float(), weight.bfloat16(), reference=reference.float()).kl
    assert (got - exact).norm() / exact.norm() < 0.05
    leaf = policy.float().requires_grad_()
    policy_terms(leaf, reference.float(), critic.float(), weight.bfloat16(), tokens).loss.sum().backward()
    assert leaf.grad.dtype == torch.float32


def own(policy, reference, critic, weight, tokens, blocks=None):
    """What `own_dueling_terms` returns, with gradients."""
    (leaf,) = leaves(critic)
    found = {
        f"own {n}": v
        for n, v in own_dueling_terms(leaf, reference, weight, tokens, BETA, blocks=blocks)._asdict().items()
    }
    found |= {f"d {name}": gradient(found[name], leaf) for name in ("own advantage", "own spread")}
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-7), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_a_policy_with_the_critics_weights_needs_less_for_the_same(blocks, dtype, rtol):
    _, reference, critic, weight, tokens = states(7, 5, 13)
    (leaf,) = leaves(critic)
    whole = {f"own {n}": v for n, v in dueling_terms(critic, reference, leaf, weight, tokens, BETA)._asdict().items()}
    whole |= {f"d {name}": gradient(whole[name], leaf) for name in ("own advantage", "own spread")}
    got = own(None, reference.to(dtype), critic, weight.to(dtype), tokens, blocks)
    assert not got.pop("own policy_loss").any() and not any(
        t.requires_grad for t in own_dueling_terms(critic, reference, weight, tokens, BETA)
    )
    for name, value in got.items():
        error = (value.double() - whole[name].detach().double()).norm() / whole[name].norm()
        assert error < rtol, (name, error)


def test_gradients_are_those_of_finite_differences():
    policy, reference, critic, weight, tokens = states(4, 3, 7)
    policy_leaf, critic_leaf = leaves(policy, critic)
    small = {"blocks": Blocks(3, 4)}
    checks = {
        "loss": (lambda h: policy_terms(h, reference, critic, weight, tokens, **small).loss, policy_leaf),
        "log_prob": (lambda h: statistics(h, weight, tokens=tokens, **small).log_prob, policy_leaf),
        "policy_loss": (
            lambda h: dueling_terms(h, reference, critic, weight, tokens, BETA, **small).policy_loss,
            policy_leaf,
        ),
        "advantage": (
            lambda h: dueling_terms(policy, reference, h, weight, tokens, BETA, **small).advantage,
            critic_leaf,
        ),
        "spread": (lambda h: dueling_terms(policy, reference, h, weight, tokens, BETA, **small).spread, critic_leaf),
        "logit_taken": (lambda h: logit_taken(h, weight, tokens), critic_leaf),
    }
    for name, (function, leaf) in checks.items():
        assert torch.autograd.gradcheck(function, leaf), name


def test_gradients_reach_the_network_they_are_of_and_no_other():
    policy, reference, critic, weight, tokens = states(4, 3, 7)
    roles = leaves(policy, reference, critic, weight)
    d = dueling_terms(*roles, tokens, BETA)
    p = policy_terms(*roles, tokens)
    s = statistics(roles[0], roles[3], reference=roles[1], q=roles[2], tokens=tokens)
    reached = {0: [d.policy_loss, p.loss, s.log_prob], 2: [d.advantage, d.spread]}
    for role, values in reached.items():
        for value in values:
            found = torch.autograd.grad(value.sum(), roles, allow_unused=True, retain_graph=True)
            assert [g is not None for g in found] == [i == role for i in range(4)]
    with torch.no_grad():
        assert not any(t.requires_grad for t in dueling_terms(*roles, tokens, BETA))


def test_equal_networks_have_no_divergence_and_no_advantage():
    policy, _, _, weight, tokens = (t.float() if t.is_floating_point() else t for t in states(9, 16, 300))
    for dtype in (torch.float32, torch.bfloat16):
        leaf = policy.clone().requires_grad_()
        d = dueling_terms(leaf, policy, policy, weight.to(dtype), tokens, BETA)
        assert float(d.kl.abs().max()) < 1e-6 and float(d.policy_loss.detach().abs().max()) < 1e-6
        assert float(d.advantage.detach().abs().max()) == float(d.spread.detach().abs().max()) == 0
        assert float(gradient(d.policy_loss, leaf).abs().max()) == 0


def test_logits_of_thousands_and_a_certain_policy():
    """Q / beta for a small beta, and a policy that gives one token all: no overflow, no 0 * inf."""
    policy, reference, critic, weight, tokens = states(6, 5, 40)
    inputs = (200 * policy, reference, 3000 * critic, weight)
    narrow = [t.float() for t in inputs]
    exact = policy_loss(inputs[0] @ weight.T, torch.zeros(6, 40), inputs[2] @ weight.T, 1.0)
    leaf = narrow[0].requires_grad_()
    terms = policy_terms(leaf, *narrow[1:], tokens, blocks=Blocks(4, 7))
    torch.testing.assert_close(terms.loss.double(), exact, rtol=1e-5, atol=1e-3)
    assert torch.isfinite(gradient(terms.loss, leaf)).all() and torch.isfinite(terms.log_prob).all()
    assert (terms.log_prob <= 0).all()


def test_a_position_depends_on_its_own_states_only():
    policy, reference, critic, weight, tokens = states(9, 5, 13)
    before = dueling_terms(policy, reference, critic, weight, tokens, BETA, blocks=Blocks(4, 5))
    policy[3] = float("nan")
    after = dueling_terms(policy, reference, critic, weight, tokens, BETA, blocks=Blocks(4, 5))
    others = torch.arange(9) != 3
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[others], b[others]) and torch.isnan(b[3])


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_memory_does_not_grow_with_the_vocabulary_times_the_positions():
    width, vocabulary, blocks = 2, 500, Blocks(8, 50)

    def largest(function, positions):
        policy, reference, critic, weight, tokens = states(positions, width, vocabulary)
        with LargestTensor() as mode:
            function(policy.requires_grad_(), reference, critic, weight, tokens)
        return mode.elements

    def of_statistics(policy, reference, critic, weight, tokens):
        statistics(policy, weight, reference=reference, q=critic, tokens=tokens, blocks=blocks)

    def of_dueling(*inputs):
        dueling_terms(*inputs, BETA, blocks=blocks)

    assert largest(of_statistics, 16) == largest(of_statistics, 400) == vocabulary * width  # the head itself

    def of_own_dueling(policy, reference, critic, weight, tokens):
        own_dueling_terms(critic, reference, weight, tokens, BETA, blocks=blocks)

    assert largest(of_dueling, 16) == largest(of_dueling, 400) == 3 * blocks.positions * vocabulary
    assert largest(of_own_dueling, 16) == largest(of_own_dueling, 400) == 2 * blocks.positions * vocabulary


def test_only_what_is_asked_for():
    policy, reference, critic, weight, tokens = states(3, 5, 13)
    assert [v is None for v in statistics(policy, weight, reference=reference)] == [False, True, True, True]
    assert [v is None for v in statistics(policy, weight, q=critic)] == [True, False, True, True]
    assert [v is None for v in statistics(policy, weight, tokens=tokens)] == [True, True, True, False]


def test_a_token_outside_the_vocabulary_has_no_probability():
    policy, _, _, weight, tokens = states(3, 5, 13)
    tokens[1] = 13
    assert statistics(policy, weight, tokens=tokens, blocks=Blocks(2, 6)).log_prob.isnan().tolist() == [
        False,
        True,
        False,
    ]


def test_different_numbers_of_positions_are_an_error():
    policy, reference, critic, weight, tokens = states(3, 2, 4)
    with pytest.raises(ValueError, match=r"policy, reference, critic, tokens have \[3, 2, 3, 3\] positions"):
        dueling_terms(policy, reference[:2], critic, weight, tokens, BETA)
    with pytest.raises(ValueError, match=r"policy, reference, target, tokens have \[3, 3, 3, 1\] positions"):
        policy_terms(policy, reference, critic, weight, tokens[:1])
    with pytest.raises(ValueError, match=r"policy, q have \[0, 0\] positions"):
        statistics(policy[:0], weight, q=critic[:0])


# Compiled kernels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_plain_kernels_are_the_eager_ones(monkeypatch, dtype):
    """What a compiler would be given, without one."""
    inputs = [t.to(dtype) if t.is_floating_point() else t for t in states(7, 16, 130)]
    expected = ours(*inputs, Blocks(3, 50)) | own(*inputs)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert head.use_compiled(inputs[3]) == ""
    assert head._kernels != head._EAGER
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for name, value in (ours(*inputs, Blocks(3, 50)) | own(*inputs)).items():
        assert (value - expected[name]).norm() <= rounding * expected[name].norm(), name


def test_without_a_compiler_the_eager_kernels_stay(monkeypatch):
    def broken(function, **options):
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", broken)
    assert head.use_compiled(torch.randn(50, 8)) == "RuntimeError: no C++ compiler found"
    assert head._kernels == head._EAGER


def test_less_exact_kernels_are_refused(monkeypatch):
    def sloppy(function, **options):
        return lambda tile, *rest: function(tile.copy_(tile.bfloat16()), *rest)

    monkeypatch.setattr(torch, "compile", sloppy)
    assert head.use_compiled(torch.randn(50, 8)).startswith("less exact than the eager kernels: statistics.kl")
    assert head._kernels == head._EAGER


# Any function ------------------------------------------------------------------------------------------------------


def _function(weight):
    def function(hidden, other, index):
        logits, fixed = hidden @ weight.T, other @ weight.T
        log_p = logits.log_softmax(-1)
        kl = (log_p.exp() * (log_p - fixed.log_softmax(-1))).sum(-1)
        return [kl, logits.gather(-1, index[:, None])[:, 0], fixed.logsumexp(-1)]

    return function


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_streamed_gives_values_and_gradients_of_the_whole(chunk):
    torch.manual_seed(0)
    weight = torch.randn(11, 5, dtype=torch.float64)
    hidden, other = torch.randn(2, 7, 5, dtype=torch.float64)
    index = torch.randint(0, 11, (7,))
    weights = torch.randn(2, 7, dtype=torch.float64)

    def total(outputs):
        return (weights[0] * outputs[0]).sum() + (weights[1] * outputs[1].square()).sum()

    naive = hidden.clone().requires_grad_()
    expected = _function(weight)(naive, other, index)
    total(expected).backward()
    leaf = hidden.clone().requires_grad_()
    outputs = streamed(_function(weight), leaf, other, index, chunk=chunk)
    total(outputs).backward()
    for a, b in zip(outputs, expected, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(leaf.grad, naive.grad)
    assert not outputs[2].requires_grad


def test_context_gets_no_gradient_and_nothing_is_kept_without_one():
    weight = torch.randn(11, 5)
    other = torch.randn(7, 5, requires_grad=True)
    outputs = streamed(_function(weight), torch.randn(7, 5), other, torch.zeros(7, dtype=torch.long))
    assert not any(o.requires_grad for o in outputs)


def test_no_position_is_an_error():
    with pytest.raises(ValueError, match="at least one position"):
        streamed(_function(torch.randn(3, 2)), torch.randn(0, 2), torch.randn(0, 2), torch.zeros(0))
