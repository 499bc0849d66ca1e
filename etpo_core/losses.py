"""What is minimised: the critic's regression and the per-token policy update (arXiv 2402.06700).

Pure functions of tensors, one number for each element; the caller masks and reduces. Each function cuts the gradient
where the method has none: targets, Q, reference, behaviour policy and advantages are constants in them whatever is
passed, so the policy's loss never moves the critic and the critic's loss never moves the policy.

That "Q starts from the language model" can be read in several ways, and the Q parameterisation decides what is learnt.
With z the critic's logits and z_ρ the reference's, both the same at the start, where π = ρ:

    parameterisation   Q at the start   target policy at the start         first target inside an action
    q_raw              z_ρ              ρ exp(z_ρ/β), nearly an argmax     E_ρ[z_ρ], a logit and not a reward
    q_residual         0                ρ, so training starts at the model 0
    q_dueling          V, flat          ρ, so training starts at the model V, which is fitted

Only tokens that were drawn are regressed. If all of them earn a reward of 0.8, `q_residual` stores it as an advantage
of 0.8/β nats (80 at β = 0.01) over all other tokens, which nothing has earned; `q_dueling` stores it in V.

Results are float32, or float64 if an input is. Every function raises ValueError for a wrong shape, dtype or number, for
NaN, for logits of +inf, and for a row in which no token is allowed. The message names the argument, its shape and what
was expected.
"""

import math

import torch
from torch import Tensor

from etpo_core import checks
from etpo_core.bellman import expected_q, mean_log_ratio


def critic_loss(
    q_taken: Tensor, targets: Tensor, mask: Tensor | None = None, huber_delta: float | None = None
) -> Tensor:
    """(Q(s, w¹…wʲ⁻¹, wʲ) - y)² at each token, in units of reward squared, or its Huber form.

    Source: arXiv 2402.06700, loss of the soft Q-network. The Huber form, with error e and δ = `huber_delta`, is e² up
    to |e| = δ and δ (2|e| - δ) beyond: twice the textbook's, so that a large δ gives back the square.

    Args:
        q_taken: [...] Q of the tokens drawn, by the critic that learns, in units of reward; usually [B, T].
        targets: [...] y of the same tokens, by the target critic; a constant.
        mask: bool [...], True where there is a token; elsewhere nothing is read, and loss and gradient are 0.
        huber_delta: δ > 0 in units of reward; None for the square.
    """
    checks.floats("q_taken", q_taken)
    checks.floats("targets", targets, q_taken.shape)
    if mask is not None:
        checks.bools("mask", mask, q_taken.shape)
    error = (checks.finite("q_taken", q_taken, mask) - checks.finite("targets", targets.detach(), mask)).abs()
    if huber_delta is None:
        return error.square()
    checks.positive("huber_delta", huber_delta)
    inside = error.clamp(max=huber_delta)
    return torch.where(error <= huber_delta, inside.square(), huber_delta * (2 * error - huber_delta))


def target_policy_logits(reference_logits: Tensor, q: Tensor, beta: float) -> Tensor:
    """log π*(w) = log ρ(w) + Q(w)/β - log Z, the policy that is best for a given Q.

    Source: arXiv 2402.06700, optimal token policy, π* = ρ exp(Q/β) / Z with Z = E_{w~ρ}[exp(Q/β)]. A constant added to
    Q changes nothing. β → ∞ gives ρ; β → 0 gives ρ restricted to the tokens of largest Q.

    Args:
        reference_logits: [..., V] of ρ; -inf forbids a token. Zeros, a uniform ρ, give softmax(Q/β).
        q: [..., V] in units of reward; -inf forbids a token, and where ρ forbids it, Q is not read.
        beta: β > 0, units of reward per nat.

    Returns:
        [..., V] normalised log-probabilities; -inf for a forbidden token, or if Q/β falls below every float.
    """
    checks.logits("reference_logits", reference_logits)
    checks.floats("q", q, reference_logits.shape)
    checks.positive("beta", beta)
    reference = checks.wide(reference_logits)
    allowed = torch.where(torch.isneginf(reference), -math.inf, checks.wide(q))
    # Differences of Q come before the division: in float32 a Q/β of 1e8 would swallow them, and log ρ.
    gap = allowed - allowed.amax(dim=-1, keepdim=True).detach()
    # A β that float32 rounds to 0 or infinity would make NaN of 0/0 or of infinity over itself.
    limits = torch.finfo(gap.dtype)
    advantage = ((gap if limits.tiny <= beta <= limits.max else gap.double()) / beta).to(gap.dtype)
    log_target = torch.log_softmax(torch.log_softmax(reference, dim=-1) + advantage, dim=-1)
    if torch.isnan(log_target.amax(dim=-1)).any():
        checks.explain_logits(reference_logits=reference_logits, q=allowed)
        raise ValueError(f"reference_logits, q: shape {tuple(q.shape)} beyond {gap.dtype}, expected smaller numbers")
    return log_target


