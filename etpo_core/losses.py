"""What is minimised: the critic's regression and the per-token policy update (arXiv 2402.06700).

Pure functions of plain tensors, one number an element; the caller masks what is left and reduces. Each
loss cuts the gradient where the method has none: targets, Q, reference, behaviour and advantages are
constants inside, whatever is passed in, so the policy loss never moves the critic and the critic's loss
never moves the policy.

"Q starts from the language model" can be read in four ways, and the choice decides what is learnt. With z
the logits of the critic and z_ρ those of the reference, both equal at the start, and π = ρ:

    reading       Q at the start    target policy at the start        first targets inside an action
    q_raw         z_ρ               ρ exp(z_ρ/β): nearly an argmax     E_ρ[z_ρ], in logits, not in rewards
    q_scaled      β z_ρ             ρ² / Z: sharper than ρ (with a     β E_ρ[z_ρ]
                                    uniform reference: ρ itself)
    q_residual    0                 ρ: training starts at the model    0
    q_dueling     value, flat       ρ: training starts at the model    the value, which is fitted

Only tokens that were drawn are regressed. In `q_residual` a reward of 0.8 that all of them share lifts
them by 0.8 above the tokens that were never drawn, an advantage of 0.8/β nats (80 at β = 0.01) that
nothing has earned. In `q_dueling` the shared part is the value's, which is fitted to it by itself.

Results are float32, or float64 if an input is. Every function raises ValueError, naming the argument, its
shape and what was expected, for a wrong shape or dtype, and for NaN.
"""

import math

import torch
from torch import Tensor


def critic_loss(
    q_taken: Tensor, targets: Tensor, mask: Tensor | None = None, huber_delta: float | None = None
) -> Tensor:
    """Squared error of the critic at each token, (Q(s, w¹…wʲ⁻¹, wʲ) - y)², or its Huber form.

    Source: arXiv 2402.06700, loss of the soft Q-network. With e = y - Q and δ = `huber_delta`: e² where
    |e| ≤ δ and δ (2|e| - δ) beyond, which is twice the textbook Huber loss, so that δ → ∞ gives back the
    square.

    Args:
        q_taken: [...] Q of the tokens drawn, by the critic that learns; usually [B, T].
        targets: [...] y for the same tokens, from the target critic; a constant here.
        mask: bool [...], True where there is a token; elsewhere nothing is read, loss and gradient are 0.
        huber_delta: δ > 0 in units of reward; None for the square.

    Returns:
        [...] in units of reward squared.

    Raises:
        ValueError: see the module; or an infinity among what is read.
    """
    _expect_floats("q_taken", q_taken, None)
    _expect_floats("targets", targets, q_taken.shape)
    if mask is None:
        mask = torch.ones_like(q_taken, dtype=torch.bool)
    _expect_bools("mask", mask, q_taken.shape)
    q_taken, targets = _read("q_taken", q_taken, mask), _read("targets", targets.detach(), mask)
    error = (q_taken - targets).abs()
    if huber_delta is None:
        return error.square()
    _expect_positive("huber_delta", huber_delta)
    inside = error.clamp(max=huber_delta)
    return torch.where(error <= huber_delta, inside.square(), huber_delta * (2 * error - huber_delta))


def target_policy_logits(reference_logits: Tensor, q: Tensor, beta: float) -> Tensor:
    """Log-probabilities of the policy that is best for a given Q: log π*(w) = log ρ(w) + Q(w)/β - log Z.

    Source: arXiv 2402.06700, optimal token policy, π* = ρ exp(Q/β) / Z with Z = E_{w~ρ}[exp(Q/β)]. A constant
    added to Q changes nothing. β → ∞ gives ρ, β → 0 the argmax of Q among the tokens that ρ allows.

    Args:
        reference_logits: [..., V] of ρ; -inf forbids a token. Zeros (a uniform ρ) give softmax(Q/β).
        q: [..., V] in units of reward; not read where ρ forbids the token.
        beta: β > 0, units of reward per nat.

    Returns:
        [..., V] normalised log-probabilities, -inf where ρ forbids the token.

    Raises:
        ValueError: see the module; or a row without an allowed token of finite Q.
    """
    _expect_logits("reference_logits", reference_logits)
    _expect_floats("q", q, reference_logits.shape)
    _expect_positive("beta", beta)
    reference, q = _wide(reference_logits), _wide(q)
    allowed = torch.where(torch.isneginf(reference), -math.inf, q)
    # Differences of Q come before the division: in float32 a Q/β of 1e8 would swallow them, and log ρ.
    advantage = (allowed - allowed.amax(dim=-1, keepdim=True).detach()) / beta
    log_target = torch.log_softmax(torch.log_softmax(reference, dim=-1) + advantage, dim=-1)
    if torch.isnan(log_target.amax(dim=-1)).any():
        _blame("reference_logits", reference_logits)
        _blame("q", allowed)
    return log_target


