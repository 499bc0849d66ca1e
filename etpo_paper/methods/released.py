"""The authors' released code (github.com/morning9393/ETPO, commit d3d7d9c) as it stands, each departure a switch.

Built on `etpo` so that the two read as a diff. With every switch on this is what the released code computes; with
every switch off and `parameterisation: residual` it is `on_logits`, ETPO without a value. The switches:

    uniform_policy_loss   the policy's loss is the plain mean of beta log pi(w) - Q(w) over the vocabulary, not the
                          mean under pi: Q is an additive constant, its gradient is exactly 0, and no reward ever
                          reaches the policy. What is left, beta (1/|V| - pi) per logit, sharpens pi.
    no_reference          (when the mean is taken under pi) the target policy is softmax(Q / beta), without rho.
    late_kl               the KL inside an action is read at the same position of the environment's *next* action; in
                          the last step of a batch it is 0.
    one_sided_huber       the Huber loss lacks an absolute value: a Q more than delta above its target costs nothing
                          and is never pulled down.
    lion                  both networks are trained by Lion, whose every step has the size of the learning rate.
    half_weights          trained weights are stored in float16: at a learning rate of 1e-6, one that is larger than
                          about 0.004 cannot move. (There, all weights of the model; here, those of the adapters.)

Not reproduced, because it lies outside the update: padding told by token value, full copies of the model instead of
adapters, and code executed inside the trainer.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from etpo_core.interfaces import Batch, Networks, Reducer, Transition, UpdateResult
from etpo_core.losses import critic_loss, policy_loss
from etpo_paper.methods.on_logits import Logits, OnLogitsETPO


def uniform_policy_loss(policy_logits: Tensor, q: Tensor, beta: float) -> Tensor:
    """The released policy loss, (1/|V|) Σ_w (β log π(w) - Q(w)): its gradient does not depend on Q.

    Args:
        policy_logits: [..., V] of π at a prefix.
        q: [..., V] of the critic, in units of reward; a constant here.
        beta: β > 0.

    Returns:
        [...] in units of reward, float32 or wider. The gradient per logit is β (1/|V| - π(w)).

    Raises:
        ValueError: the shapes differ.
    """
    if q.shape != policy_logits.shape:
        raise ValueError(f"q: shape {tuple(q.shape)}, expected {list(policy_logits.shape)}, that of policy_logits")
    wide = policy_logits.to(torch.promote_types(policy_logits.dtype, torch.float32))
    return (beta * torch.log_softmax(wide, dim=-1) - q.detach()).mean(dim=-1)


def one_sided_huber(q_taken: Tensor, targets: Tensor, mask: Tensor, delta: float) -> Tensor:
    """The released critic loss: `losses.critic_loss` with Huber's δ, but 0 where Q exceeds its target by more.

    Args:
        q_taken: [...] Q of the tokens drawn.
        targets: [...] y for them; a constant here.
        mask: bool [...], where there is a token; elsewhere the loss is 0.
        delta: δ > 0 in units of reward.

    Returns:
        [...] in units of reward squared.
    """
    loss = critic_loss(q_taken, targets, mask, delta)
    return torch.where(targets.detach() - q_taken.detach() < -delta, 0.0, loss)


class Lion(torch.optim.Optimizer):
    """Lion (arXiv 2302.06675) without weight decay: steps of size `lr` along the sign of a mean of gradients.

    Args:
        params: what is optimised.
        lr: the size of every step.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # without a closure
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            keep, forget = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                parameter.sub_(torch.lerp(parameter.grad, mean, keep).sign_(), alpha=group["lr"])
                mean.lerp_(parameter.grad, 1 - forget)


