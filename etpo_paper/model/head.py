"""Losses over the whole vocabulary, without ever holding a [positions, vocabulary] tensor.

A language model turns the hidden state h of a position into one logit for each token of its vocabulary, z = W h. The
head W [V, H] is frozen, and all roles (policy, reference, critic) share it. ETPO needs sums over all tokens at every
position: KL[π‖ρ], the policy loss, E_π[A²]. With 49,152 tokens the logits of a batch would fill gigabytes. The
functions here therefore take hidden states. They make the logits of one block of positions and one tile of the
vocabulary at a time, reduce them to a few numbers for each position, and drop them. `statistics` gives KL[π‖ρ] and
log π of the tokens taken; `dueling_terms` and `own_dueling_terms` give everything that ETPO's two losses need. Their
gradients are written out in closed form. `streamed` applies any other function of logits, a few positions at a time.

Three facts about a linear, shared head save products with it, and save precision:

- E_π[z] of any network is a dot product with E_π[W] = Σ_w π(w) W_w, a vector of H numbers. The same vector gives the
  gradient of a log-probability, d log π(a) / dh = W_a - E_π[W].
- Two networks are compared through the logits of their *difference*, d = W (h_other - h_π). With z the policy's
  logits, KL(π ‖ other) = log Σ exp(z + d) - log Σ exp(z) - E_π[d], and its gradient is E_π[(E_π[d] - d) W]. In bfloat16
  the error of d is in proportion to the difference and not to the logits, so the KL of similar policies stays exact.
- The target policy ρ exp(A/β) / Z with A = β (z_critic - z_ρ) is softmax(z_critic), so the policy loss is such a KL.

Precision. Products with the head are taken in its dtype (bfloat16, float32 or float64), sums within a tile in float32
or wider, sums over tiles in float64. Only the policy's own logits are always float32 or wider: importance weights are
made of log π, and a logit of 20 in bfloat16 may be off by 0.06. Hidden states may have another dtype than the head.
Results are float32, or float64 if an input is. Each result depends on the hidden states of its own position alone.

Every function raises ValueError, in one line that names the argument, its shape and what was expected, for a wrong
shape or dtype, for hidden states that hold NaN or infinity, for a token outside the vocabulary and for β ≤ 0.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, overload

import torch
from torch import Tensor

from etpo_core import checks
from etpo_core.interfaces import Terms


class Blocks(NamedTuple):
    """How much is computed at once; results depend on it by rounding alone.

    Attributes:
        positions: hidden states at a time.
        vocabulary: tokens of the vocabulary at a time.
    """

    positions: int
    vocabulary: int


CPU_BLOCKS = Blocks(256, 2048)  # large enough for products at full speed, small enough to stay in cache
GPU_BLOCKS = Blocks(1024, 8192)  # a GPU prefers few large kernels
CHUNK = 64  # positions at a time in `streamed`: 64 x 49,152 float32 logits are 12 MB

_KL = TypeVar("_KL", bound=Tensor | None)


# ------------------------------------------------------------------------------------------------ what methods need


class Statistics(NamedTuple, Generic[_KL]):
    """What a policy says of tokens that were taken.

    Attributes:
        kl: [N] KL[π‖ρ] in nats, no gradient; None without a reference.
        log_prob: [N] log π of the tokens; its gradient reaches the policy's hidden states.
    """

    kl: _KL
    log_prob: Tensor


@overload
def statistics(
    policy: Tensor, weight: Tensor, *, tokens: Tensor, reference: Tensor, blocks: Blocks | None = None
) -> Statistics[Tensor]: ...
@overload
def statistics(
    policy: Tensor, weight: Tensor, *, tokens: Tensor, reference: None = None, blocks: Blocks | None = None
) -> Statistics[None]: ...
def statistics(
    policy: Tensor, weight: Tensor, *, tokens: Tensor, reference: Tensor | None = None, blocks: Blocks | None = None
) -> Statistics[Any]:
    """log π of the tokens taken and, with a reference, KL[π‖ρ].

    Equal to `bellman.kl_divergence` and a lookup in a log-softmax of whole logits. Takes one product with the head for
    the policy, one for the KL and one for the gradient.

    Args:
        policy: [N, H] hidden states.
        weight: [V, H] the frozen head.
        tokens: [N] token ids.
        reference: [N, H] hidden states of ρ, a constant.
        blocks: how much is computed at once; None for what suits the device.

    Raises:
        ValueError: see the module.
    """
    states = {"policy": policy} if reference is None else {"policy": policy, "reference": reference}
    tokens = _checked(weight, tokens, **states)
    with_gradient = _wants_gradient(policy)
    others = [] if reference is None else [reference]
    s = _summed(policy, others, weight, tokens, blocks, with_row=with_gradient)
    log_prob = s.log_prob
    if with_gradient:
        log_prob = _attached(policy, log_prob, s.row.neg_().add_(weight.detach()[tokens]))
    return Statistics(s.kl[0] if others else None, log_prob)


def dueling_terms(
    policy: Tensor,
    reference: Tensor,
    critic: Tensor,
    weight: Tensor,
    tokens: Tensor,
    beta: float,
    *,
    blocks: Blocks | None = None,
) -> Terms:
    """What ETPO's two losses need under the dueling parameterisation of Q, each [N] (see `interfaces.Terms`).

    Equal to `losses.policy_loss`, `bellman.kl_divergence` and `losses.q_dueling` on whole logits. The advantage is a
    constant in the policy loss, and the policy is a constant in the critic's terms. Takes three products with the
    head, and three for the gradients.

    Args:
        policy: [N, H] hidden states; `policy_loss` has a gradient into them.
        reference: [N, H] hidden states of ρ, a constant.
        critic: [N, H] hidden states; `advantage` and `advantage_square` have a gradient into them.
        weight: [V, H] the frozen head.
        tokens: [N] token ids whose advantage and log-probability are asked for.
        beta: β > 0, units of reward per nat.
        blocks: how much is computed at once; None for what suits the device.

    Raises:
        ValueError: see the module.
    """
    tokens = _checked(weight, tokens, policy=policy, reference=reference, critic=critic)
    checks.positive("beta", beta)
    s = _summed(policy, [reference, critic], weight, tokens, blocks, second=_DUELING)
    kl, loss = s.kl
    row, into_policy, into_critic = s.pulled
    advantage, square = _advantage(critic, reference, weight, tokens, beta, row, into_critic, s.value)
    return Terms(_attached(policy, loss, into_policy), kl, s.log_prob, advantage, square)


def own_dueling_terms(
    critic: Tensor,
    reference: Tensor,
    weight: Tensor,
    tokens: Tensor,
    beta: float,
    *,
    blocks: Blocks | None = None,
) -> Terms:
    """`dueling_terms` of a policy that has the critic's weights, π = softmax(z_critic), at less cost.

    Such a policy is its own target policy. Its loss is 0 and has no gradient, and the advantage of a token is
    A(w) = β (log π(w) / ρ(w) - KL[π‖ρ]). Takes two products with the head, and two for the gradients.

    Args:
        critic: [N, H] hidden states. Gradients reach them as in `dueling_terms`, where π is a constant.
        reference: [N, H] hidden states of ρ, a constant.
        weight: [V, H] the frozen head.
        tokens: [N] token ids whose advantage and log-probability are asked for.
        beta: β > 0, units of reward per nat.
        blocks: how much is computed at once; None for what suits the device.

    Raises:
        ValueError: see the module.
    """
    tokens = _checked(weight, tokens, critic=critic, reference=reference)
    checks.positive("beta", beta)
    s = _summed(critic, [reference], weight, tokens, blocks, second=_OWN_DUELING)
    row, into_critic = s.pulled
    advantage, square = _advantage(critic, reference, weight, tokens, beta, row, into_critic, s.value)
    return Terms(torch.zeros_like(s.kl[0]), s.kl[0], s.log_prob, advantage, square)


def _advantage(
    critic: Tensor,
    reference: Tensor,
    weight: Tensor,
    tokens: Tensor,
    beta: float,
    row: Tensor,
    into_critic: Tensor,
    square: Tensor,
) -> tuple[Tensor, Tensor]:
    """A of the tokens [N] and E_π[A²] [N], with their gradients into the critic.

    With C = A / β: `row` is E_π[W] [N, H] and is overwritten, `into_critic` is E_π[C W] [N, H], `square` E_π[C²] [N].
    """
    direction = row.neg_().add_(weight.detach()[tokens]).mul_(beta)  # d advantage / d critic
    triples = zip(critic.detach().split(CHUNK), reference.detach().split(CHUNK), direction.split(CHUNK), strict=True)
    advantage = torch.cat([((_wide(a) - _wide(b)) * d).sum(-1) for a, b, d in triples])
    return _attached(critic, advantage, direction), 2 * beta**2 * _attached(critic, square / 2, into_critic)


# ----------------------------------------------------------------------------------------------- any other function


def streamed(
    function: Callable[..., Sequence[Tensor]], hidden: Tensor, *context: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, ...]:
    """Applies a function of hidden states position by position, a chunk of positions at a time.

    The gradient into `hidden` is computed chunk by chunk in the forward pass: an output of a position depends on that
    position alone, so its gradient is one vector. Nothing of size [positions, vocabulary] outlives its chunk.

    Args:
        function: takes (hidden [n, H], *context [n, ...]) and returns a sequence of tensors [n].
        hidden: [N, H], the only argument that gets a gradient.
        context: tensors [N, ...], constants.
        chunk: positions at a time.

    Returns:
        The function's outputs, each [N].

    Raises:
        ValueError: no position, a context of another number of positions, or an output that is not [n].
    """
    if hidden.dim() == 0 or len(hidden) == 0:
        raise ValueError(f"hidden: shape {tuple(hidden.shape)}, expected at least one position")
    for tensor in context:
        checks.shaped("context", tensor, (len(hidden), *tensor.shape[1:]))
    outputs, gradients, with_gradient = [], [], _wants_gradient(hidden)
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        with torch.enable_grad():
            leaf = hidden[part].detach().requires_grad_(with_gradient)
            results = function(leaf, *(c[part].detach() for c in context))
        for result in results:
            checks.shaped("an output of the function", result, (len(leaf),))
        gradients.append([_gradient(r, leaf) for r in results])
        outputs.append([r.detach() for r in results])
    columns = zip(zip(*outputs, strict=True), zip(*gradients, strict=True), strict=True)
    return tuple(_attached(hidden, torch.cat(v), None if g[0] is None else torch.cat(g)) for v, g in columns)


def _gradient(result: Tensor, leaf: Tensor) -> Tensor | None:
    """d result[i] / d leaf[i] for every position i, or None for a constant."""
    if not result.requires_grad:
        return None
    return torch.autograd.grad(result, leaf, torch.ones_like(result), retain_graph=True)[0]


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, values: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[:, None] * gradient, None, None


def _attached(hidden: Tensor, values: Tensor, gradient: Tensor | None) -> Tensor:
    """Values [N] whose gradient into the hidden states [N, H] is the one that was computed beside them [N, H]."""
    return values if gradient is None else _Attached.apply(hidden, values, gradient)


# ------------------------------------------------------------------------------------------------------ the passes
# The networks of a call are the policy and the m - 1 others that it is compared with. A tile [m, n, v] holds, for n
# positions and v tokens, the policy in front and then the logits of the differences to it.

# What a second pass makes of a tile: it takes the tile as `_tile_sums` left it, E_π of each difference over the whole
# vocabulary [m - 1, n, 1] and the buffers, puts weights [n, v] into the first matrices of the tile, and returns [n].
_Weights = Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]


class _SecondPass(NamedTuple):
    """A second pass over the vocabulary.

    Attributes:
        weights: puts weights into a tile.
        matrices: how many matrices of weights it puts there.
    """

    weights: _Weights
    matrices: int


class _Head:
    """The frozen head cut into tiles of the vocabulary, with the memory that one block of positions needs.

    Args:
        weight: [V, H].
        networks: how many networks make a tile, m.
        positions: the largest block.
        vocabulary: the largest tile.
        keep: whether all tiles of a block are kept, for a second pass.
    """

    def __init__(self, weight: Tensor, networks: int, positions: int, vocabulary: int, keep: bool):
        self.parts = weight.detach().split(vocabulary)
        self.keep = keep
        rows, wide = networks * positions, _wide(weight[:0]).dtype
        # Allocating memory for every tile would cost more than the arithmetic on it.
        self._tiles = weight.new_empty(rows * (len(weight) if keep else len(self.parts[0])))
        self._buffers = [weight.new_empty(rows * len(self.parts[0]), dtype=wide) for _ in range(2)]
        self._part = torch.empty_like(self.parts[0], dtype=wide)

    def tile(self, number: int, policy: Tensor, differences: Tensor) -> tuple[Tensor, Tensor]:
        """Logits for the tokens of one part of the vocabulary.

        Args:
            number: which part.
            policy: [n, H] hidden states, in float32 or wider.
            differences: [m - 1, n, H] hidden states of the others less the policy's, in the dtype of the head.

        Returns:
            The policy's logits [n, v], in float32 or wider, which lie in the first of the `buffers`; and the tile
            [m, n, v], of which the first matrix is not yet filled.
        """
        part = self.parts[number]
        n, others = len(policy), len(differences)
        size = (1 + others) * n * len(part)
        start = (1 + others) * n * len(self.parts[0]) * number if self.keep else 0
        tile = self._tiles[start : start + size].view(1 + others, n, len(part))
        if others:
            torch.mm(differences.flatten(0, 1), part.T, out=tile[1:].view(others * n, len(part)))
        logits = self.buffers(tile)[0][0]
        torch.mm(policy, _widened(part, self._part[: len(part)]).T, out=logits)
        return logits, tile

    def buffers(self, tile: Tensor) -> list[Tensor]:
        """Two tensors of a tile's shape, in float32 or wider, whose content may be overwritten."""
        return [b[: tile.numel()].view(tile.shape) for b in self._buffers]


