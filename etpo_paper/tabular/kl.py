"""The gradient that each estimator of the KL has on average, by enumeration of a small world.

`methods.kl` says what the estimators are. Here every action is written out with its probability, so that a mean over
drawn actions is a sum, and its gradient is exact. Gradients are those of what is minimised, with respect to the logits
of the policy, at the policy that acts.
"""

import torch
from torch import Tensor

from etpo_core.bellman import kl_divergence
from etpo_paper.methods.kl import Kind, kl_estimate
from etpo_paper.tabular.worlds import World

KINDS: tuple[Kind, ...] = ("k1", "k2", "k3", "full")
Key = tuple[str, str, str]


def action_kl(world: World, policy_logits: Tensor) -> Tensor:
    """KL[π‖ρ] of whole actions in each state, [S] in nats."""
    log_policy = world.action_log_prob(policy_logits)
    return (log_policy.exp() * (log_policy - world.action_log_prob(world.reference_logits))).sum(-1)


def gradients(world: World, policy_logits: Tensor) -> dict[Key, Tensor]:
    """Mean gradients of the estimators, summed over states.

    Args:
        world: where.
        policy_logits: [S, P, V] of π.

    Returns:
        Tables [S, P, V]. A key says of what ("token", each charged at its own position, or "action"), where ("loss" or
        "reward") and which (`KINDS`; as the loss of tokens also "k3 with ratio", k3 times π/μ). The key "action",
        "loss", "full" is the gradient of KL[π‖ρ] of whole actions itself.
    """
    logits = policy_logits.clone().requires_grad_()
    log_prob, reference = world.token_log_prob(logits), world.token_log_prob(world.reference_logits)
    chance = world.action_log_prob(policy_logits).exp()
    per_position = torch.where(world.mask, kl_divergence(logits, world.reference_logits)[:, world.prefixes], 0)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad((chance * value).sum(), logits, retain_graph=True)[0]

    found: dict[Key, Tensor] = {}
    found["action", "loss", "full"] = torch.autograd.grad(action_kl(world, logits).sum(), logits)[0]
    for of in ("token", "action"):
        for kind in KINDS:
            if of == "token":
                estimate = per_position if kind == "full" else kl_estimate(log_prob - reference, kind)
                # A token pays for itself and those behind it, like any return.
                behind = estimate.detach().flip(-1).cumsum(-1).flip(-1)
                if kind == "full":  # the divergence at its own position does not depend on the token drawn there
                    behind = behind - estimate.detach()
                found[of, "reward", kind] = gradient((behind * log_prob).sum(-1))
                found[of, "loss", kind] = gradient(estimate.sum(-1))
            elif kind != "full":
                estimate = kl_estimate((log_prob - reference).sum(-1), kind)
                found[of, "reward", kind] = gradient(estimate.detach() * log_prob.sum(-1))
                found[of, "loss", kind] = gradient(estimate)
    ratio = (log_prob - log_prob.detach()).exp()
    found["token", "loss", "k3 with ratio"] = gradient((ratio * kl_estimate(log_prob - reference, "k3")).sum(-1))
    return found


def shift_to(world: World, policy_logits: Tensor, nats: float) -> Tensor:
    """Logits between ρ's and a policy's, [S, P, V], where the mean KL of an action over the states is `nats`.

    Raises:
        ValueError: the policy itself is nearer than that even when its difference is taken eightfold.
    """
    reference, low, high = world.reference_logits, 0.0, 8.0
    if float(action_kl(world, reference + high * (policy_logits - reference)).mean()) < nats:
        raise ValueError(f"nats: got {nats}, expected what the policy's direction can reach")
    for _ in range(60):
        middle = (low + high) / 2
        near = float(action_kl(world, reference + middle * (policy_logits - reference)).mean()) < nats
        low, high = (middle, high) if near else (low, middle)
    return reference + low * (policy_logits - reference)
