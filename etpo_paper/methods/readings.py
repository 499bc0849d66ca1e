"""What "Q starts from the language model" means: four readings of Q off the critic's hidden states.

The sources leave it open, and the choice decides whether anything is learnt (`losses` says what each implies at the
start). A reading turns hidden states of the four roles into what `ETPO` needs at each position: the policy's loss, Q
of the token taken, and E_pi[Q] of the target critic. Three readings take Q off the language-model head alone:

    raw        Q = z                   target policy rho exp(z / beta) / Z     (the released code's Q)
    scaled     Q = beta z              target policy softmax(z)
    residual   Q = beta (z - z_rho)    target policy rho exp(Q / beta) / Z

and `dueling` adds a value that is fitted by itself (`value`), Q = V + A - E_pi[A] with A = beta (z - z_rho); the terms
here are then those of the advantage alone.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from etpo_core.losses import q_dueling, q_raw, q_residual, q_scaled
from etpo_paper.model.agent import Agent, Sequences
from etpo_paper.model.head import PolicyTerms, dueling_terms, logit_taken, own_dueling_terms, policy_terms, statistics


class Terms(NamedTuple):
    """What an update needs at each action position, all [N].

    Attributes:
        policy_loss: KL(pi || target policy); gradient into the policy's hidden states only.
        kl: KL[pi || rho], no gradient.
        log_prob: log pi of the token taken, no gradient.
        q_taken: Q of the token taken by the critic that learns, less V; gradient into the critic only.
        advantage: the same less E_pi[Q] of that critic, no gradient.
        prior: what holds the advantage of tokens that were not taken; gradient into the critic only.
    """

    policy_loss: Tensor
    kl: Tensor
    log_prob: Tensor
    q_taken: Tensor
    advantage: Tensor
    prior: Tensor

    def each(self, batch: Sequences) -> "Terms":
        """The terms of all action positions from those of the distinct ones."""
        return Terms(*(batch.each(values) for values in self))


class Reading(Protocol):
    """A reading of Q; arguments are hidden states [N, H] of the roles at the same positions.

    Attributes:
        has_value: whether Q has a value of its own, so that E_pi[Q] is that value and needs no target critic.
        critic_is_target: whether the target policy is softmax(z), the policy that has the critic's weights.
    """

    has_value: bool
    critic_is_target: bool

    def terms(
        self, agent: Agent, policy: Tensor | None, reference: Tensor, critic: Tensor, tokens: Tensor, beta: float
    ) -> Terms:
        """The terms of both losses for the tokens [N] that were taken; no policy: it has the critic's weights."""

    def expected(self, agent: Agent, policy: Tensor, reference: Tensor, target: Tensor, beta: float) -> Tensor:
        """E_pi[Q] of the target critic less V [N], no gradient; a reading with a value looks at no target critic."""

    def varying(self, policy_logits: Tensor, reference_logits: Tensor, target_logits: Tensor, beta: float) -> Tensor:
        """Q of the target critic, less V, [n, V]."""


class Dueling:
    """Q = V + A - E_pi[A]."""

    has_value = True
    critic_is_target = True

    def terms(self, agent, policy, reference, critic, tokens, beta) -> Terms:
        """See `Reading.terms`; the prior is E_pi[A^2]."""
        if policy is None:
            t = own_dueling_terms(critic, reference, agent.head_weight, tokens, beta)
        else:
            t = dueling_terms(policy, reference, critic, agent.head_weight, tokens, beta)
        return Terms(t.policy_loss, t.kl, t.log_prob, t.advantage, t.advantage.detach(), t.spread)

    def expected(self, agent, policy, reference, target, beta) -> Tensor:
        """See `Reading.expected`: nothing beside V, because the advantage is centred under the policy."""
        return policy.new_zeros(len(policy))

    def varying(self, policy_logits, reference_logits, target_logits, beta) -> Tensor:
        """See `Reading.varying`: the centred advantage."""
        no_value = target_logits.new_zeros(len(target_logits))
        return q_dueling(no_value, target_logits, reference_logits, policy_logits, beta)


class OnLogits:
    """Q is a function of the logits alone: `raw`, `scaled` or `residual`.

    Args:
        name: which.
    """

    has_value = False

    def __init__(self, name: str):
        self.name, self.critic_is_target = name, name != "raw"

    def varying(self, policy_logits, reference_logits, target_logits, beta) -> Tensor:
        """See `Reading.varying`: all of Q."""
        if self.name == "raw":
            return q_raw(target_logits)
        if self.name == "scaled":
            return q_scaled(target_logits, beta)
        return q_residual(target_logits, reference_logits, beta)

    def states(self, reference: Tensor, critic: Tensor, beta: float) -> Tensor:
        """States [N, H] whose logits are Q."""
        if self.name == "raw":
            return critic
        return beta * (critic if self.name == "scaled" else critic - reference)

    def target(self, reference: Tensor, critic: Tensor, beta: float) -> Tensor:
        """Hidden states [N, H] of the target policy rho exp(Q / beta) / Z."""
        # Scaled: beta z already holds the language model; with rho beside it, it would count twice. Residual: rho
        # exp(z - z_rho) is softmax(z).
        return reference + critic / beta if self.name == "raw" else critic

    def policy_terms(self, agent, policy, reference, critic, tokens, beta) -> PolicyTerms:
        """The policy's loss, KL[pi || rho] and log pi of the tokens taken."""
        target = self.target(reference, critic.detach(), beta)
        return policy_terms(policy, reference, target, agent.head_weight, tokens)

    def terms(self, agent, policy, reference, critic, tokens, beta) -> Terms:
        """See `Reading.terms`; there is no prior."""
        policy = critic.detach() if policy is None else policy
        t = self.policy_terms(agent, policy, reference, critic, tokens, beta)
        q_taken = logit_taken(self.states(reference, critic, beta), agent.head_weight, tokens)
        advantage = q_taken.detach() - self.expected(agent, policy, reference, critic.detach(), beta)
        return Terms(t.loss, t.kl, t.log_prob, q_taken, advantage, torch.zeros_like(q_taken))

    def expected(self, agent, policy, reference, target, beta) -> Tensor:
        """See `Reading.expected`."""
        q = self.states(reference, target, beta)
        return statistics(policy.detach(), agent.head_weight, q=q).expected_q


READINGS: dict[str, Reading] = {
    "dueling": Dueling(),
    "residual": OnLogits("residual"),
    "scaled": OnLogits("scaled"),
    "raw": OnLogits("raw"),
}
