"""The per-token soft Bellman backup as pure functions of plain tensors (arXiv 2402.06700).

A state s is a text, an action a = (w¹ … w^L) is a text too: it is written token by token by the policy π,
then executed whole, and one reward comes back. The policy is kept near the reference ρ (the original
language model, frozen) by a KL penalty of weight β. This module answers one question: which number should
the critic's Q(s, w¹ … wʲ⁻¹, wʲ) move to?

Layout. A batch holds B actions, padded at the right to T tokens, `lengths` [B] says how many tokens are
real. Position j (from 0) holds what belongs to the *prefix* (s, w¹ … wʲ), the distribution from which
token j of the row is drawn:

    position j      0            1             …   L-1             L … T-1
    prefix          (s)          (s, w¹)           (s, w¹…w^{L-1})  padding: never read, targets are 0
    token drawn     w¹           w²                w^L = last one

So the *soft value* at j is E_{w~π}[Q(s, w¹…wʲ, w)] - β KL[π‖ρ](s, w¹…wʲ), and the *target* at j is for the
Q of the token drawn at j. Padding is told by position, never by token value. An action is undiscounted
inside; γ stands only between an action and the next. `done` marks an episode that ended by itself: nothing
follows. An episode cut at the step limit is not done: it bootstraps from the state it reached.

Nothing here is reduced, detached or moved: the caller does that. Results are float32, or float64 if an
input is. Every function raises ValueError, naming the argument, its shape and what was expected, for a
wrong shape, dtype, length, or a NaN where a number is read.
"""

import math

import torch
from torch import Tensor


def position_mask(lengths: Tensor, tokens: int) -> Tensor:
    """Which positions hold a token of the action: True at j < lengths.

    Args:
        lengths: integer [B], tokens of each action, between 1 and `tokens`.
        tokens: T, the padded length.

    Returns:
        bool [B, T].

    Raises:
        ValueError: `lengths` is not an integer vector, or holds a length outside 1 … T.
    """
    if not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"tokens: got {tokens!r}, expected a whole number of at least 1")
    _expect_integers("lengths", lengths, (None,))
    if lengths.numel() and not ((lengths >= 1) & (lengths <= tokens)).all():
        raise ValueError(
            f"lengths: shape {tuple(lengths.shape)} holds {int(lengths.min())} to {int(lengths.max())}, "
            f"expected 1 to {tokens} (the padded length)"
        )
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