class _Summed(NamedTuple):
    """What one or two passes over the vocabulary leave for N positions.

    Attributes:
        kl: [m - 1, N] KL(policy ‖ network) for each of the others.
        log_prob: [N] log-probability of the tokens under the policy.
        row: [N, H] E_π[W]; empty unless it was asked for.
        pulled: [count, N, H] the weights of a second pass, summed times W over the vocabulary.
        value: [N] what the second pass returned, summed over the vocabulary; 0 without one.
    """

    kl: Tensor
    log_prob: Tensor
    row: Tensor
    pulled: Tensor
    value: Tensor


@torch.no_grad()
def _summed(
    policy: Tensor,
    others: Sequence[Tensor],
    weight: Tensor,
    tokens: Tensor,
    blocks: Blocks | None,
    *,
    with_row: bool = False,
    second: _SecondPass | None = None,
) -> _Summed:
    """Passes over the vocabulary, one block of positions after another.

    Args:
        policy: [N, H] hidden states.
        others: [N, H] those of each other network.
        weight: [V, H] the head.
        tokens: [N] token ids.
        blocks: how much is computed at once.
        with_row: whether `row` is asked for.
        second: the second pass, if there is one.
    """
    blocks = blocks or (CPU_BLOCKS if weight.device.type == "cpu" else GPU_BLOCKS)
    positions, wide, count = len(policy), _wide(weight[:0]).dtype, 0 if second is None else second.matrices
    head = _Head(weight, 1 + len(others), min(blocks.positions, positions), blocks.vocabulary, keep=count > 0)
    dtype = torch.float64 if policy.dtype == torch.float64 else wide
    kl, log_prob = policy.new_empty(len(others), positions, dtype=dtype), policy.new_empty(positions, dtype=dtype)
    row = weight.new_empty(positions if with_row else 0, weight.shape[1], dtype=wide)
    pulled = weight.new_zeros(count, positions, weight.shape[1], dtype=wide)
    value = weight.new_zeros(positions, dtype=wide)
    for start in range(0, positions, blocks.positions):
        block = slice(start, start + blocks.positions)
        base, *rest = (_wide(h[block]) for h in (policy, *others))
        differences = base.new_empty(len(rest), *base.shape, dtype=weight.dtype)
        for difference, h in zip(differences, rest, strict=True):
            difference.copy_(h - base)
        first = _first_pass(head, base.to(wide), differences, tokens[block], with_row)
        whole = first.lse.logsumexp(0)  # [m, n]
        share = (first.lse[:, 0] - whole[0]).exp()  # the policy's probability of each tile, [tiles, n]
        mean = (share[:, None] * first.mean).sum(0)
        kl[:, block] = (whole[1:] - whole[0] - mean).clamp(min=0)  # rounding may leave -1e-8
        log_prob[block] = (first.logit - whole[0]).clamp(max=0)
        if first.row is not None:
            row[block] = first.row
        if second is not None:
            _second_pass(head, first.tiles, share.to(wide), mean.to(wide), second, pulled[:, block], value[block])
    return _Summed(kl, log_prob, row, pulled, value)


