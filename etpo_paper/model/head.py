"""Quantities over the whole vocabulary, without a [tokens, vocabulary] tensor.

The networks hand over hidden states; the language-model head W [V, H], frozen and shared by all of them, turns a hidden
state h into one logit a token, z = W h. With 49,152 tokens in the vocabulary these logits are large, so they are made
for a block of positions and a tile of the vocabulary at a time, reduced to a few numbers a position, and forgotten.
`statistics`, `policy_terms`, `dueling_terms` and `own_dueling_terms` give what the methods need, with gradients in
closed form;
`logit_taken` gives the logits of single tokens without the vocabulary; `streamed` does any other function of logits.

That the head is linear and shared saves products with it, and saves digits:

- E_pi[Q] of a network whose logits are Q is h . row, with row = E_pi[W_w] = sum_w pi(w) W_w, a vector of H numbers.
  One product gives it for any number of networks, and d log pi(a) / dh = W_a - row beside it.
- A network i is compared with the policy by the logits of the *difference*, d = W (h_i - h_pi), for which
  KL(pi || i) = log sum exp(z + d) - log sum exp(z) - E_pi[d], with the gradient E_pi[(E_pi[d] - d) W]. In bfloat16, d
  is wrong by a part of the difference and not of the logits, so that the KL of close policies keeps its digits.
- The policy that is best for Q, softmax(z_rho + Q / beta), has the hidden state h_rho + h_Q / beta, so the policy's
  loss is such a KL whichever way Q is read.

Products are taken in the dtype of W (bfloat16, float32 or float64), sums over a tile in float32 or wider, and sums over
tiles in float64. The policy's own logits are the exception: they are float32 at least, for log pi is what probability
ratios are made of, and a logit of 20 in bfloat16 is wrong by 0.04. Hidden states may have another dtype than W. Results
are float32, or float64 if an input is, and depend on the hidden states of their own position only.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Blocks(NamedTuple):
    """How much is computed at once; the results do not depend on it beyond rounding.

    Attributes:
        positions: hidden states at a time.
        vocabulary: tokens of the vocabulary at a time.
    """

    positions: int
    vocabulary: int


CPU_BLOCKS = Blocks(256, 2048)  # large enough for products at full speed, small enough to stay in cache
GPU_BLOCKS = Blocks(1024, 8192)  # a GPU prefers few large kernels
CHUNK = 64  # positions at a time in `streamed`: 64 x 49,152 float32 logits are 12 MB, small enough for cache and heap


# ------------------------------------------------------------------------------------------------ what methods need


class Statistics(NamedTuple):
    """Scalars at each position, all [N]; None for what was not asked for.

    Attributes:
        kl: KL[pi || rho] in nats; no gradient.
        expected_q: E_pi[Q] in the units of Q; no gradient.
        q_taken: Q of the given tokens; no gradient.
        log_prob: log pi of the given tokens; gradient into the policy's hidden states.
    """

    kl: Tensor | None
    expected_q: Tensor | None
    q_taken: Tensor | None
    log_prob: Tensor | None


def statistics(
    policy: Tensor,
    weight: Tensor,
    *,
    reference: Tensor | None = None,
    q: Tensor | None = None,
    tokens: Tensor | None = None,
    blocks: Blocks | None = None,
) -> Statistics:
    """KL[pi || rho], E_pi[Q], Q(a) and log pi(a), as far as the arguments they need are given.

    Equal to `bellman.kl_divergence`, `bellman.expected_q` and two lookups on whole logits (arXiv 2402.06700, the
    quantities of the per-token soft Bellman update). Costs one product with the head for the policy, one for `kl`, one
    for `expected_q` or the gradient of `log_prob`.

    Args:
        policy: hidden states [N, H].
        weight: the head [V, H], frozen.
        reference: hidden states [N, H], for `kl`.
        q: states [N, H] whose logits are Q, for `expected_q` and, with tokens, `q_taken`. Logits are linear in the
            states: Q = beta (z_critic - z_reference), say, has the states beta (critic - reference).
        tokens: token ids [N], for `log_prob` and `q_taken`.
        blocks: how much at once; None for what suits the device.

    Raises:
        ValueError: no position, or different numbers of them.
    """
    given = {"policy": policy, "reference": reference, "q": q, "tokens": tokens}
    _expect_positions(**{name: tensor for name, tensor in given.items() if tensor is not None})
    with_gradient = tokens is not None and _wants_gradient(policy)
    others = [] if reference is None else [reference]
    s = _summed(policy, others, weight, tokens, blocks, q=q, with_row=with_gradient)
    log_prob = None if tokens is None else s.log_prob
    taken = None
    if with_gradient:
        log_prob = _attached(policy, log_prob, s.row.neg_().add_(weight.detach()[tokens]))
    if q is not None and tokens is not None:
        pairs = zip(q.detach().split(CHUNK), tokens.split(CHUNK), strict=True)
        taken = torch.cat([logit_taken(a, weight.detach(), b) for a, b in pairs])
    return Statistics(s.kl[0] if others else None, s.expected, taken, log_prob)


class PolicyTerms(NamedTuple):
    """What the update of a policy needs at each position, all [N].

    Attributes:
        loss: KL(pi || pi*) in nats; gradient into the policy's hidden states only.
        kl: KL[pi || rho] in nats, no gradient.
        log_prob: log pi of the given tokens, no gradient.
    """

    loss: Tensor
    kl: Tensor
    log_prob: Tensor


def policy_terms(
    policy: Tensor,
    reference: Tensor,
    target: Tensor,
    weight: Tensor,
    tokens: Tensor,
    *,
    blocks: Blocks | None = None,
) -> PolicyTerms:
    """The policy's loss with its gradient, KL[pi || rho] and log pi(a).

    Equal to `losses.policy_loss`, `bellman.kl_divergence` and a lookup on whole logits (arXiv 2402.06700, per-token
    policy update). Costs three products with the head and one back.

    Args:
        policy: hidden states [N, H].
        reference: hidden states [N, H], a constant.
        target: hidden states [N, H] of the target policy, a constant: reference + q / beta for rho exp(Q / beta) / Z
            where Q are the logits of q.
        weight: the head [V, H], frozen.
        tokens: token ids [N].
        blocks: how much at once; None for what suits the device.

    Raises:
        ValueError: no position, or different numbers of them.
    """
    _expect_positions(policy=policy, reference=reference, target=target, tokens=tokens)
    second = {"kernel": _kernels.loss, "count": 1} if _wants_gradient(policy) else {}
    s = _summed(policy, [reference, target], weight, tokens, blocks, **second)
    kl, loss = s.kl
    return PolicyTerms(_attached(policy, loss, s.pulled[0]) if second else loss, kl, s.log_prob)


class DuelingTerms(NamedTuple):
    """What ETPO needs at each position under the dueling reading of Q, all [N].

    Attributes:
        policy_loss: KL(pi || rho exp(Q/beta) / Z); gradient into the policy's hidden states only.
        kl: KL[pi || rho], no gradient.
        log_prob: log pi(w) of the given tokens, no gradient.
        advantage: A(w) of the given tokens, in units of reward; gradient into the critic's hidden states only.
        spread: E_pi[A^2]; gradient into the critic's hidden states only.
    """

    policy_loss: Tensor
    kl: Tensor
    log_prob: Tensor
    advantage: Tensor
    spread: Tensor


def dueling_terms(
    policy: Tensor,
    reference: Tensor,
    critic: Tensor,
    weight: Tensor,
    tokens: Tensor,
    beta: float,
    *,
    blocks: Blocks | None = None,
) -> DuelingTerms:
    """The terms of ETPO's two losses under the dueling reading of Q, from hidden states and the frozen head.

    Equal to `losses.policy_loss`, `bellman.kl_divergence` and `losses.q_dueling` on whole logits, with the advantage a
    constant in the policy's loss and the policy a constant in the critic's. With A = beta (D - E_pi[D]), D = z_critic -
    z_reference, the optimum rho exp(A/beta) / Z is softmax(z_critic). Costs three products with the head and three
    back.

    Args:
        policy: hidden states [N, H].
        reference: hidden states [N, H], a constant.
        critic: hidden states [N, H].
        weight: the head [V, H], frozen.
        tokens: token ids [N] whose advantage and log-probability are wanted.
        beta: weight of the KL, in units of reward.
        blocks: how much at once; None for what suits the device.

    Raises:
        ValueError: no position, or different numbers of them.
    """
    _expect_positions(policy=policy, reference=reference, critic=critic, tokens=tokens)
    s = _summed(policy, [reference, critic], weight, tokens, blocks, kernel=_kernels.dueling, count=3)
    kl, loss = s.kl
    row, into_policy, into_critic = s.pulled
    advantage, spread = _advantage(critic, reference, weight, tokens, beta, row, into_critic, s.value)
    return DuelingTerms(_attached(policy, loss, into_policy), kl, s.log_prob, advantage, spread)


def own_dueling_terms(
    critic: Tensor,
    reference: Tensor,
    weight: Tensor,
    tokens: Tensor,
    beta: float,
    *,
    blocks: Blocks | None = None,
) -> DuelingTerms:
    """`dueling_terms` of a policy that has the critic's weights, pi = softmax(z_critic), at less cost.

    Such a policy is its own optimum, so its loss is 0 and without a gradient, and A(w) = beta (log pi(w) / rho(w) -
    KL[pi || rho]). Costs two products with the head and two back.

    Args:
        critic: hidden states [N, H]. Gradients reach them as in `dueling_terms`: pi is a constant.
        reference: hidden states [N, H], a constant.
        weight: the head [V, H], frozen.
        tokens: token ids [N] whose advantage and log-probability are wanted.
        beta: weight of the KL, in units of reward.
        blocks: how much at once; None for what suits the device.

    Raises:
        ValueError: no position, or different numbers of them.
    """
    _expect_positions(critic=critic, reference=reference, tokens=tokens)
    s = _summed(critic, [reference], weight, tokens, blocks, kernel=_kernels.own_dueling, count=2)
    row, into_critic = s.pulled
    advantage, spread = _advantage(critic, reference, weight, tokens, beta, row, into_critic, s.value)
    return DuelingTerms(torch.zeros_like(s.kl[0]), s.kl[0], s.log_prob, advantage, spread)


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
    """A of the tokens [N] and E_pi[A^2] [N], with their gradients into the critic.

    `row` is E_pi[W_w] [N, H] and is lost; `into_critic` E_pi[C W_w] [N, H], `square` E_pi[C^2] [N], with C = A / beta.
    """
    direction = row.neg_().add_(weight.detach()[tokens]).mul_(beta)  # d advantage / d critic
    triples = zip(critic.detach().split(CHUNK), reference.detach().split(CHUNK), direction.split(CHUNK), strict=True)
    advantage = torch.cat([((_wide(a) - _wide(b)) * d).sum(-1) for a, b, d in triples])
    return _attached(critic, advantage, direction), 2 * beta**2 * _attached(critic, square / 2, into_critic)


def logit_taken(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """Logits [N] of given tokens, differentiable: h . W_a, in float32 or wider whatever the dtypes are.

    A dot product with one row of the head each, so that a critic's loss, in which Q of the tokens drawn is all that
    counts, needs no product with the vocabulary.

    Args:
        hidden: hidden states [N, H].
        weight: the head [V, H].
        tokens: token ids [N].
    """
    return (_wide(hidden) * _wide(weight[tokens])).sum(-1)


# ----------------------------------------------------------------------------------------------- any other function


def streamed(
    function: Callable[..., Sequence[Tensor]], hidden: Tensor, *context: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, ...]:
    """Applies a per-position function of hidden states a chunk of positions at a time.

    The gradient with respect to `hidden` is taken chunk by chunk during the forward pass (each output of a position
    depends on that position alone, so it is one vector a position and output); nothing of size [tokens, vocabulary]
    outlives its chunk.

    Args:
        function: takes (hidden [n, H], *context [n, ...]) and returns a sequence of tensors [n].
        hidden: [N, H], the only argument that gets a gradient.
        context: tensors of N rows, detached.
        chunk: positions at a time.

    Returns:
        The function's outputs, each [N].
    """
    if len(hidden) == 0:
        raise ValueError(f"hidden has shape {tuple(hidden.shape)}; expected at least one position")
    outputs, gradients, with_gradient = [], [], _wants_gradient(hidden)
    for start in range(0, len(hidden), chunk):
        part = slice(start, start + chunk)
        with torch.enable_grad():
            leaf = hidden[part].detach().requires_grad_(with_gradient)
            results = function(leaf, *(c[part].detach() for c in context))
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
    def forward(ctx, hidden, values, gradient):
        ctx.save_for_backward(gradient)
        return values.clone()

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return upstream[:, None] * gradient, None, None


def _attached(hidden: Tensor, values: Tensor, gradient: Tensor | None) -> Tensor:
    """Values [N] with the gradient [N, H] with respect to hidden states [N, H] that was computed beside them."""
    return values if gradient is None else _Attached.apply(hidden, values, gradient)


# ------------------------------------------------------------------------------------------------------ the passes


class _Head:
    """The frozen head cut into tiles of the vocabulary, with the memory that one block of positions needs.

    Args:
        weight: [V, H].
        networks: how many networks' logits make a tile.
        positions: the largest block.
        vocabulary: the largest tile.
        keep: whether the tiles of a block outlive each other, for a second pass.
    """

    def __init__(self, weight: Tensor, networks: int, positions: int, vocabulary: int, keep: bool):
        self.parts = weight.detach().split(vocabulary)
        self.keep, self.wide = keep, _wide(weight[:0]).dtype
        rows = networks * positions
        # Memory that is given back and fetched again for every tile costs more than the arithmetic on it.
        self._tiles = weight.new_empty(rows * (len(weight) if keep else len(self.parts[0])))
        self._buffers = [weight.new_empty(rows * len(self.parts[0]), dtype=self.wide) for _ in range(2)]
        self._part = torch.empty_like(self.parts[0], dtype=self.wide)

    def tile(self, number: int, policy: Tensor, differences: Tensor) -> tuple[Tensor, Tensor]:
        """Logits for the tokens of one part of the vocabulary.

        Args:
            number: of the part.
            policy: the policy's hidden states [n, H], wide.
            differences: those of the others less the policy's [m - 1, n, H], in the dtype of the head.

        Returns:
            The policy's logits [n, v], wide, in the first of the `buffers`, and a tile [m, n, v] whose first matrix is
            still empty, the others being the logits of the differences.
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
        """Two wide tensors of a tile's shape."""
        return [b[: tile.numel()].view(tile.shape) for b in self._buffers]