def kl_divergence(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """Full-vocabulary KL of the next token, in nats: KL[π‖ρ] = Σ_w π(w) (log π(w) - log ρ(w)).

    Source: arXiv 2402.06700, the KL term of the per-token soft Bellman update. Both arguments are of the
    same prefix.

    Args:
        policy_logits: [..., V] unnormalised log-probabilities of π; -inf forbids a token.
        reference_logits: [..., V] the same of ρ.

    Returns:
        [...] at least 0; +inf where π allows a token that ρ forbids. Computed in float32 or wider whatever
        comes in.

    Raises:
        ValueError: shapes differ, no vocabulary, not floating point, NaN or +inf, or a row that forbids
        every token.
    """
    _expect_logits("policy_logits", policy_logits)
    _expect_floats("reference_logits", reference_logits, policy_logits.shape)
    log_policy = torch.log_softmax(_wide(policy_logits), dim=-1)
    log_reference = torch.log_softmax(_wide(reference_logits), dim=-1)
    probability = log_policy.exp()
    # A token of probability 0 adds 0, whatever its log-ratio; masking before the product keeps 0 * inf out of
    # the value and out of the gradient.
    seen = probability > 0
    log_ratio = torch.where(seen, log_policy, 0) - torch.where(seen, log_reference, 0)
    divergence = (probability * log_ratio).sum(dim=-1)
    if torch.isnan(divergence).any():
        _blame_logits(policy_logits=policy_logits, reference_logits=reference_logits)
    return divergence.clamp(min=0)  # rounding may leave -1e-8


def expected_q(policy_logits: Tensor, q: Tensor) -> Tensor:
    """Mean of Q over the next token: E_{w~π}[Q(w)] = Σ_w π(w) Q(w), over the whole vocabulary.

    Source: arXiv 2402.06700, the expectation in the per-token soft Bellman update. Both arguments are of
    the same prefix.

    Args:
        policy_logits: [..., V] unnormalised log-probabilities of π; -inf forbids a token.
        q: [..., V] in units of reward; an infinite Q is ignored where π is 0.

    Returns:
        [...] in units of reward, float32 or wider.

    Raises:
        ValueError: shapes differ, not floating point, NaN, +inf logits, or a row that forbids every token.
    """
    _expect_logits("policy_logits", policy_logits)
    _expect_floats("q", q, policy_logits.shape)
    return _mean_under(torch.softmax(_wide(policy_logits), dim=-1), _wide(q), policy_logits, q)


def overlap_q(policy_logits: Tensor, behaviour_logits: Tensor, q: Tensor) -> Tensor:
    """Mean of Q where policy and sampling distribution agree: Σ_w min(π, μ) Q(w) / Σ_w min(π, μ).

    The baseline that makes truncated importance weights exact: see `lambda_targets`. With μ = π it is E_π[Q].

    Args:
        policy_logits: [..., V] of π.
        behaviour_logits: [..., V] of μ, from which the tokens were drawn, after temperature and top-k
            (-inf outside).
        q: [..., V] in units of reward.

    Returns:
        [...] in units of reward; 0 where π and μ share no token (all weights are then 0 as well).

    Raises:
        ValueError: as `expected_q`.
    """
    _expect_logits("policy_logits", policy_logits)
    _expect_floats("behaviour_logits", behaviour_logits, policy_logits.shape)
    _expect_floats("q", q, policy_logits.shape)
    policy = torch.softmax(_wide(policy_logits), dim=-1)
    behaviour = torch.softmax(_wide(behaviour_logits), dim=-1)
    if torch.isnan(behaviour.sum(dim=-1)).any():
        _blame_logits(behaviour_logits=behaviour_logits)
    overlap = torch.minimum(policy, behaviour)
    total = overlap.sum(dim=-1, keepdim=True)
    share = overlap / torch.where(total > 0, total, 1)
    return _mean_under(share, _wide(q), policy_logits, q)


def soft_value(expected_q: Tensor, kl: Tensor, beta: float) -> Tensor:
    """Soft value of a prefix: V(s, w¹…wʲ) = E_{w~π}[Q(s, w¹…wʲ, w)] - β KL[π‖ρ](s, w¹…wʲ).

    Source: arXiv 2402.06700, right-hand side of the per-token soft Bellman update. At position 0 it is the
    soft value of the state: what `next_soft_value` of the preceding action must hold.

    Args:
        expected_q: [...] E_π[Q] at each prefix, in units of reward.
        kl: [...] KL[π‖ρ] at the same prefixes, in nats.
        beta: β ≥ 0, units of reward per nat.

    Returns:
        [...] in units of reward.

    Raises:
        ValueError: shapes differ, not floating point, NaN, or a negative β.
    """
    _expect_floats("expected_q", expected_q, None)
    _expect_floats("kl", kl, expected_q.shape)
    _expect_number("beta", beta, 0.0, math.inf)
    value = _wide(expected_q) - beta * _wide(kl)
    if torch.isnan(value).any():
        _expect_no_nan("expected_q", expected_q)
        _expect_no_nan("kl", kl)
        raise ValueError(f"expected_q, kl: shape {tuple(kl.shape)} infinite in both, expected finite values")
    return value


def token_targets(
    soft_values: Tensor,
    lengths: Tensor,
    reward: Tensor,
    done: Tensor,
    next_soft_value: Tensor,
    gamma: float,
    inner_discount: float = 1.0,
) -> Tensor:
    """One-step targets, a token each: the per-token soft Bellman update.

    Source: arXiv 2402.06700, per-token soft Bellman update, with V the soft value:

        j < L:  y(s_t, w¹…wʲ⁻¹, wʲ) = V(s_t, w¹…wʲ)
        j = L:  y(s_t, w¹…w^{L-1}, w^L) = r_t + γ (1 - done_t) V(s_{t+1})

    so the target of position j reads `soft_values` at position j + 1, of the same action.

    Args:
        soft_values: [B, T] V at each prefix, in units of reward; position 0 (the state) enters no target
            of its own row.
        lengths: integer [B], tokens of each action, 1 … T.
        reward: [B] r_t, given once to the whole action.
        done: bool [B], the episode ended by itself after this action. Not for a cut at the step limit.
        next_soft_value: [B] V(s_{t+1}) at its empty prefix; not read where done.
        gamma: γ in [0, 1], discount between actions.
        inner_discount: discount between tokens. 1 is ETPO; any other value breaks the equivalence with the
            action-level update, γ gives token-by-token MDPs ("NTPO", arXiv 2405.15821).

    Returns:
        [B, T] in units of reward, 0 at padding.

    Raises:
        ValueError: see the module.
    """
    mask = _expect_batch(soft_values, "soft_values", lengths)
    bootstrap = _bootstrap(reward, done, next_soft_value, gamma, lengths.shape)
    _expect_number("inner_discount", inner_discount, 0.0, 1.0)
    values = _read("soft_values", soft_values, mask)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    targets = torch.where(_last(lengths, mask), bootstrap[:, None], inner_discount * following)
    return torch.where(mask, targets, 0)


def lambda_targets(
    expected_q: Tensor,
    kl: Tensor,
    lengths: Tensor,
    reward: Tensor,
    done: Tensor,
    next_soft_value: Tensor,
    beta: float,
    gamma: float,
    lam: float,
    importance: Tensor | None = None,
    baseline: Tensor | None = None,
    inner_discount: float = 1.0,
) -> Tensor:
    """Soft λ-returns inside an action: the reward reaches every token of it in one update.

    With position j as in the module, V the soft value and b the baseline (E_π[Q] unless given):

        j < L - 1:  y_j = V_{j+1} + c_{j+1} (y_{j+1} - b_{j+1})      with c_j = λ min(1, π(w_j) / μ(w_j))
        j = L - 1:  y_j = r_t + γ (1 - done_t) V(s_{t+1})

    λ = 0 is `token_targets`. λ = 1 with μ = π is the Monte-Carlo return inside the action,
    r_t - β Σ_{i>j} KL_i + γ (1 - done_t) V(s_{t+1}).

    Which form is consistent. Q^π is a fixed point of the expected update exactly if the correction
    vanishes there at every prefix, E_{w~μ}[c (Q^π(w) - b)] = 0:

    * μ = π (no weights, or all 1): true for the default b = E_π[Q]. This is the form with the plain λ-return.
    * μ ≠ π, b = `overlap_q(policy, behaviour, q)`: true for every μ, truncated or not, and still the plain
      λ-return when μ = π.
    * μ ≠ π, b = Q(w_j) of the token drawn: true for every μ; this is Retrace (arXiv 1606.02647). It is
      exact in the mean, but its λ = 1 is not the plain return row by row, and a critic that has learnt
      drawn tokens only (their Q high, all others at their initial value) makes every y - b wrong by that
      gap, added up along the action.
    * μ ≠ π, default b: *not* true. Inside the action it evaluates the mixture π + λ (min(π, μ) - m π),
      m = Σ_w min(π, μ), instead of π: stable, and biased as far as μ differs from π.

    Args:
        expected_q: [B, T] E_π[Q] at each prefix, in units of reward.
        kl: [B, T] KL[π‖ρ] at the same prefixes, in nats.
        lengths: integer [B], tokens of each action, 1 … T.
        reward: [B] r_t.
        done: bool [B], as in `token_targets`.
        next_soft_value: [B] V(s_{t+1}); not read where done.
        beta: β ≥ 0, units of reward per nat.
        gamma: γ in [0, 1], between actions only.
        lam: λ in [0, 1].
        importance: [B, T] π(w_j) / μ(w_j) ≥ 0 of the token drawn at position j, not yet truncated; None
            where μ = π. Position 0 enters no target of its own action.
        baseline: [B, T] b at each prefix, in units of reward; None for `expected_q`.
        inner_discount: δ, discount between tokens: y_j = δ (V_{j+1} + …) for j < L - 1. 1 is ETPO; see
            `token_targets`.

    Returns:
        [B, T] in units of reward, 0 at padding.

    Raises:
        ValueError: see the module.
    """
    _expect_number("inner_discount", inner_discount, 0.0, 1.0)
    trace = _trace(expected_q, kl, lengths, beta, lam, importance, baseline)
    return _unroll(trace, _bootstrap(reward, done, next_soft_value, gamma, lengths.shape), inner_discount)


def episode_lambda_targets(
    expected_q: Tensor,
    kl: Tensor,
    lengths: Tensor,
    reward: Tensor,
    done: Tensor,
    next_soft_value: Tensor,
    next_action: Tensor,
    beta: float,
    gamma: float,
    lam: float,
    importance: Tensor | None = None,
    baseline: Tensor | None = None,
) -> Tensor:
    """Soft λ-returns that run on from an action into the next one of the episode.

    The recursion of `lambda_targets`, with the last token of an action that another row follows looking
    into that row:

        y_{t, L-1} = r_t + γ [ V_{t+1, 0} + c_{t+1, 0} (y_{t+1, 0} - b_{t+1, 0}) ]

    so λ = 0 is again the one-step backup, and λ = 1 the Monte-Carlo return to the end of what was
    sampled, Σ_k γᵏ r_{t+k} less β times every later KL, discounted as often as the action it stands in.

    Args:
        expected_q: [B, T] as in `lambda_targets`, and so are the arguments not named here.
        kl: [B, T].
        lengths: integer [B].
        reward: [B].
        done: bool [B]; a row that is done has no next action.
        next_soft_value: [B]; read only where the row is not done and `next_action` is -1: the cut at the
            step limit or the end of the rollout. Elsewhere V_{t+1, 0} is computed from the row that follows.
        next_action: integer [B], the row that holds the action taken in s_{t+1}, or -1 if the batch has none.
        beta: β ≥ 0.
        gamma: γ in [0, 1].
        lam: λ in [0, 1].
        importance: [B, T]; position 0 counts here.
        baseline: [B, T].

    Returns:
        [B, T] in units of reward, 0 at padding.

    Raises:
        ValueError: see the module; or `next_action` points outside the batch, on from a done row, or in a
        circle.
    """
    trace = _trace(expected_q, kl, lengths, beta, lam, importance, baseline)
    rows = lengths.shape[0]
    _expect_integers("next_action", next_action, (rows,))
    _expect_bools("done", done, (rows,))
    if rows and not ((next_action >= -1) & (next_action < rows)).all():
        raise ValueError(f"next_action: shape ({rows},), expected -1 or a row of the batch, 0 … {rows - 1}")
    followed = next_action >= 0
    if (followed & done).any():
        raise ValueError(f"next_action: shape ({rows},), expected -1 wherever done is True")
    _expect_floats("next_soft_value", next_soft_value, (rows,))
    bootstrap = _bootstrap(reward, done, torch.where(followed, 0, next_soft_value), gamma, lengths.shape)
    successor = next_action.clamp(min=0).long()
    targets = _unroll(trace, bootstrap)
    settled = ~followed
    while not settled.all():  # one pass an environment step: rows whose successor is settled become settled
        values, weights, baselines, _ = (part[:, 0] for part in trace)
        carried = (values + weights * (targets[:, 0] - baselines))[successor]
        targets = _unroll(trace, torch.where(followed, _wide(reward) + gamma * carried, bootstrap))
        newly = settled | settled[successor]
        if torch.equal(newly, settled):
            raise ValueError(f"next_action: shape ({rows},) runs in a circle, expected a last action")
        settled = newly
    return targets


def action_targets(
    lengths: Tensor,
    tokens: int,
    reward: Tensor,
    done: Tensor,
    next_soft_value: Tensor,
    gamma: float,
) -> Tensor:
    """One target for all tokens of an action: the action-level soft Bellman update.

    Source: arXiv 2402.06700, action-level soft Bellman update, Q(s_t, a_t) ← r_t + γ (1 - done_t)
    V(s_{t+1}) with V(s) = E_{a~π}[Q(s, a)] - β KL[π‖ρ](s), the KL of whole actions. Giving this number to
    each token is the paper's ablation "without the per-token update": it agrees with `token_targets` at
    the last token only; earlier tokens get the outcome of the one action that was drawn instead of an
    expectation, and none of the later KLs.

    Args:
        lengths: integer [B], tokens of each action, 1 … T.
        tokens: T, the padded length.
        reward: [B] r_t.
        done: bool [B], as in `token_targets`.
        next_soft_value: [B] V(s_{t+1}) of whole actions; not read where done.
        gamma: γ in [0, 1].

    Returns:
        [B, T] in units of reward, the same number at every position of a row, 0 at padding.

    Raises:
        ValueError: see the module.
    """
    mask = position_mask(lengths, tokens)
    bootstrap = _bootstrap(reward, done, next_soft_value, gamma, lengths.shape)
    return torch.where(mask, bootstrap[:, None], 0)


# ---------------------------------------------------------------------------------------------- the recursion


def _trace(expected_q, kl, lengths, beta, lam, importance, baseline):
    """What the λ-recursion reads, clean of padding: V, c, b, last position; each [B, T]."""
    mask = _expect_batch(expected_q, "expected_q", lengths)
    _expect_floats("kl", kl, expected_q.shape)
    _expect_number("beta", beta, 0.0, math.inf)
    _expect_number("lam", lam, 0.0, 1.0)
    mean = _read("expected_q", expected_q, mask)
    values = mean - beta * _read("kl", kl, mask)
    weights = torch.full_like(values, lam)
    if importance is not None:
        _expect_floats("importance", importance, expected_q.shape)
        ratio = torch.where(mask, _wide(importance), 1)
        if not (ratio >= 0).all():  # also catches NaN; +inf is a fair ratio, truncated to 1
            raise ValueError(f"importance: shape {tuple(ratio.shape)} holds NaN or negatives, expected ratios")
        weights = lam * ratio.clamp(max=1)
    if baseline is not None:
        _expect_floats("baseline", baseline, expected_q.shape)
        mean = _read("baseline", baseline, mask)
    return values, weights, mean, _last(lengths, mask)


def _unroll(trace, bootstrap: Tensor, inner_discount: float = 1.0) -> Tensor:
    values, weights, baseline, last = trace
    target = bootstrap.to(torch.promote_types(values.dtype, bootstrap.dtype))
    backwards = [torch.where(last[:, -1], target, 0)]
    for j in range(values.shape[1] - 2, -1, -1):
        onward = values[:, j + 1] + weights[:, j + 1] * (backwards[-1] - baseline[:, j + 1])
        backwards.append(torch.where(last[:, j], target, inner_discount * onward))
    return torch.stack(backwards[::-1], dim=1)  # 0 at padding, because all that enters there is 0


def _bootstrap(reward, done, next_soft_value, gamma, shape) -> Tensor:
    """r + γ (1 - done) V(s'), [B]; V(s') is not read where done, so it may be anything there."""
    _expect_floats("reward", reward, shape)
    _expect_bools("done", done, shape)
    _expect_floats("next_soft_value", next_soft_value, shape)
    _expect_number("gamma", gamma, 0.0, 1.0)
    onward = _read("next_soft_value", next_soft_value, ~done)
    return _read("reward", reward, torch.ones_like(done)) + gamma * onward


def _last(lengths: Tensor, mask: Tensor) -> Tensor:
    return torch.arange(mask.shape[1], device=lengths.device) == lengths[:, None] - 1


def _mean_under(probability: Tensor, q: Tensor, policy_logits: Tensor, given_q: Tensor) -> Tensor:
    ignored = (probability == 0) & torch.isinf(q)
    mean = (probability * torch.where(ignored, 0, q)).sum(dim=-1)
    if torch.isnan(mean).any():
        _blame_logits(policy_logits=policy_logits)
        _expect_no_nan("q", given_q)
        raise ValueError(f"q: shape {tuple(given_q.shape)} holds +inf and -inf, expected finite values")
    return mean


# ------------------------------------------------------------------------------------------------- the checks


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _read(name: str, tensor: Tensor, where: Tensor) -> Tensor:
    """The values at `where`, widened, 0 elsewhere; what is read must be finite."""
    kept = torch.where(where, _wide(tensor), 0)
    if not torch.isfinite(kept).all():
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} holds NaN or infinity, expected finite values")
    return kept


