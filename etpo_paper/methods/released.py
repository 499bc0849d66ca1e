"""The authors' released code (github.com/morning9393/ETPO, commit d3d7d9c) as it stands, each departure a switch.

Built on `etpo` so that the two read as a diff. With every switch on this is what the released code computes; with
every switch off, `reading: residual` and a small number of settings it is ETPO. The switches, and what each does:

    uniform_policy_loss   the policy's loss is the plain mean of beta log pi(w) - Q(w) over the vocabulary, not the
                          mean under pi: Q is an additive constant, its gradient is exactly 0, and no reward ever
                          reaches the policy. What is left, beta (1/|V| - pi) per logit, sharpens pi.
    no_reference          (when the mean is taken under pi) the target policy is softmax(Q / beta), without rho.
    late_kl               the KL inside an action is read at the same position of the environment's *next* action; in
                          the last step of a batch it is 0.
    one_sided_huber       the Huber loss lacks an absolute value: a Q more than delta above its target costs nothing
                          and is never pulled down.
    ignore_sampling       actions are drawn at another temperature or among the top k, and counted as the policy's own.
    lion                  both networks are trained by Lion, whose every step has the size of the learning rate.
    half_weights          trained weights are stored in float16: at a learning rate of 1e-6, one that is larger than
                          about 0.004 cannot move. (There, all weights of the model; here, those of the adapters.)

Not reproduced, because it lies outside the update: padding told by token value, full copies of the model instead of
adapters, and code executed inside the trainer.
"""

import torch
from torch import Tensor

from etpo_core.errors import UserError
from etpo_core.losses import critic_loss
from etpo_paper.base import distributed
from etpo_paper.base.settings import Settings
from etpo_paper.environment.rollout import Transition
from etpo_paper.methods.common import Learnt, micro_batches, next_token_kl, pack
from etpo_paper.methods.etpo import ETPO
from etpo_paper.methods.readings import OnLogits
from etpo_paper.model.agent import Agent, Sequences
from etpo_paper.model.head import PolicyTerms, streamed


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


def one_sided_huber(q_taken: Tensor, targets: Tensor, delta: float) -> Tensor:
    """The released critic loss: `losses.critic_loss` with Huber's δ, but 0 where Q exceeds its target by more.

    Args:
        q_taken: [...] Q of the tokens drawn.
        targets: [...] y for them; a constant here.
        delta: δ > 0 in units of reward.

    Returns:
        [...] in units of reward squared.
    """
    loss = critic_loss(q_taken, targets, huber_delta=delta)
    return torch.where(targets.detach() - q_taken.detach() < -delta, 0.0, loss)


class Lion(torch.optim.Optimizer):
    """Lion (arXiv 2302.06675) without weight decay: steps of size `lr` along the sign of a mean of gradients.

    Args:
        params: what is optimised.
        lr: the size of every step.
    """

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self) -> None:
        """Moves every parameter that has a gradient."""
        for group in self.param_groups:
            keep, forget = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                parameter.sub_(torch.lerp(parameter.grad, mean, keep).sign_(), alpha=group["lr"])
                mean.lerp_(parameter.grad, 1 - forget)


