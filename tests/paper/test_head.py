"""The streaming head against whole logits and the pure functions, in three dtypes, with gradients."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from etpo_core.bellman import kl_divergence
from etpo_core.losses import policy_loss, q_dueling
from etpo_paper.model.head import Blocks, dueling_terms, own_dueling_terms, statistics, streamed

BETA = 0.3
BLOCKS = [Blocks(1, 1), Blocks(3, 4), Blocks(2, 64), Blocks(64, 5), Blocks(64, 64)]


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
        "policy_loss": policy_loss(z, z_reference, q.detach(), BETA),
        "kl": kl_divergence(z.detach(), z_reference),
        "log_prob": gather(wide.log_softmax(-1), tokens),
        "advantage": gather(q, tokens),
        "advantage_square": (wide.detach().softmax(-1) * q.square()).sum(-1),
    }
    leaf = {"policy_loss": policy, "log_prob": policy, "advantage": critic, "advantage_square": critic}
    found |= {f"d {name}": gradient(found[name], of) for name, of in leaf.items()}
    return {name: value.detach() for name, value in found.items()}


def ours(policy, reference, critic, weight, tokens, blocks=None):
    """The same by the streaming head; what both functions return must agree."""
    policy, critic = leaves(policy, critic)
    s = statistics(policy, weight, reference=reference, tokens=tokens, blocks=blocks)
    d = dueling_terms(policy, reference, critic, weight, tokens, BETA, blocks=blocks)
    torch.testing.assert_close(s.kl, d.kl)
    torch.testing.assert_close(s.log_prob.detach(), d.log_prob)
    assert not any(t.requires_grad for t in (s.kl, d.kl, d.log_prob))
    found = d._asdict() | s._asdict()
    leaf = {"policy_loss": policy, "log_prob": policy, "advantage": critic, "advantage_square": critic}
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
    torch.float32: dict.fromkeys(oracle(*states(1, 2, 3)), 2e-6) | {"kl": 1e-5, "policy_loss": 1e-5},
    torch.bfloat16: dict.fromkeys(oracle(*states(1, 2, 3)), 5e-3) | {"log_prob": 2e-6},
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
        assert error <= limit, name
        assert error <= 1.2 * other + 1e-7, f"{name}: less exact than whole logits ({error:.1e}, {other:.1e})"
        assert got[name].dtype == (dtype if name.startswith("d ") else torch.float32), name


def test_float32_states_with_a_bfloat16_head_keep_their_small_differences():
    policy, reference, critic, weight, tokens = states(20, 64, 500)
    reference = policy + 1e-3 * reference
    exact = kl_divergence(policy @ weight.T, reference @ weight.T)
    got = statistics(policy.float(), weight.bfloat16(), reference=reference.float(), tokens=tokens).kl
    assert (got - exact).norm() / exact.norm() < 0.05
    leaf = policy.float().requires_grad_()
    terms = dueling_terms(leaf, reference.float(), critic.float(), weight.bfloat16(), tokens, BETA)
    terms.policy_loss.sum().backward()
    assert leaf.grad.dtype == torch.float32


def own(policy, reference, critic, weight, tokens, blocks=None):
    """What `own_dueling_terms` returns, with gradients."""
    (leaf,) = leaves(critic)
    found = {
        f"own {n}": v
        for n, v in own_dueling_terms(leaf, reference, weight, tokens, BETA, blocks=blocks)._asdict().items()
    }
    found |= {f"d {name}": gradient(found[name], leaf) for name in ("own advantage", "own advantage_square")}
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize("dtype, rtol", [(torch.float64, 1e-7), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_a_policy_with_the_critics_weights_needs_less_for_the_same(blocks, dtype, rtol):
    _, reference, critic, weight, tokens = states(7, 5, 13)
    (leaf,) = leaves(critic)
    whole = {f"own {n}": v for n, v in dueling_terms(critic, reference, leaf, weight, tokens, BETA)._asdict().items()}
    whole |= {f"d {name}": gradient(whole[name], leaf) for name in ("own advantage", "own advantage_square")}
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
        "log_prob": (lambda h: statistics(h, weight, tokens=tokens, **small).log_prob, policy_leaf),
        "policy_loss": (
            lambda h: dueling_terms(h, reference, critic, weight, tokens, BETA, **small).policy_loss,
            policy_leaf,
        ),
        "advantage": (
            lambda h: dueling_terms(policy, reference, h, weight, tokens, BETA, **small).advantage,
            critic_leaf,
        ),
        "advantage_square": (
            lambda h: dueling_terms(policy, reference, h, weight, tokens, BETA, **small).advantage_square,
            critic_leaf,
        ),
    }
    for name, (function, leaf) in checks.items():
        assert torch.autograd.gradcheck(function, leaf), name


def test_gradients_reach_the_network_they_are_of_and_no_other():
    policy, reference, critic, weight, tokens = states(4, 3, 7)
    roles = leaves(policy, reference, critic, weight)
    d = dueling_terms(*roles, tokens, BETA)
    s = statistics(roles[0], roles[3], reference=roles[1], tokens=tokens)
    reached = {0: [d.policy_loss, s.log_prob], 2: [d.advantage, d.advantage_square]}
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
        assert float(d.advantage.detach().abs().max()) == float(d.advantage_square.detach().abs().max()) == 0
        assert float(gradient(d.policy_loss, leaf).abs().max()) == 0


def test_logits_of_thousands_and_a_certain_policy():
    """Q / beta for a small beta, and a policy that gives one token all: no overflow, no 0 * inf."""
    policy, reference, critic, weight, tokens = states(6, 5, 40)
    inputs = (200 * policy, reference, 3000 * critic, weight)
    narrow = [t.float() for t in inputs]
    exact = policy_loss(inputs[0] @ weight.T, torch.zeros(6, 40), inputs[2] @ weight.T, 1.0)
    leaf = narrow[0].requires_grad_()
    terms = dueling_terms(leaf, *narrow[1:], tokens, 1.0, blocks=Blocks(4, 7))
    torch.testing.assert_close(terms.policy_loss.double(), exact, rtol=1e-5, atol=1e-3)
    assert torch.isfinite(gradient(terms.policy_loss, leaf)).all() and torch.isfinite(terms.log_prob).all()
    assert (terms.log_prob <= 0).all()


def test_a_position_depends_on_its_own_states_only():
    policy, reference, critic, weight, tokens = states(9, 5, 13)
    before = dueling_terms(policy, reference, critic, weight, tokens, BETA, blocks=Blocks(4, 5))
    policy[3] *= 1e6
    after = dueling_terms(policy, reference, critic, weight, tokens, BETA, blocks=Blocks(4, 5))
    others = torch.arange(9) != 3
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[others], b[others]) and a[3] != b[3]


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
        statistics(policy, weight, reference=reference, tokens=tokens, blocks=blocks)

    def of_dueling(*inputs):
        dueling_terms(*inputs, BETA, blocks=blocks)

    assert largest(of_statistics, 16) == largest(of_statistics, 80) == vocabulary * width  # the head itself

    def of_own_dueling(policy, reference, critic, weight, tokens):
        own_dueling_terms(critic, reference, weight, tokens, BETA, blocks=blocks)

    assert largest(of_dueling, 16) == largest(of_dueling, 80) == 3 * blocks.positions * vocabulary
    assert largest(of_own_dueling, 16) == largest(of_own_dueling, 80) == 2 * blocks.positions * vocabulary


def test_without_a_reference_there_is_no_divergence():
    policy, reference, _, weight, tokens = states(3, 5, 13)
    alone = statistics(policy, weight, tokens=tokens)
    assert alone.kl is None
    assert torch.equal(alone.log_prob, statistics(policy, weight, reference=reference, tokens=tokens).log_prob)


def test_tokens_of_any_integer_dtype():
    *inputs, tokens = states(3, 5, 13)
    expected = dueling_terms(*inputs, tokens, BETA)
    for dtype in (torch.int32, torch.uint8):
        for a, b in zip(expected, dueling_terms(*inputs, tokens.to(dtype), BETA), strict=True):
            assert torch.equal(a, b)


# What is refused ---------------------------------------------------------------------------------------------------

STATES, TOKENS = torch.zeros(3, 5), torch.tensor([0, 12, 4])


def spoilt(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


REFUSED = {
    "a row missing": (STATES[:2], r"shape \(2, 5\), expected \[3, 5\]"),
    "another width": (STATES[:, :4], r"shape \(3, 4\), expected \[\w+, 5\]"),
    "width 1": (STATES[:, :1], r"shape \(3, 1\), expected \[\w+, 5\]"),
    "no matrix": (STATES[0], r"shape \(5,\), expected \[\w+, 5\]"),
    "integers": (STATES.long(), r"shape \(3, 5\) of torch.int64, expected a floating dtype"),
    "NaN": (spoilt(STATES, (1, 2), math.nan), r"shape \(3, 5\) holds NaN or infinity, expected finite values"),
    "infinity": (spoilt(STATES, (1, 2), -math.inf), r"shape \(3, 5\) holds NaN or infinity, expected finite values"),
    "no tensor": ([[1.0]], r"got list, expected a tensor"),
}
OF_STATES = {
    "statistics": (("policy", "reference"), lambda **a: statistics(a.pop("policy"), a.pop("weight"), **a)),
    "dueling": (("policy", "reference", "critic"), lambda **a: dueling_terms(**{"beta": BETA} | a)),
    "own dueling": (("critic", "reference"), lambda **a: own_dueling_terms(**{"beta": BETA} | a)),
}


def call(function, **changes):
    """A function of hidden states with right arguments but for these."""
    names, of_states = OF_STATES[function]
    return of_states(**dict.fromkeys(names, STATES) | {"weight": torch.randn(13, 5), "tokens": TOKENS} | changes)


@pytest.mark.parametrize("function", OF_STATES)
@pytest.mark.parametrize("fault", REFUSED)
def test_wrong_states_are_named(function, fault):
    names = OF_STATES[function][0]
    for name in names[fault == "a row missing" :]:  # the first states say how many rows there are
        with pytest.raises(ValueError, match=rf"^{name}: {REFUSED[fault][1]}") as error:
            call(function, **{name: REFUSED[fault][0]})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("function", OF_STATES)
def test_wrong_tokens_head_and_beta_are_named(function):
    first = OF_STATES[function][0][0]
    cases = {
        r"tokens: shape \(3,\) holds -1 to 12, expected 0 to 12": {"tokens": torch.tensor([0, -1, 12])},
        r"tokens: shape \(3,\) holds 0 to 13, expected 0 to 12": {"tokens": torch.tensor([0, 1, 13])},
        r"tokens: shape \(2,\), expected \[3\]": {"tokens": TOKENS[:2]},
        r"tokens: shape \(3,\) of torch.float32, expected an integer dtype": {"tokens": TOKENS.float()},
        r"tokens: shape \(3,\) of torch.bool, expected an integer dtype": {"tokens": TOKENS.bool()},
        r"weight: shape \(5,\), expected": {"weight": torch.zeros(5)},
        r"weight: shape \(13, 5\) of torch.int64, expected a floating dtype": {"weight": torch.zeros(13, 5).long()},
        rf"{first}: shape \(0, 5\), expected at least one position": dict.fromkeys(OF_STATES[function][0], STATES[:0]),
    }
    if function != "statistics":
        values = (0.0, -0.1, math.nan, math.inf, "1", True)
        cases |= {f"beta: got {value!r}, expected a finite number above 0": {"beta": value} for value in values}
    for line, changes in cases.items():
        with pytest.raises(ValueError, match=f"^{line}"):
            call(function, **changes)


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


def test_what_streamed_refuses():
    function, hidden, tokens = _function(torch.randn(3, 2)), torch.randn(4, 2), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"hidden: shape \(0, 2\), expected at least one position"):
        streamed(function, hidden[:0], hidden[:0], tokens[:0])
    with pytest.raises(ValueError, match=r"context: shape \(1, 2\), expected \[4, 2\]"):
        streamed(function, hidden, hidden[:1], tokens)
    with pytest.raises(ValueError, match=r"an output of the function: shape \(2, 2\), expected \[2\]"):
        streamed(lambda h: [h], hidden, chunk=2)
