"""The per-token soft Bellman update as pure functions of tensors (arXiv 2402.06700).

A state s is a text. An action a = (w¹ … w^L) is a text too: the policy π writes it token by token, then it is executed
as a whole and earns one reward. A KL penalty of weight β keeps π near the reference ρ, the original language model,
which is frozen. The functions here answer one question: to which number should the critic's Q(s, w¹…wʲ⁻¹, wʲ) move?

A batch holds B actions, padded on the right to T tokens; `lengths` [B] says how many tokens are real. Position j,
counted from 0, belongs to the prefix (s, w¹…wʲ), from which token j of the row is drawn:

    position j      0            1             …   L-1             L … T-1
    prefix          (s)          (s, w¹)           (s, w¹…w^{L-1})  padding: never read, targets are 0
    token drawn     w¹           w²                w^L, the last

The soft value at j is E_{w~π}[Q(s, w¹…wʲ, w)] - β KL[π‖ρ](s, w¹…wʲ), and the target at j is for Q of the token drawn
at j. The discount inside an action is 1; γ stands between an action and the next. `terminated` marks an action that
ended its episode: no state follows it. An episode that was cut off before its end is not terminated, and
bootstraps from the state it reached.

Nothing is reduced, detached or moved here; the caller does that. Results are float32, or float64 if an input is. Every
function raises ValueError for a wrong shape, dtype, length or number, for NaN among the values it reads, for logits of
+inf, and for a row of logits that forbids every token. The message names the argument, its shape and what was expected.
"""

import math

import torch
from torch import Tensor

from etpo_core import checks


def position_mask(lengths: Tensor, tokens: int) -> Tensor:
    """Which positions hold a token of the action, bool [B, T], for `lengths` [B] from 1 to T, the number of tokens."""
    if not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"tokens: got {tokens!r}, expected a whole number of at least 1")
    checks.integers("lengths", lengths, (None,), 1, tokens)
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


def taken(values: Tensor, tokens: Tensor) -> Tensor:
    """The value [...] of the token drawn at each prefix, Q(s, w¹…wʲ⁻¹, wʲ) say, out of `values` [..., V] of all tokens.

    `tokens` [...] are integers from 0 to V - 1, at padding too.
    """
    checks.logits("values", values)
    checks.integers("tokens", tokens, values.shape[:-1], 0, values.shape[-1] - 1)
    return values.gather(-1, tokens.long()[..., None]).squeeze(-1)


def token_log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """log π(wʲ | s, w¹…wʲ⁻¹) [...] of the tokens drawn, in nats; their sum over an action is log π(a|s).

    Args:
        logits: [..., V] of π at each prefix; -inf forbids a token.
        tokens: as in `taken`.
    """
    checks.logits("logits", logits)
    log_prob = taken(torch.log_softmax(checks.wide(logits), dim=-1), tokens)
    if torch.isnan(log_prob).any():
        checks.explain_logits(logits=logits)
    return log_prob