def policy_loss(policy_logits: Tensor, reference_logits: Tensor, q: Tensor, beta: float) -> Tensor:
    """KL(π ‖ ρ exp(Q/β) / Z) = Σ_w π(w) (log π(w) - log ρ(w) - Q(w)/β) + log Z at each prefix.

    Source: arXiv 2402.06700, per-token policy update. The sum is over the whole vocabulary, so it needs no token to be
    drawn. The gradient reaches `policy_logits` only; for the logit of w it is π(w) (log π(w) - log π*(w) - loss).

    Args:
        policy_logits: [..., V] of π at a prefix; -inf forbids a token.
        reference_logits: [..., V] of ρ at the same prefix; a constant.
        q: [..., V] of the critic at the same prefix, in units of reward; a constant.
        beta: β > 0, units of reward per nat.

    Returns:
        [...] in nats, at least 0, and 0 where π = π*. A sum that rounding leaves below 0 is returned as 0, with the
        gradient above.

    Raises:
        ValueError: see the module; also if π allows a token, however improbable, for which log π* is -inf. There is no
            gradient then.
    """
    checks.logits("policy_logits", policy_logits)
    checks.floats("reference_logits", reference_logits, policy_logits.shape)
    with torch.no_grad():
        log_target = target_policy_logits(reference_logits, q, beta)
    loss = mean_log_ratio(torch.log_softmax(checks.wide(policy_logits), dim=-1), log_target)
    impossible = torch.isneginf(log_target) & ~torch.isneginf(policy_logits)
    if impossible.any() or not torch.isfinite(loss).all():
        checks.explain_logits(policy_logits=policy_logits)
        held = f"shape {tuple(policy_logits.shape)} allows a token that reference_logits or q / beta forbids (-inf)"
        raise ValueError(f"policy_logits: {held}, expected the same tokens forbidden in each")
    return loss