class _Summed(NamedTuple):
    """What one or two passes over the vocabulary leave of N positions, for the policy and m - 1 other networks.

    Attributes:
        kl: KL(policy || network) of each of the others [m - 1, N].
        log_prob: log-probability of the given tokens under the policy [N].
        expected: E_pi[Q] [N], or None.
        row: E_pi[W_w] [N, H], or None.
        pulled: the weights that a kernel made, summed times W over the vocabulary [count, N, H], or None.
        value: what that kernel returned, summed over the vocabulary [N], or None.
    """

    kl: Tensor
    log_prob: Tensor
    expected: Tensor | None
    row: Tensor | None
    pulled: Tensor | None
    value: Tensor | None


@torch.no_grad()
def _summed(
    policy: Tensor,
    others: Sequence[Tensor],
    weight: Tensor,
    tokens: Tensor | None,
    blocks: Blocks | None,
    *,
    q: Tensor | None = None,
    with_row: bool = False,
    kernel: Callable | None = None,
    count: int = 0,
) -> _Summed:
    """Passes over the vocabulary, block by block of positions.

    Args:
        policy: hidden states [N, H].
        others: those of the other networks.
        weight: the head [V, H].
        tokens: token ids [N], or None for any.
        blocks: how much at once.
        q: states [N, H] whose logits are Q, if `expected` is wanted.
        with_row: whether `row` is wanted.
        kernel: of a second pass; it puts `count` weights in front in a tile.
        count: see there.
    """
    blocks = blocks or (CPU_BLOCKS if weight.device.type == "cpu" else GPU_BLOCKS)
    positions, wide = len(policy), _wide(weight[:0]).dtype
    head = _Head(weight, 1 + len(others), min(blocks.positions, positions), blocks.vocabulary, keep=count > 0)
    dtype = torch.float64 if policy.dtype == torch.float64 else wide
    kl, log_prob = policy.new_empty(len(others), positions, dtype=dtype), policy.new_empty(positions, dtype=dtype)
    expected = torch.empty_like(log_prob) if q is not None else None
    row = weight.new_empty(positions, weight.shape[1], dtype=wide) if with_row else None
    pulled = weight.new_zeros(count, positions, weight.shape[1], dtype=wide) if count else None
    value = weight.new_zeros(positions, dtype=wide) if count else None
    tokens = policy.new_zeros(positions, dtype=torch.long) if tokens is None else tokens
    for start in range(0, positions, blocks.positions):
        block = slice(start, start + blocks.positions)
        base, *rest = (_wide(h[block]) for h in (policy, *others))
        differences = base.new_empty(len(rest), *base.shape, dtype=weight.dtype)
        for difference, h in zip(differences, rest, strict=True):
            difference.copy_(h - base)
        with_rows = with_row or q is not None
        tiles, lse, mean, logit, rows = _first_pass(head, base.to(wide), differences, tokens[block], with_rows)
        whole = lse.logsumexp(0)  # [m, n]
        share = (lse[:, 0] - whole[0]).exp()  # the policy's probability of each tile, [tiles, n]
        mean = (share[:, None] * mean).sum(0)
        kl[:, block] = (whole[1:] - whole[0] - mean).clamp(min=0)  # rounding may leave -1e-8
        log_prob[block] = (logit - whole[0]).clamp(max=0)
        if q is not None:
            expected[block] = (rows * q[block]).sum(-1)
        if with_row:
            row[block] = rows
        if count:
            _second_pass(head, tiles, share.to(wide), mean.to(wide), kernel, pulled[:, block], value[block])
    return _Summed(kl, log_prob, expected, row, pulled, value)