def kl_divergence(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """KL[π‖ρ] = Σ_w π(w) (log π(w) - log ρ(w)) of the next token, over the whole vocabulary.

    Source: arXiv 2402.06700, KL term of the per-token soft Bellman update.

    Args:
        policy_logits: [..., V] unnormalised log-probabilities of π; -inf forbids a token.
        reference_logits: [..., V] the same of ρ, at the same prefix.

    Returns:
        [...] in nats, at least 0. It is +inf where π allows a token that ρ forbids, even if its probability underflows
        to 0. It stays +inf however finite logits move, so no gradient comes from there.
    """
    checks.logits("policy_logits", policy_logits)
    checks.floats("reference_logits", reference_logits, policy_logits.shape)
    log_policy = torch.log_softmax(checks.wide(policy_logits), dim=-1)
    log_reference = torch.log_softmax(checks.wide(reference_logits), dim=-1)
    impossible = torch.isneginf(reference_logits) & ~torch.isneginf(policy_logits)
    divergence = mean_log_ratio(log_policy, log_reference.masked_fill(impossible, 0))
    if torch.isnan(divergence).any() or impossible.any():
        checks.explain_logits(policy_logits=policy_logits, reference_logits=reference_logits)
    return divergence.masked_fill(impossible.any(dim=-1), math.inf)


def mean_log_ratio(log_policy: Tensor, log_other: Tensor) -> Tensor:
    """Σ_w π(w) (log π(w) - log σ(w)) = KL[π‖σ] of normalised log-probabilities [..., V].

    A sum that rounding leaves below 0, such as -1e-8, is returned as 0 with the gradient of the sum: close to the
    minimum this happens to many rows, and a gradient of 0 would stop them.
    """
    probability = log_policy.exp()
    # A token of probability 0 adds 0. Masking before the product keeps 0 * inf out of the value and of the gradient.
    counts = probability > 0
    log_ratio = torch.where(counts, log_policy, 0) - torch.where(counts, log_other, 0)
    mean = (probability * log_ratio).sum(dim=-1)
    return mean - mean.detach().clamp(max=0)


def expected_q(policy_logits: Tensor, q: Tensor) -> Tensor:
    """E_{w~π}[Q(w)] = Σ_w π(w) Q(w) over the whole vocabulary, [...] in units of reward.

    Source: arXiv 2402.06700, expectation of the per-token soft Bellman update.

    Args:
        policy_logits: [..., V] of π; -inf forbids a token.
        q: [..., V] at the same prefix, in units of reward; an infinite Q is ignored where π is 0.
    """
    checks.logits("policy_logits", policy_logits)
    checks.floats("q", q, policy_logits.shape)
    return _mean(torch.softmax(checks.wide(policy_logits), dim=-1), q, policy_logits=policy_logits)


def overlap_q(policy_logits: Tensor, behaviour_logits: Tensor, q: Tensor) -> Tensor:
    """Mean of Q over what policy and behaviour policy share: Σ_w min(π, μ) Q(w) / Σ_w min(π, μ).

    It is the baseline that makes truncated importance weights exact, see `lambda_targets`. For μ = π it is E_π[Q].

    Args:
        policy_logits: [..., V] of π.
        behaviour_logits: [..., V] of μ, from which the tokens were drawn: after temperature and top-k, -inf outside.
        q: [..., V] in units of reward.

    Returns:
        [...] in units of reward; 0 where π and μ share no token.
    """
    checks.logits("policy_logits", policy_logits)
    checks.floats("behaviour_logits", behaviour_logits, policy_logits.shape)
    checks.floats("q", q, policy_logits.shape)
    policy = torch.softmax(checks.wide(policy_logits), dim=-1)
    behaviour = torch.softmax(checks.wide(behaviour_logits), dim=-1)
    overlap = torch.minimum(policy, behaviour)
    total = overlap.sum(dim=-1, keepdim=True)
    share = overlap / torch.where(total > 0, total, 1)
    return _mean(share, q, policy_logits=policy_logits, behaviour_logits=behaviour_logits)


def soft_value(expected_q: Tensor, kl: Tensor, beta: float) -> Tensor:
    """V(s, w¹…wʲ) = E_{w~π}[Q(s, w¹…wʲ, w)] - β KL[π‖ρ](s, w¹…wʲ), the soft value of a prefix, in units of reward.

    Source: arXiv 2402.06700, right-hand side of the per-token soft Bellman update. At position 0 it is the soft value
    of the state, which is `next_soft_value` of the action before.

    Args:
        expected_q: [...] E_π[Q] at each prefix, in units of reward.
        kl: [...] KL[π‖ρ] at the same prefixes, in nats.
        beta: β ≥ 0, units of reward per nat.
    """
    checks.floats("expected_q", expected_q)
    checks.floats("kl", kl, expected_q.shape)
    checks.number("beta", beta, 0.0, math.inf)
    value = checks.wide(expected_q) - beta * checks.wide(kl)
    if torch.isnan(value).any():
        checks.finite("expected_q", expected_q)
        checks.finite("kl", kl)
    return value


def token_targets(
    soft_values: Tensor,
    lengths: Tensor,
    reward: Tensor,
    terminated: Tensor,
    next_soft_value: Tensor,
    gamma: float,
    inner_discount: float = 1.0,
) -> Tensor:
    """The per-token soft Bellman update: a one-step target for each token.

    Source: arXiv 2402.06700, per-token soft Bellman update. With V the soft value,

        j < L:  y(s_t, w¹…wʲ⁻¹, wʲ) = V(s_t, w¹…wʲ)
        j = L:  y(s_t, w¹…w^{L-1}, w^L) = r_t + γ (1 - terminated_t) V(s_{t+1})

    so the target at a position reads the soft value at the next position of the same action.

    Args:
        soft_values: [B, T] V at each prefix, in units of reward; position 0, the state, is in no target of its row.
        lengths: integer [B], tokens of each action, from 1 to T.
        reward: [B] r_t, earned once by the whole action.
        terminated: bool [B], whether the episode ended with this action by itself.
        next_soft_value: [B] V(s_{t+1}) at its empty prefix, in units of reward; not read where terminated.
        gamma: γ in [0, 1], discount between actions.
        inner_discount: discount between tokens, in [0, 1]. 1 is ETPO, and only 1 agrees with the action-level update;
            γ makes each token a time step of its own ("NTPO", arXiv 2405.15821).

    Returns:
        [B, T] in units of reward, 0 at padding.
    """
    mask, last = _layout("soft_values", soft_values, lengths)
    bootstrap = _bootstrap(reward, terminated, next_soft_value, gamma, lengths.shape)
    checks.number("inner_discount", inner_discount, 0.0, 1.0)
    values = checks.finite("soft_values", soft_values, mask)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    targets = torch.where(last, bootstrap[:, None], inner_discount * following)
    return torch.where(mask, targets, 0)


def lambda_targets(
    expected_q: Tensor,
    kl: Tensor,
    lengths: Tensor,
    reward: Tensor,
    terminated: Tensor,
    next_soft_value: Tensor,
    beta: float,
    gamma: float,
    lam: float,
    importance: Tensor | None = None,
    baseline: Tensor | None = None,
    inner_discount: float = 1.0,
) -> Tensor:
    """Soft λ-returns inside an action, which carry the reward to every token of it in one update.

    Not in arXiv 2402.06700, whose update is λ = 0, `token_targets`. With positions as in the module, V the soft value
    and b a baseline,

        j < L - 1:  y_j = V_{j+1} + c_{j+1} (y_{j+1} - b_{j+1})      with c_j = λ min(1, π(w_j) / μ(w_j))
        j = L - 1:  y_j = r_t + γ (1 - terminated_t) V(s_{t+1})

    λ = 1 with μ = π is the Monte-Carlo return, y_{L-1} - β Σ_{i>j} KL_i.

    The targets are consistent, that is, Q^π is a fixed point of the expected update, if E_{w~μ}[c (Q^π(w) - b)] = 0 at
    every prefix:

    * μ = π, and b = E_π[Q], the default: the plain λ-return.
    * Any μ, and b = `overlap_q`: consistent, and the plain λ-return where μ = π.
    * Any μ, and b = Q(w_j) of the token drawn: Retrace (arXiv 1606.02647). Consistent, but λ = 1 is not the return of
      the row, and if the critic has learnt drawn tokens only, so that only their Q is high, each y - b is wrong by that
      gap and the errors add up along the action.
    * μ ≠ π, and the default b: not consistent. It evaluates the mixture π + λ (min(π, μ) - m π), m = Σ_w min(π, μ).

    Args:
        expected_q: [B, T] E_π[Q] at each prefix, in units of reward.
        kl: [B, T] KL[π‖ρ] at the same prefixes, in nats.
        lengths, reward, terminated, next_soft_value, gamma, inner_discount: as in `token_targets`.
        beta: β ≥ 0, units of reward per nat.
        lam: λ in [0, 1].
        importance: [B, T] π(w_j) / μ(w_j) ≥ 0 of the token drawn at position j, not yet truncated at 1; None where
            μ = π. Position 0 is in no target of its row.
        baseline: [B, T] b at each prefix, in units of reward; None for `expected_q`.

    Returns:
        [B, T] in units of reward, 0 at padding.
    """
    mask, last = _layout("expected_q", expected_q, lengths)
    checks.floats("kl", kl, expected_q.shape)
    checks.number("beta", beta, 0.0, math.inf)
    checks.number("lam", lam, 0.0, 1.0)
    checks.number("inner_discount", inner_discount, 0.0, 1.0)
    bootstrap = _bootstrap(reward, terminated, next_soft_value, gamma, lengths.shape)
    mean = checks.finite("expected_q", expected_q, mask)
    values = mean - beta * checks.finite("kl", kl, mask)
    weights = torch.full_like(values, lam)
    if importance is not None:
        checks.floats("importance", importance, expected_q.shape)
        ratio = torch.where(mask, checks.wide(importance), 1)
        if not (ratio >= 0).all():  # false for NaN too; +inf is a valid ratio, truncated to 1
            raise ValueError(f"importance: shape {tuple(ratio.shape)} holds NaN or negatives, expected ratios")
        weights = lam * ratio.clamp(max=1)
    if baseline is not None:
        checks.floats("baseline", baseline, expected_q.shape)
        mean = checks.finite("baseline", baseline, mask)
    outcome = bootstrap.to(torch.promote_types(values.dtype, bootstrap.dtype))
    backwards = [torch.where(last[:, -1], outcome, 0)]
    for j in range(values.shape[1] - 2, -1, -1):
        onward = values[:, j + 1] + weights[:, j + 1] * (backwards[-1] - mean[:, j + 1])
        backwards.append(torch.where(last[:, j], outcome, inner_discount * onward))
    return torch.stack(backwards[::-1], dim=1)  # 0 at padding, because all that enters there is 0


def action_targets(
    lengths: Tensor, tokens: int, reward: Tensor, terminated: Tensor, next_soft_value: Tensor, gamma: float
) -> Tensor:
    """The action-level soft Bellman update: the same target for all tokens of an action.

    Source: arXiv 2402.06700, action-level soft Bellman update, Q(s_t, a_t) ← r_t + γ (1 - terminated_t) V(s_{t+1}) with
    V(s) = E_{a~π}[Q(s, a)] - β KL[π‖ρ](s), the KL of whole actions. It is the paper's ablation "without the per-token
    update". It agrees with `token_targets` at the last token only: earlier ones get the outcome of the action drawn, in
    place of an expectation, and without the KL of later tokens.

    Args:
        lengths, reward, terminated, gamma: as in `token_targets`.
        tokens: T, the padded length.
        next_soft_value: [B] V(s_{t+1}) of whole actions, in units of reward; not read where terminated.

    Returns:
        [B, T] in units of reward, 0 at padding.
    """
    mask = position_mask(lengths, tokens)
    bootstrap = _bootstrap(reward, terminated, next_soft_value, gamma, lengths.shape)
    return torch.where(mask, bootstrap[:, None], 0)


def _layout(name: str, values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Checks values [B, T] against lengths [B]; which positions hold a token, and which the last one, bool [B, T]."""
    checks.floats(name, values)
    if values.dim() != 2 or values.shape[1] < 1:
        raise ValueError(f"{name}: shape {tuple(values.shape)}, expected [batch, tokens]")
    checks.shaped("lengths", lengths, values.shape[:1])
    mask = position_mask(lengths, values.shape[1])
    return mask, torch.arange(values.shape[1], device=lengths.device) == lengths[:, None] - 1


def _bootstrap(reward: Tensor, terminated: Tensor, next_soft_value: Tensor, gamma: float, rows: torch.Size) -> Tensor:
    """r + γ (1 - terminated) V(s'), [B]. V(s') may be anything, NaN included, where terminated."""
    checks.floats("reward", reward, rows)
    checks.bools("terminated", terminated, rows)
    checks.floats("next_soft_value", next_soft_value, rows)
    checks.number("gamma", gamma, 0.0, 1.0)
    onward = checks.finite("next_soft_value", next_soft_value, ~terminated)
    return checks.finite("reward", reward) + gamma * onward


def _mean(probability: Tensor, q: Tensor, **logits: Tensor) -> Tensor:
    """Σ_w p(w) Q(w), where 0 times infinity is 0; `logits` are those that p was computed from."""
    ignored = (probability == 0) & torch.isinf(q)
    mean = (probability * torch.where(ignored, 0, checks.wide(q))).sum(dim=-1)
    if torch.isnan(mean).any():
        checks.explain_logits(**logits)
        checks.below_infinity("q", q)  # NaN, or +inf beside -inf
    return mean