class Released(ETPO):
    """The released update; see the module for the switches.

    Args:
        beta: weight of KL(policy || reference), in units of reward.
        gamma: discount between actions.
        lam: of the soft lambda-return inside an action; the released code's is 0.
        tau: share of itself that the target critic keeps at each update.
        reading: of Q: raw, scaled or residual; the released code's is raw.
        huber_delta: from which error on the critic's loss is linear.
        policy_lr: learning rate of the policy's adapter.
        critic_lr: learning rate of the critic's adapter.
        reflect: whether failed tries come back with their error.
        uniform_policy_loss: a switch, as the following.
        no_reference: see the module.
        late_kl: see the module.
        one_sided_huber: see the module.
        ignore_sampling: see the module.
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
        reading: str,
        huber_delta: float,
        policy_lr: float,
        critic_lr: float,
        reflect: bool,
        uniform_policy_loss: bool,
        no_reference: bool,
        late_kl: bool,
        one_sided_huber: bool,
        ignore_sampling: bool,
        lion: bool,
        half_weights: bool,
    ):
        super().__init__(
            beta=beta,
            gamma=gamma,
            lam=lam,
            tau=tau,
            reading=reading,
            advantage_prior=0.0,
            policy_lr=policy_lr,
            critic_lr=critic_lr,
            value_decay=1.0,
            value_ridge=1.0,
            epochs=1,
            reflect=reflect,
        )
        if reading == "dueling":
            raise UserError("reading 'dueling' has no released form; expected raw, scaled or residual")
        self.reading = _ReleasedReading(reading, uniform_policy_loss, no_reference)
        self.huber_delta, self.late_kl, self.one_sided_huber = huber_delta, late_kl, one_sided_huber
        self.ignore_sampling, self.lion, self.half_weights = ignore_sampling, lion, half_weights

    def start(self, agent: Agent, training: Settings) -> None:
        """See `Method.start`."""
        super().start(agent, training)
        self.environments = training.environments
        self.drawn_from_policy = self.drawn_from_policy or self.ignore_sampling
        if self.lion:
            self.policy_optimiser = Lion(agent.parameters("policy"), self.policy_lr)
            self.critic_optimiser = Lion(agent.parameters("critic"), self.critic_lr)
            self.optimisers = [self.policy_optimiser, self.critic_optimiser]

    def update(self, transitions: list[Transition]) -> Learnt:
        """See `ETPO.update`."""
        self._kl_after = self._kl_of_following(distributed.own(transitions)) if self.late_kl else {}
        learnt = super().update(transitions)
        if self.half_weights:
            with torch.no_grad():
                for adapter in ("policy", "critic", "target_critic"):
                    for parameter in self.agent.parameters(adapter):
                        parameter.copy_(parameter.half())
        return learnt

    @torch.no_grad()
    def _kl_of_following(self, transitions: list[Transition]) -> dict[int, Tensor]:
        """For each transition (by id) the KL at the positions of the environment's next action; empty for the last."""
        kl = {}
        for group in micro_batches(transitions, self.tokens_at_once):
            batch = pack(self.agent, group)
            reference, policy = self.agent.hidden("reference", batch), self.agent.hidden("policy", batch)
            parts = batch.each(next_token_kl(self.agent, policy, reference)).split(batch.lengths.tolist())
            kl.update((id(t), part) for t, part in zip(group, parts, strict=True))
        # A batch is ordered by time, then by environment; each process has an equal share of these.
        pairs = zip(transitions, transitions[self.environments // distributed.size() :], strict=False)
        return {id(t): kl[id(following)] for t, following in pairs}

    def _targets(
        self,
        batch: Sequences,
        group: list[Transition],
        values: Tensor,
        kl: Tensor,
        next_soft_value: Tensor,
        correction: dict[str, Tensor],
        lam: float,
    ) -> Tensor:
        """See `ETPO._targets`."""
        if self.late_kl:
            late = values.new_zeros(len(group), int(batch.lengths.max()))
            for row, transition in enumerate(group):
                following = self._kl_after.get(id(transition), late[row, :0])[: late.shape[1]]
                late[row, : len(following)] = following
            kl = batch.to_flat(late)
        return super()._targets(batch, group, values, kl, next_soft_value, correction, lam)

    def _critic_loss(self, q_taken: Tensor, targets: Tensor) -> Tensor:
        """See `ETPO._critic_loss`."""
        if self.one_sided_huber:
            return one_sided_huber(q_taken, targets, self.huber_delta)
        return critic_loss(q_taken, targets, huber_delta=self.huber_delta)


class _ReleasedReading(OnLogits):
    def __init__(self, name: str, uniform: bool, no_reference: bool):
        super().__init__(name)
        self.uniform, self.no_reference = uniform, no_reference

    def target(self, reference, critic, beta) -> Tensor:
        if self.no_reference:
            return self.states(reference, critic, beta) / beta
        return super().target(reference, critic, beta)

    def policy_terms(self, agent, policy, reference, critic, tokens, beta) -> PolicyTerms:
        terms = super().policy_terms(agent, policy, reference, critic, tokens, beta)
        if not self.uniform:
            return terms

        def uniform(policy: Tensor, q: Tensor) -> list[Tensor]:
            return [uniform_policy_loss(agent.logits(policy), agent.logits(q), beta)]

        return terms._replace(loss=streamed(uniform, policy, self.states(reference, critic, beta))[0])