class _FirstPass(NamedTuple):
    """What the first pass leaves for n positions.

    Attributes:
        tiles: the tiles, for a second pass.
        lse: [tiles, m, n] log Σ exp of each network's logits within each tile.
        mean: [tiles, m - 1, n] E_π of each difference within each tile.
        logit: [n] the policy's logits of the tokens.
        row: [n, H] E_π[W], if it was asked for.
    """

    tiles: list[Tensor]
    lse: Tensor
    mean: Tensor
    logit: Tensor
    row: Tensor | None


def _first_pass(head: _Head, policy: Tensor, differences: Tensor, tokens: Tensor, with_row: bool) -> _FirstPass:
    """Makes and sums the tiles of the policy's hidden states [n, H] and the differences [m - 1, n, H] to them."""
    tiles, lses, means, start = [], [], [], 0
    row: tuple[Tensor, Tensor] | None = None
    logit = policy.new_full((len(tokens),), math.nan)
    for number, part in enumerate(head.parts):
        logits, tile = head.tile(number, policy, differences)
        place = (tokens - start).clamp(0, len(part) - 1)
        here = logits.gather(-1, place[:, None]).squeeze(-1)
        logit = torch.where(place + start == tokens, here, logit)
        start += len(part)
        lse, mean = _tile_sums(logits, tile, head.buffers(tile))
        if with_row:
            row = _merged(row, (tile[0] @ part, lse[0]))
        tiles.append(tile)
        lses.append(lse)
        means.append(mean)
    return _FirstPass(tiles, torch.stack(lses), torch.stack(means), logit, None if row is None else row[0])