def _first_pass(head: _Head, policy: Tensor, differences: Tensor, tokens: Tensor, with_row: bool):
    """Makes and sums the tiles of the policy's hidden states [n, H] and the differences [m - 1, n, H] to them.

    Returns:
        The tiles, their log sum exp [tiles, m, n] and means [tiles, m - 1, n] (see `_sums`), the policy's logits
        of the tokens [n], and E_pi[W_w] [n, H] or None.
    """
    tiles, lses, means, row = [], [], [], None
    logit, start = policy.new_full((len(tokens),), math.nan), 0  # NaN for no token of the vocabulary
    for number, part in enumerate(head.parts):
        logits, tile = head.tile(number, policy, differences)
        place = (tokens - start).clamp(0, len(part) - 1)
        here = logits.gather(-1, place[:, None]).squeeze(-1)
        logit = torch.where(place + start == tokens, here, logit)
        start += len(part)
        lse, mean = _kernels.sums(logits, tile, head.buffers(tile))
        if with_row:
            row = _merged(row, (tile[0] @ part, lse[0]))
        tiles.append(tile)
        lses.append(lse)
        means.append(mean)
    return tiles, torch.stack(lses), torch.stack(means), logit, row and row[0]


def _second_pass(
    head: _Head, tiles: list[Tensor], share: Tensor, mean: Tensor, kernel: Callable, pulled: Tensor, value: Tensor
) -> None:
    """Adds to `pulled` [count, n, H] and `value` [n] what a kernel makes of each tile, times the tile's share."""
    count = len(pulled)
    for tile, part, inside in zip(tiles, head.parts, share, strict=True):
        value += inside * kernel(tile, mean[..., None], head.buffers(tile))
        product = tile[:count].flatten(0, 1) @ part
        pulled.addcmul_(product.view(pulled.shape), inside[:, None])