def policy_loss(policy_logits: Tensor, reference_logits: Tensor, q: Tensor, beta: float) -> Tensor:
    """Per-token policy loss KL(π ‖ ρ exp(Q/β) / Z) = Σ_w π(w) (log π(w) - log ρ(w) - Q(w)/β) + log Z.

    Source: arXiv 2402.06700, per-token policy update. The sum runs over the whole vocabulary, so no token
    needs to have been drawn. The gradient reaches `policy_logits` only, and is π(w) (log π(w) - log π*(w)
    - loss) per logit.

    Args:
        policy_logits: [..., V] of π at a prefix; -inf forbids a token.
        reference_logits: [..., V] of ρ at the same prefix; a constant here.
        q: [..., V] of the critic at the same prefix, in units of reward; a constant here.
        beta: β > 0, units of reward per nat.

    Returns:
        [...] in nats, at least 0; 0 exactly where π is the target policy. log Z is included: a constant
        for the gradient.

    Raises:
        ValueError: see the module; or π allows a token that ρ or Q = -inf forbids, for which no gradient
        exists.
    """
    _expect_logits("policy_logits", policy_logits)
    _expect_floats("reference_logits", reference_logits, policy_logits.shape)
    log_target = target_policy_logits(reference_logits.detach(), q.detach(), beta)
    log_policy = torch.log_softmax(_wide(policy_logits), dim=-1)
    probability = log_policy.exp()
    seen = probability > 0  # a token of probability 0 adds nothing, and -inf - (-inf) must not be formed
    log_ratio = torch.where(seen, log_policy, 0) - torch.where(seen, log_target, 0)
    loss = (probability * log_ratio).sum(dim=-1)
    if not torch.isfinite(loss).all():
        _blame("policy_logits", policy_logits)
        raise ValueError(
            f"policy_logits: shape {tuple(policy_logits.shape)} allows a token that reference_logits or q "
            "forbids (-inf), expected the same tokens forbidden in each"
        )
    return loss.clamp(min=0)  # rounding may leave -1e-8