def _second_pass(
    head: _Head,
    tiles: list[Tensor],
    share: Tensor,
    mean: Tensor,
    second: _SecondPass,
    pulled: Tensor,
    value: Tensor,
) -> None:
    """Adds to `pulled` [count, n, H] and `value` [n] what each tile gives, times the tile's `share` [tiles, n]."""
    for tile, part, inside in zip(tiles, head.parts, share, strict=True):
        value += inside * second.weights(tile, mean[..., None], head.buffers(tile))
        product = tile[: second.matrices].flatten(0, 1) @ part
        pulled.addcmul_(product.view(pulled.shape), inside[:, None])


def _merged(one: tuple[Tensor, Tensor] | None, two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The mean over the union of two sets of tokens, from means [n, H] and log-weights [n] of the sets."""
    if one is None:
        return _wide(two[0]), two[1]
    whole = torch.logaddexp(one[1], two[1])
    first, second = ((part[1] - whole).exp().to(one[0].dtype)[:, None] for part in (one, two))
    return one[0].mul_(first).addcmul_(two[0], second), whole


# ------------------------------------------------------------------------------------- element by element, on one tile
# Each step goes into one of two buffers of the tile's shape, and the result into the tile itself.


def _tile_sums(logits: Tensor, tile: Tensor, buffers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """log Σ exp of each network [m, n], in float64, and E_π of each difference [m - 1, n], all within the tile.

    Puts π, normalised within the tile, into the first matrix of the tile; the policy's logits [n, v] are overwritten.
    """
    first, second = buffers
    # Where the policy has its mass, logits less their maximum are small, and adding a difference to them is exact.
    top = logits.amax(-1, keepdim=True)
    policy = logits.sub_(top)
    p = torch.softmax(policy, -1, out=second[0])
    differences = _widened(tile[1:], first[1:])
    mean = torch.mul(differences, p, out=second[1:]).sum(-1)
    others = torch.add(differences, policy, out=second[1:])
    highest = others.amax(-1).double()
    other_p = torch.softmax(others, -1, out=first[1:])
    # The largest p is exp(0) / Σ exp(z - max z): its logarithm saves a pass of exponentials.
    lse = torch.cat([-p.amax(-1)[None].double().log(), highest - other_p.amax(-1).double().log()])
    tile[0].copy_(p)
    return lse + top[:, 0].double(), mean


def _dueling_weights(tile: Tensor, mean: Tensor, buffers: Sequence[Tensor]) -> Tensor:
    """Leaves π, the weights of the gradient of KL(π ‖ critic), and half those of E_π[C²]; returns Σ π C².

    C = D - E_π[D] with D = z_critic - z_ρ; the networks are policy, reference and critic.
    """
    first, second = buffers
    p, reference, critic = _widened(tile, first)
    centred = torch.sub(critic, reference, out=second[0]).sub_(mean[1] - mean[0])
    weighted = torch.mul(p, centred, out=second[1])
    tile[1].copy_(torch.sub(mean[1], critic, out=second[2]).mul_(p))
    tile[2].copy_(weighted)
    return weighted.mul_(centred).sum(-1)


def _own_dueling_weights(tile: Tensor, mean: Tensor, buffers: Sequence[Tensor]) -> Tensor:
    """Leaves π, then half the weights of the gradient of E_π[C²]; returns Σ π C².

    C = E_π[d] - d with d = z_ρ - z_π; the policy is the critic.
    """
    first, second = buffers
    p, difference = _widened(tile, first)
    centred = torch.sub(mean[0], difference, out=second[0])
    weighted = torch.mul(p, centred, out=second[1])
    tile[1].copy_(weighted)
    return weighted.mul_(centred).sum(-1)


_DUELING = _SecondPass(_dueling_weights, 3)
_OWN_DUELING = _SecondPass(_own_dueling_weights, 2)


# ------------------------------------------------------------------------------------------------------ small things


def _widened(tile: Tensor, buffer: Tensor) -> Tensor:
    """The tile in float32 or wider: the tile itself, or a copy in the buffer."""
    return tile if tile.dtype == buffer.dtype else buffer.copy_(tile)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _wants_gradient(hidden: Tensor) -> bool:
    return hidden.requires_grad and torch.is_grad_enabled()


def _checked(weight: Tensor, tokens: Tensor, **states: Tensor) -> Tensor:
    """The tokens as 64-bit integers, once all arguments are checked.

    The head must be [V, H], all states finite [N, H] with N > 0, the tokens [N] from 0 to V - 1. That takes one pass
    over the states and one over the tokens.
    """
    checks.floats("weight", weight, (None, None))
    vocabulary, width = weight.shape
    positions: int | None = None  # the first states say how many
    for name, hidden in states.items():
        checks.floats(name, hidden, (positions, width))
        positions = len(hidden)
        if positions == 0:
            raise ValueError(f"{name}: shape {tuple(hidden.shape)}, expected at least one position")
        checks.finite(name, hidden.detach())
    checks.integers("tokens", tokens, (positions,), 0, vocabulary - 1)
    return tokens.long()
