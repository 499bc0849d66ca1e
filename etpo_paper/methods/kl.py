"""Estimators of KL[π‖ρ] from drawn tokens, and what becomes of each when it is differentiated or paid for.

A method that keeps π near ρ needs a number for their distance. With ℓ = log π - log ρ of what was drawn, three
estimators are in use (J. Schulman, "Approximating KL divergence", 2020); drawn from π,

    k1 = ℓ                   mean KL[π‖ρ]
    k2 = ℓ² / 2              mean near it where π is near ρ; never negative
    k3 = exp(-ℓ) - 1 + ℓ     mean KL[π‖ρ]; never negative

Methods do one of two things with it. As a *loss* it is differentiated; as a *reward* it is a constant that the return
is charged with, and the gradient of log π of what was drawn carries it. A right mean does not make a right gradient:

    as      k1              k2             k3
    loss    0               ∇ KL[π‖ρ]      ∇ KL[ρ‖π]
    reward  ∇ KL[π‖ρ]       neither        ∇ KL[π‖ρ] - ∇ KL[ρ‖π]

ℓ is one token's or that of a whole action, the sum over its tokens; the table holds for either, if KL is the divergence
of the same thing. KL of whole actions is what the objective has. At a token the prefix is held fixed, so a loss misses
that an earlier token decides which prefixes are met at all. The divergence over the whole vocabulary (`full`) has no
noise, but as a loss misses the same; as a reward, charged to the tokens before it, it is exactly the missing part.
"""

from typing import Literal

from torch import Tensor

Kind = Literal["k1", "k2", "k3", "full"]
Place = Literal["loss", "reward"]


def kl_estimate(log_ratio: Tensor, kind: Kind) -> Tensor:
    """k1, k2 or k3 of each entry, in nats.

    Args:
        log_ratio: [...] ℓ = log π - log ρ of a token or an action that was drawn from π.
        kind: which.

    Raises:
        ValueError: another kind; `full` is no function of what was drawn.
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    if kind == "k3":
        # The exponent is cut at 30, as in `ppo_clipped_loss`, so that a long action stays finite.
        return (-log_ratio).clamp(max=30).exp() - 1 + log_ratio
    raise ValueError(f"kind: got {kind!r}, expected k1, k2 or k3")