class Released(OnLogitsETPO):
    """The released update; see the module for the switches.

    Args:
        beta: β, weight of KL[π‖ρ], in units of reward per nat.
        gamma: γ, discount between actions.
        lam: λ of the soft return inside an action; the released code's is 0.
        tau: share of itself that the target critic keeps at each update.
        parameterisation: of Q: raw or residual; the released code's is raw.
        huber_delta: error from which on the critic's loss is linear, in units of reward.
        policy_lr: learning rate of the policy.
        critic_lr: learning rate of the critic.
        reflect: whether failed tries come back with their error.
        uniform_policy_loss: a switch, as the following.
        no_reference: see the module.
        late_kl: see the module.
        one_sided_huber: see the module.
        lion: see the module.
        half_weights: see the module.
    """

    def __init__(
        self,
        *,
        beta: float,
        gamma: float,
        lam: float,
        tau: float,
        parameterisation: str,
        huber_delta: float,
        policy_lr: float,
        critic_lr: float,
        reflect: bool,
        uniform_policy_loss: bool,
        no_reference: bool,
        late_kl: bool,
        one_sided_huber: bool,
        lion: bool,
        half_weights: bool,
    ):
        super().__init__(
            parameterisation=parameterisation,
            beta=beta,
            gamma=gamma,
            lam=lam,
            tau=tau,
            policy_lr=policy_lr,
            critic_lr=critic_lr,
            epochs=1,
            reflect=reflect,
        )
        self.huber_delta, self.late_kl, self.one_sided_huber = huber_delta, late_kl, one_sided_huber
        self.uniform_policy_loss, self.no_reference = uniform_policy_loss, no_reference
        self.lion, self.half_weights = lion, half_weights

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """See `Method.start`."""
        super().start(networks, reducer)
        if self.lion:
            rates = {"critic": self.critic_lr, "policy": float(self.policy_lr)}
            self.optimisers = [Lion(networks.parameters(role), rate) for role, rate in rates.items()]

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """See `ETPO.update`."""
        self._kl_after = self._kl_of_following(transitions) if self.late_kl else {}
        return super().update(transitions)

    def policy_loss(self, logits: Logits) -> Tensor:
        """See `OnLogitsETPO.policy_loss`."""
        q = self.q(logits, "critic")
        if self.uniform_policy_loss:
            return uniform_policy_loss(logits["policy"], q, self.beta)
        reference = torch.zeros_like(q) if self.no_reference else logits["reference"]
        return policy_loss(logits["policy"], reference, q, self.beta)

    def _finish(self) -> None:
        """See `ETPO._finish`."""
        super()._finish()
        if self.half_weights:
            with torch.no_grad():
                for role in ("policy", "critic", "target_critic"):
                    for parameter in self.networks.parameters(role):
                        parameter.copy_(parameter.half())

    def _kl_of_following(self, transitions: Sequence[Transition]) -> dict[int, Tensor]:
        """For each transition (by id) the KL at the positions of its environment's next action; none for the last."""
        own = self.reducer.share(transitions)
        kl: dict[int, Tensor] = {}
        for batch in self.networks.batches(own):
            rows = zip(batch.transitions, self.networks.evaluate(batch).kl, batch.lengths.tolist(), strict=True)
            kl.update((id(t), row[:length]) for t, row, length in rows)
        after: dict[int, Transition] = {}
        following: dict[int, Tensor] = {}
        for t in reversed(own):
            if t.environment in after:
                following[id(t)] = kl[id(after[t.environment])]
            after[t.environment] = t
        return following

    def _targets(self, batch: Batch, expected_q: Tensor, kl: Tensor, next_soft_value: Tensor, lam: float) -> Tensor:
        """See `ETPO._targets`."""
        if self.late_kl:
            kl = torch.zeros_like(kl)
            for row, t in zip(kl, batch.transitions, strict=True):
                following = self._kl_after.get(id(t), row[:0])[: len(row)]
                row[: len(following)] = following
            kl = kl * batch.mask
        return super()._targets(batch, expected_q, kl, next_soft_value, lam)

    def _critic_loss(self, q_taken: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """See `ETPO._critic_loss`."""
        loss = one_sided_huber if self.one_sided_huber else critic_loss
        return loss(q_taken, targets, mask, self.huber_delta)