def _expect_floats(name: str, tensor: Tensor, shape) -> None:
    _expect_shape(name, tensor, shape)
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} of {tensor.dtype}, expected a floating dtype")


def _expect_integers(name: str, tensor: Tensor, shape) -> None:
    _expect_shape(name, tensor, shape)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} of {tensor.dtype}, expected an integer dtype")


def _expect_bools(name: str, tensor: Tensor, shape) -> None:
    _expect_shape(name, tensor, shape)
    if tensor.dtype != torch.bool:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} of {tensor.dtype}, expected torch.bool")


def _expect_shape(name: str, tensor: Tensor, shape) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: got {type(tensor).__name__}, expected a tensor")
    if shape is None:
        return
    wrong = any(want not in (None, have) for have, want in zip(tensor.shape, shape, strict=False))
    if tensor.dim() != len(shape) or wrong:
        wanted = "[" + ", ".join("B" if want is None else str(want) for want in shape) + "]"
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected {wanted}")


def _expect_logits(name: str, tensor: Tensor) -> None:
    _expect_floats(name, tensor, None)
    if tensor.dim() < 1 or tensor.shape[-1] < 1:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected [..., vocabulary of 1 or more]")


def _expect_batch(tensor: Tensor, name: str, lengths: Tensor) -> Tensor:
    """Checks a [B, T] tensor against `lengths` and gives the mask."""
    _expect_floats(name, tensor, None)
    if tensor.dim() != 2 or tensor.shape[1] < 1:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected [batch, tokens]")
    _expect_integers("lengths", lengths, tensor.shape[:1])
    return position_mask(lengths, tensor.shape[1])


def _expect_number(name: str, value: float, least: float, most: float) -> None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not math.isfinite(value) or not least <= value <= most:
        span = f"of at least {least:g}" if math.isinf(most) else f"between {least:g} and {most:g}"
        raise ValueError(f"{name}: got {value!r}, expected a finite number {span}")


def _expect_no_nan(name: str, tensor: Tensor) -> None:
    if torch.isnan(tensor).any():
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} holds NaN, expected numbers")


def _blame_logits(**logits: Tensor) -> None:
    """Finds which logits made a NaN; called once one is there, so the good case pays nothing."""
    for name, tensor in logits.items():
        shape = tuple(tensor.shape)
        if torch.isnan(tensor).any() or torch.isposinf(tensor).any():
            raise ValueError(f"{name}: shape {shape} holds NaN or +inf, expected numbers or -inf (forbidden)")
        if torch.isneginf(tensor).all(dim=-1).any():
            raise ValueError(f"{name}: shape {shape} has a row of -inf only, expected an allowed token in each")