def ppo_clipped_loss(log_prob: Tensor, behaviour_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped loss for whole actions: -min(κ A, clip(κ, 1 - ε, 1 + ε) A), κ = π(a|s) / μ(a|s).

    Source: PPO (arXiv 1707.06347), clipped surrogate objective; in arXiv 2402.06700 it is the baseline
    PPO-KL, whose reward is r - β KL[π‖ρ]. With log-probabilities of single tokens it is the token-level
    loss of arXiv 2405.15821.

    Args:
        log_prob: [...] log π(a|s) under the policy that learns: the sum over the action's tokens; usually
            [B].
        behaviour_log_prob: [...] the same when the action was drawn; a constant here.
        advantage: [...] in units of reward; a constant here.
        clip: ε > 0.

    Returns:
        [...] in units of reward. The log-ratio is cut at 30, so that the ratio of a long action stays finite.

    Raises:
        ValueError: see the module.
    """
    _expect_floats("log_prob", log_prob, None)
    _expect_floats("behaviour_log_prob", behaviour_log_prob, log_prob.shape)
    _expect_floats("advantage", advantage, log_prob.shape)
    _expect_positive("clip", clip)
    everywhere = torch.ones_like(log_prob, dtype=torch.bool)
    log_ratio = _read("log_prob", log_prob, everywhere) - _read(
        "behaviour_log_prob", behaviour_log_prob.detach(), everywhere
    )
    advantage = _read("advantage", advantage.detach(), everywhere)
    ratio = log_ratio.clamp(max=30).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def q_raw(critic_logits: Tensor) -> Tensor:
    """Q = z: the language model's logits taken as values, as in the code released with arXiv 2402.06700.

    At the start Q is some tens of units whatever the rewards are, and ρ exp(Q/β) is nearly an argmax of
    the model.

    Args:
        critic_logits: [..., V] z.

    Returns:
        [..., V] in units of reward.

    Raises:
        ValueError: see the module.
    """
    _expect_logits("critic_logits", critic_logits)
    return _no_nan("critic_logits", critic_logits, _wide(critic_logits))


def q_scaled(critic_logits: Tensor, beta: float) -> Tensor:
    """Q = β z: the logits in units of β, so that softmax(Q/β) is the model itself at the start.

    It belongs with a *uniform* reference in the target policy (`target_policy_logits(zeros, …)`); with ρ
    exp(Q/β) the model would count twice and training would start at ρ² / Z.

    Args:
        critic_logits: [..., V] z.
        beta: β > 0, units of reward per nat.

    Returns:
        [..., V] in units of reward.

    Raises:
        ValueError: see the module.
    """
    _expect_logits("critic_logits", critic_logits)
    _expect_positive("beta", beta)
    return _no_nan("critic_logits", critic_logits, beta * _wide(critic_logits))


def q_residual(critic_logits: Tensor, reference_logits: Tensor, beta: float) -> Tensor:
    """Q = β (z - z_ρ): 0 at the start, so that training starts at π = ρ with no advantage for any token.

    Args:
        critic_logits: [..., V] z.
        reference_logits: [..., V] z_ρ at the same prefix; a constant here. Where it is -inf, Q is 0.
        beta: β > 0, units of reward per nat.

    Returns:
        [..., V] in units of reward. The row's level counts (it is a value); logits are not normalised.

    Raises:
        ValueError: see the module.
    """
    _expect_logits("critic_logits", critic_logits)
    _expect_floats("reference_logits", reference_logits, critic_logits.shape)
    _expect_positive("beta", beta)
    critic, reference = _wide(critic_logits), _wide(reference_logits.detach())
    forbidden = torch.isneginf(reference)  # -inf - (-inf) must not be formed
    q = beta * (torch.where(forbidden, 0, critic) - torch.where(forbidden, 0, reference))
    if torch.isnan(q).any():
        _no_nan("critic_logits", critic_logits, q)
        _no_nan("reference_logits", reference_logits, q)
    return q


def q_dueling(
    value: Tensor, critic_logits: Tensor, reference_logits: Tensor, policy_logits: Tensor, beta: float
) -> Tensor:
    """Q(w) = V + A(w) - E_{w~π}[A], A = β (z - z_ρ): a scalar value and an advantage that is centred under π.

    E_π[Q] is V whatever the logits are. At the start A is 0: Q is flat and training starts at π = ρ.

    Args:
        value: [...] V of the prefix, in units of reward: a scalar head.
        critic_logits: [..., V] z.
        reference_logits: [..., V] z_ρ at the same prefix; a constant here. Where it is -inf, A is 0.
        policy_logits: [..., V] of π at the same prefix; a constant here, so that the critic does not move
            the policy.
        beta: β > 0, units of reward per nat.

    Returns:
        [..., V] in units of reward.

    Raises:
        ValueError: see the module.
    """
    advantage = q_residual(critic_logits, reference_logits, beta)
    _expect_floats("value", value, critic_logits.shape[:-1])
    _expect_floats("policy_logits", policy_logits, critic_logits.shape)
    policy = torch.softmax(_wide(policy_logits.detach()), dim=-1)
    ignored = (policy == 0) & torch.isinf(advantage)
    centre = (policy * torch.where(ignored, 0, advantage)).sum(dim=-1)
    level = _wide(value) - centre
    if not torch.isfinite(level).all():
        _blame("policy_logits", policy_logits)
        _read("value", value, torch.ones_like(value, dtype=torch.bool))
        raise ValueError(
            f"critic_logits: shape {tuple(critic_logits.shape)} is infinite where policy_logits allows a "
            "token, expected the same tokens forbidden in each"
        )
    return level[..., None] + advantage


# ------------------------------------------------------------------------------------------------- the checks


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _read(name: str, tensor: Tensor, where: Tensor) -> Tensor:
    """The values at `where`, widened, 0 elsewhere; what is read must be finite."""
    kept = torch.where(where, _wide(tensor), 0)
    if not torch.isfinite(kept).all():
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} holds NaN or infinity, expected finite values")
    return kept


def _no_nan(name: str, given: Tensor, result: Tensor) -> Tensor:
    if torch.isnan(result).any() and torch.isnan(given).any():
        raise ValueError(f"{name}: shape {tuple(given.shape)} holds NaN, expected numbers")
    return result


def _blame(name: str, tensor: Tensor) -> None:
    """Finds what made a NaN; called once one is there, so the good case pays nothing."""
    shape = tuple(tensor.shape)
    if torch.isnan(tensor).any() or torch.isposinf(tensor).any():
        raise ValueError(f"{name}: shape {shape} holds NaN or +inf, expected numbers or -inf (forbidden)")
    if torch.isneginf(tensor).all(dim=-1).any():
        raise ValueError(f"{name}: shape {shape} has a row of -inf only, expected an allowed token in each")


def _expect_floats(name: str, tensor: Tensor, shape) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: got {type(tensor).__name__}, expected a tensor")
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected {list(shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: shape {tuple(tensor.shape)} of {tensor.dtype}, expected a floating dtype")


def _expect_bools(name: str, tensor: Tensor, shape) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool or tensor.shape != shape:
        have = type(tensor).__name__
        if isinstance(tensor, Tensor):
            have = f"shape {tuple(tensor.shape)} of {tensor.dtype}"
        raise ValueError(f"{name}: {have}, expected {list(shape)} of torch.bool")


def _expect_logits(name: str, tensor: Tensor) -> None:
    _expect_floats(name, tensor, None)
    if tensor.dim() < 1 or tensor.shape[-1] < 1:
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, expected [..., vocabulary of 1 or more]")


def _expect_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}: got {value!r}, expected a finite number above 0")