def _merged(one: tuple[Tensor, Tensor] | None, two: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Means [n, H] over two sets of tokens and the logarithms of the sets' weights [n], made one."""
    if one is None:
        return _wide(two[0]), two[1]
    whole = torch.logaddexp(one[1], two[1])
    first, second = ((part[1] - whole).exp().to(one[0].dtype)[:, None] for part in (one, two))
    return one[0].mul_(first).addcmul_(two[0], second), whole


# ----------------------------------------------------------------------------------------------------- the kernels
# Everything element-wise, on one tile [m, n, v]: the policy's probabilities, then the logits of the differences to it.
# A kernel leaves its result in the tile. Each is there twice: written plainly, for a compiler to make one loop of it,
# and with every step in one of two wide buffers of the tile's shape, which is what runs without a compiler.


def _sums(logits: Tensor, tile: Tensor, buffers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """log sum exp of each network [m, n], float64, and E_pi of each difference [m - 1, n], all within the tile.

    Puts pi, normalised within the tile, in front in the tile; the policy's logits [n, v] are lost.
    """
    first, second = buffers
    # Where the policy is, logits less their maximum are small, and adding the difference to them loses little.
    top = logits.amax(-1, keepdim=True)
    policy = logits.sub_(top)
    p = torch.softmax(policy, -1, out=second[0])
    differences = _widened(tile[1:], first[1:])
    mean = torch.mul(differences, p, out=second[1:]).sum(-1)
    others = torch.add(differences, policy, out=second[1:])
    highest = others.amax(-1).double()
    other_p = torch.softmax(others, -1, out=first[1:])
    # The largest p is exp(0) / sum exp(z - max z): its logarithm saves a pass of exponentials.
    lse = torch.cat([-p.amax(-1)[None].double().log(), highest - other_p.amax(-1).double().log()])
    tile[0].copy_(p)
    return lse + top[:, 0].double(), mean


def _plain_sums(logits: Tensor, tile: Tensor, buffers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    top = logits.amax(-1, keepdim=True)
    policy, difference = logits - top, _wide(tile[1:])
    weight = policy.exp()
    total = weight.sum(-1)
    mean = (weight * difference).sum(-1) / total
    others = policy + difference
    highest = others.amax(-1)
    other_total = (others - highest[..., None]).exp().sum(-1)
    tile[0].copy_(weight / total[:, None])
    lse = torch.cat([total[None].double().log(), highest.double() + other_total.double().log()])
    return lse + top[:, 0].double(), mean


def _loss_weights(tile: Tensor, mean: Tensor, buffers: Sequence[Tensor]) -> Tensor:
    """pi (E_pi[d] - d), the weights of the gradient of KL(pi || last network); nothing to sum.

    A tile comes as `_sums` left it, with E_pi of each difference over the whole vocabulary [m - 1, n, 1].
    """
    tile[0].copy_(torch.sub(mean[-1], tile[-1], out=buffers[0][0]).mul_(tile[0]))
    return torch.zeros_like(mean[0, :, 0])


def _plain_loss_weights(tile: Tensor, mean: Tensor, buffers: Sequence[Tensor]) -> Tensor:
    tile[0].copy_((mean[-1] - tile[-1]) * tile[0])
    return torch.zeros_like(mean[0, :, 0])


def _dueling_weights(tile: Tensor, mean: Tensor, buffers: Sequence[Tensor]) -> Tensor:
    """pi, the weights of the gradient of KL(pi || critic), and half those of E_pi[C^2]; the sum of pi C^2.

    C = D - E_pi[D] with D = z_critic - z_reference; the networks are policy, reference, critic.
    """
    first, second = buffers
    p, reference, critic = _widened(tile, first)
    centred = torch.sub(critic, reference, out=second[0]).sub_(mean[1] - mean[0])
    weighted = torch.mul(p, centred, out=second[1])
    tile[1].copy_(torch.sub(mean[1], critic, out=second[2]).mul_(p))
    tile[2].copy_(weighted)
    return weighted.mul_(centred).sum(-1)


def _plain_dueling_weights(tile: Tensor, mean: Tensor, buffers: Sequence[Tensor]) -> Tensor:
    p, reference, critic = _wide(tile)
    centred = (critic - reference) - (mean[1] - mean[0])
    weighted, into_policy = p * centred, p * (mean[1] - critic)
    tile[1].copy_(into_policy)
    tile[2].copy_(weighted)
    return (weighted * centred).sum(-1)


def _own_dueling_weights(tile: Tensor, mean: Tensor, buffers: Sequence[Tensor]) -> Tensor:
    """pi stays in front, then half the weights of the gradient of E_pi[C^2]; the sum of pi C^2.

    C = E_pi[d] - d, with d = z_reference - z of the policy, which is the critic.
    """
    first, second = buffers
    p, difference = _widened(tile, first)
    centred = torch.sub(mean[0], difference, out=second[0])
    weighted = torch.mul(p, centred, out=second[1])
    tile[1].copy_(weighted)
    return weighted.mul_(centred).sum(-1)


def _plain_own_dueling_weights(tile: Tensor, mean: Tensor, buffers: Sequence[Tensor]) -> Tensor:
    p, difference = _wide(tile)
    centred = mean[0] - difference
    weighted = p * centred
    tile[1].copy_(weighted)
    return (weighted * centred).sum(-1)


def _widened(tile: Tensor, buffer: Tensor) -> Tensor:
    """The tile in float32 or wider: itself, or in the buffer."""
    return tile if tile.dtype == buffer.dtype else buffer.copy_(tile)


class _Kernels(NamedTuple):
    sums: Callable
    loss: Callable
    dueling: Callable
    own_dueling: Callable


_EAGER = _Kernels(_sums, _loss_weights, _dueling_weights, _own_dueling_weights)
_PLAIN = _Kernels(_plain_sums, _plain_loss_weights, _plain_dueling_weights, _plain_own_dueling_weights)
_kernels = _EAGER


def use_eager() -> None:
    """Goes back to the kernels that need no compiler: the default."""
    global _kernels
    _kernels = _EAGER


def use_compiled(weight: Tensor) -> str:
    """Compiles the element-wise kernels, and uses them from here on if they are as exact as the eager ones.

    Takes about a minute the first time; a C++ compiler (or Triton, on a GPU) must be there.

    Args:
        weight: the head [V, H]. What decides are quantities and gradients of some random hidden states with a part of
            it, against float64.

    Returns:
        Why the eager kernels stay, or "" if the compiled ones are used from here on.
    """
    global _kernels
    use_eager()
    weight = weight[:3000]
    eager, exact = _probe(weight), _probe(weight.double())
    try:
        _kernels = _Kernels(*(torch.compile(kernel, dynamic=True) for kernel in _PLAIN))
        compiled = _probe(weight)
    except Exception as error:  # no compiler, no support for the platform: as many types as causes
        use_eager()
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    worse = [
        name
        for name, e in exact.items()
        if not (compiled[name] - e).norm() <= 1.5 * (eager[name] - e).norm() + 1e-7 * e.norm()
    ]
    if worse:
        use_eager()
        return f"less exact than the eager kernels: {', '.join(worse)}"
    return ""


def _probe(weight: Tensor) -> dict[str, Tensor]:
    """What every kernel computes and its gradients, for random hidden states, two blocks of them, in float64."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(3, 300, weight.shape[1], generator=generator).to(weight.device)
    tokens = torch.randint(len(weight), (300,), generator=generator).to(weight.device)
    policy, reference, critic = (states[0], states[0] + 0.1 * states[1], states[0] + 0.1 * states[2])
    policy, reference, critic = (h.bfloat16().to(weight.dtype) for h in (policy, reference, critic))
    policy, critic = policy.requires_grad_(), critic.requires_grad_()
    terms = {
        "statistics": statistics(policy, weight, reference=reference, q=critic, tokens=tokens),
        "policy_terms": policy_terms(policy, reference, critic, weight, tokens),
        "dueling_terms": dueling_terms(policy, reference, critic, weight, tokens, 1.0),
        "own_dueling_terms": own_dueling_terms(critic, reference, weight, tokens, 1.0),
    }
    found = {}
    for function, group in terms.items():
        for name, value in zip(group._fields, group, strict=True):
            name = f"{function}.{name}"
            found[name] = value.detach().double()
            if value.requires_grad:
                slopes = torch.autograd.grad(value.sum(), (policy, critic), allow_unused=True, retain_graph=True)
                found[f"gradient of {name}"] = next(s for s in slopes if s is not None).double()
    return found


# ------------------------------------------------------------------------------------------------------ small things


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _wants_gradient(hidden: Tensor) -> bool:
    return hidden.requires_grad and torch.is_grad_enabled()


def _expect_positions(**tensors: Tensor) -> None:
    sizes = [len(t) for t in tensors.values()]
    if sizes[0] == 0 or len(set(sizes)) > 1:
        raise ValueError(f"{', '.join(tensors)} have {sizes} positions; expected the same number, not 0")