def ppo_clipped_loss(log_prob: Tensor, behaviour_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """-min(κ A, clip(κ, 1 - ε, 1 + ε) A) with κ = π(a|s) / μ(a|s): PPO's loss for whole actions, in units of reward.

    Source: PPO (arXiv 1707.06347), clipped surrogate objective. In arXiv 2402.06700 it is the baseline PPO-KL, whose
    reward is r - β KL[π‖ρ]. With log-probabilities of single tokens it is the token-level loss of arXiv 2405.15821. The
    log-ratio is cut at 30, so that the ratio of a long action stays finite.

    Args:
        log_prob: [...] log π(a|s) by the policy that learns, the sum over the action's tokens; usually [B].
        behaviour_log_prob: [...] log μ(a|s), the same at the time the action was drawn; a constant.
        advantage: [...] in units of reward; a constant.
        clip: ε > 0.
    """
    checks.floats("log_prob", log_prob)
    checks.floats("behaviour_log_prob", behaviour_log_prob, log_prob.shape)
    checks.floats("advantage", advantage, log_prob.shape)
    checks.positive("clip", clip)
    log_ratio = checks.finite("log_prob", log_prob) - checks.finite("behaviour_log_prob", behaviour_log_prob.detach())
    advantage = checks.finite("advantage", advantage.detach())
    ratio = log_ratio.clamp(max=30).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def q_raw(critic_logits: Tensor) -> Tensor:
    """Q = z: the logits taken as values, as the code released with arXiv 2402.06700 does.

    z [..., V] is tens of units large at the start, whatever the rewards are; Q [..., V] is in units of reward.
    """
    checks.logits("critic_logits", critic_logits)
    checks.below_infinity("critic_logits", critic_logits)
    return checks.wide(critic_logits)


def q_residual(critic_logits: Tensor, reference_logits: Tensor, beta: float) -> Tensor:
    """Q = β (z - z_ρ) [..., V] in units of reward, which is 0 at the start, so that no token has an advantage there.

    Args:
        critic_logits: [..., V] z, not normalised: the level of a row is part of Q.
        reference_logits: [..., V] z_ρ at the same prefix; a constant. Where it is -inf, Q is 0.
        beta: β > 0, units of reward per nat.
    """
    checks.logits("critic_logits", critic_logits)
    checks.floats("reference_logits", reference_logits, critic_logits.shape)
    checks.positive("beta", beta)
    checks.below_infinity("critic_logits", critic_logits)
    checks.below_infinity("reference_logits", reference_logits)
    forbidden = torch.isneginf(reference_logits)  # -inf - (-inf) must not be formed
    critic, reference = (checks.wide(z).masked_fill(forbidden, 0) for z in (critic_logits, reference_logits.detach()))
    return beta * (critic - reference)


def q_dueling(
    value: Tensor, critic_logits: Tensor, reference_logits: Tensor, policy_logits: Tensor, beta: float
) -> Tensor:
    """Q(w) = V + A(w) - E_{w~π}[A] with A = β (z - z_ρ): a scalar value, and an advantage centred under π.

    Q is [..., V] in units of reward, and E_π[Q] is V whatever the logits are. At the start A is 0: Q is flat, and
    training starts at π = ρ.

    Args:
        value: [...] V of the prefix, in units of reward.
        critic_logits: [..., V] z.
        reference_logits: [..., V] z_ρ at the same prefix; a constant. Where it is -inf, A is 0.
        policy_logits: [..., V] of π at the same prefix; a constant, so that the critic does not move the policy.
        beta: β > 0, units of reward per nat.
    """
    advantage = q_residual(critic_logits, reference_logits, beta)
    checks.floats("value", value, critic_logits.shape[:-1])
    checks.floats("policy_logits", policy_logits, critic_logits.shape)
    policy = torch.softmax(checks.wide(policy_logits.detach()), dim=-1)
    ignored = (policy == 0) & torch.isinf(advantage)
    centre = (policy * torch.where(ignored, 0, advantage)).sum(dim=-1)
    level = checks.wide(value) - centre
    if not torch.isfinite(level).all():
        checks.explain_logits(policy_logits=policy_logits)
        checks.finite("value", value)
        held = f"shape {tuple(critic_logits.shape)} is infinite where policy_logits allows a token"
        raise ValueError(f"critic_logits: {held}, expected the same tokens forbidden in each")
    return level[..., None] + advantage


def advantage_square(policy_logits: Tensor, q: Tensor) -> Tensor:
    """E_{w~π}[(Q(w) - E_π[Q])²], the mean square of the advantage, [...] in units of reward squared.

    Not in arXiv 2402.06700. As a penalty it keeps the advantage of tokens that are not regressed near 0; its gradient
    is 2 π(w) (Q(w) - E_π[Q]).

    Args:
        policy_logits: [..., V] of π; a constant.
        q: [..., V] Q or an advantage, in units of reward: a constant added to it changes nothing.
    """
    checks.logits("policy_logits", policy_logits)
    policy_logits = policy_logits.detach()
    level = expected_q(policy_logits, q)
    if not torch.isfinite(level).all():
        checks.finite("q", q)
    seen = torch.softmax(checks.wide(policy_logits), dim=-1) > 0  # an infinite Q is ignored where π is 0
    return expected_q(policy_logits, torch.where(seen, q - level[..., None], 0).square())
