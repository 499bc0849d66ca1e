"""ETPO: per-token soft Bellman backup and per-token policy update (arXiv 2402.06700).

The critic regresses Q of each token drawn on its soft target; the policy minimises KL(pi || rho exp(Q/beta) / Z) at
each prefix, for all tokens of the vocabulary at once.

How Q is read off the language model is a choice (`readings`). By default the critic is a dueling network: V(prefix)
is fitted by least squares to the soft returns of the batches before (`value`), and the language-model head gives the
advantage A(w) = beta (z_critic(w) - z_reference(w)), centred under the policy, so Q = V + A and E_pi[Q] = V. With
fresh adapters the critic equals the reference, A is 0 everywhere and the policy starts exactly at its optimum rho;
what moves Q of one token moves the policy's target by that much over beta. The policy's target is then
softmax(z_critic), the policy that has the critic's weights. Its loss can be descended (`policy_lr` a number, as in
the paper) or, by taking these weights, minimised (`policy_lr: exact`), which runs and differentiates one network
less. Only sampled tokens are regressed, so `advantage_prior` holds the advantage of all others near 0.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from etpo_core.bellman import lambda_targets, overlap_q
from etpo_core.errors import UserError, unknown
from etpo_core.losses import critic_loss
from etpo_core.value import LeastSquaresValue
from etpo_paper.base import distributed
from etpo_paper.base.settings import Settings
from etpo_paper.environment.rollout import Transition
from etpo_paper.methods.common import (
    Learnt,
    adamw,
    credit_of,
    micro_batches,
    next_token_kl,
    optimiser_step,
    pack,
    state_batches,
)
from etpo_paper.methods.readings import READINGS, Terms
from etpo_paper.model.agent import Agent, Sequences
from etpo_paper.model.decoder import next_token_distribution
from etpo_paper.model.head import streamed


class Drawn(NamedTuple):
    """A group of actions as their policy drew them: what does not change while the critic learns from them.

    Attributes:
        batch: their tokens.
        policy, reference: hidden states [M, H] of the policy that drew them and of the reference.
        value: V at each token [N].
        targets: what Q of each token is regressed to [N].
    """

    batch: Sequences
    policy: Tensor
    reference: Tensor
    value: Tensor
    targets: Tensor


class ETPO:
    """Entropy-regularised token-level policy optimisation.

    Args:
        beta: weight of KL(policy || reference), in units of reward.
        gamma: discount between actions; inside an action it is 1.
        lam: of the soft lambda-return inside an action, 0 = one-step backup, 1 = Monte Carlo.
        tau: share of itself that the target critic keeps at each update.
        reading: of Q: dueling, residual, scaled or raw.
        advantage_prior: weight of E_pi[A^2] in the critic's loss (dueling only).
        policy_lr: learning rate of the policy's adapter, for one step down its loss in each pass; or "exact": after an
            update the policy becomes the minimiser of its loss (in readings for which that is the critic's softmax).
        critic_lr: learning rate of the critic's adapter.
        value_decay: by how much a batch counts less for V with each that follows (dueling only).
        value_ridge: what keeps V from learning few batches by heart, see `LeastSquaresValue` (dueling only).
        epochs: passes over a batch. A policy that is exact stands still until the last, so the targets do too; one that
            descends is after the first no longer the policy that acted, which the targets of later passes correct for.
        center: whether V is first moved by its mean error on the batch, so that what a batch pushes up and what it
            pushes down balance. Without it, a V that lags pushes every token drawn up, or down, alike.
        reflect: whether failed tries come back with their error.
    """

    trains = True

    def __init__(
        self,
        *,
        beta: float,
        gamma: float,
        lam: float,
        tau: float,
        reading: str,
        advantage_prior: float,
        policy_lr: float | str,
        critic_lr: float,
        value_decay: float,
        value_ridge: float,
        epochs: int,
        reflect: bool,
        center: bool = False,
    ):
        if reading not in READINGS:
            raise unknown("reading of Q", reading, READINGS)
        self.beta, self.gamma, self.lam, self.tau = beta, gamma, lam, tau
        self.reading, self.exact = READINGS[reading], policy_lr == "exact"
        if self.exact and not self.reading.critic_is_target:
            raise UserError(f"policy_lr: exact has no weights to take with reading {reading}, expected a learning rate")
        if center and not self.reading.has_value:
            raise UserError(f"center: true has no V to move with reading {reading}, expected false")
        if not self.exact and not isinstance(policy_lr, int | float):
            raise UserError(f"policy_lr: got {policy_lr!r}, expected a learning rate or exact")
        self.advantage_prior, self.epochs, self.reflect = advantage_prior, epochs, reflect
        self.policy_lr, self.critic_lr, self.center = policy_lr, critic_lr, center
        self.value = LeastSquaresValue(value_decay, value_ridge)

    def start(self, agent: Agent, training: Settings) -> None:
        """See `Method.start`."""
        self.agent, self.grad_norm, self.tokens_at_once = agent, training.grad_norm, training.micro_batch_tokens
        self.sampling = training.temperature, training.top_k
        self.drawn_from_policy = self.sampling == (1.0, 0)
        self.critic_optimiser = adamw(training.momentum, (agent.parameters("critic"), self.critic_lr))
        self.optimisers = [self.critic_optimiser]
        if not self.exact:
            self.policy_optimiser = adamw(training.momentum, (agent.parameters("policy"), self.policy_lr))
            self.optimisers.append(self.policy_optimiser)

    def update(self, transitions: list[Transition]) -> Learnt:
        """`epochs` passes over a batch: in each, all gradients are taken at the same parameters, then both step."""
        total = sum(len(t.action) for t in transitions)
        groups = list(micro_batches(distributed.own(transitions), self.tokens_at_once))
        batches = [pack(self.agent, group) for group in groups]
        losses, held = {"policy_loss": 0.0, "critic_loss": 0.0}, []
        drawn: list[Drawn] = []
        for epoch in range(self.epochs):
            if self.exact and epoch > 0:
                of_pass = self._critic_pass(drawn, total)
            else:
                of_pass, advantages = self._pass(groups, batches, drawn, total)
            self._learn_besides(total)
            if not self.exact:
                optimiser_step(self.policy_optimiser, self.grad_norm)
            optimiser_step(self.critic_optimiser, self.grad_norm)
            self.agent.track(("critic", "target_critic"), self.tau)
            for name in losses:
                losses[name] += of_pass[name] / self.epochs
            if epoch == 0:  # of the policy that acted, and of the critic that had not seen the batch
                kl, held = of_pass["kl"], advantages
        if self.exact:
            self.agent.track(("critic", "policy"), 0.0)
        if self.reading.has_value:
            self.value.fit()
        sums = distributed.total({**losses, "kl": kl})
        logged = {
            "policy_loss": sums["policy_loss"] / total,
            "critic_loss": sums["critic_loss"] / total,
            "kl_per_token": sums["kl"] / total,
            "kl_per_action": sums["kl"] / len(transitions),
        }
        return Learnt(logged, credit_of(transitions, groups, held))

    def _pass(
        self, groups: list[list[Transition]], batches: list[Sequences], drawn: list[Drawn], total: int
    ) -> tuple[dict[str, float], list[Sequence[Tensor]]]:
        """Adds up the gradients of both losses, each divided by `total` tokens.

        `batches` are the groups packed. `drawn` is empty in the first pass, which fills it if there is to be another.

        Returns:
            Sums of what is logged, and the advantages of each group's actions.
        """
        agent, first = self.agent, not drawn
        corrects = not (first and self.drawn_from_policy)
        sums, advantages = {"policy_loss": 0.0, "critic_loss": 0.0, "kl": 0.0}, []
        soft_value: dict[tuple[int, ...], float] = {}  # of the states seen in this pass
        # States in which nobody acted yet are evaluated together; the others get their value with their action.
        acted = {t.prompt for group in groups for t in group}
        self._next_soft_value([t for group in groups for t in group if t.next_prompt not in acted], soft_value)
        error = self._mean_error(groups, batches, total, dict(soft_value)) if self.center else 0.0
        for number, (group, batch) in enumerate(zip(groups, batches, strict=True)):
            next_soft_value = self._next_soft_value(group, soft_value)
            reference = agent.hidden("reference", batch)
            critic = agent.hidden("critic", batch, grad=True)
            # An exact policy has the critic's weights until the critic has moved.
            policy = critic.detach() if self.exact else agent.hidden("policy", batch, grad=True)
            apart = None if self.exact else policy
            terms = self.reading.terms(agent, apart, reference, critic, batch.tokens, self.beta)
            terms, value = terms.each(batch), batch.each(self._value(reference))
            target = None if self.reading.has_value and not corrects else agent.hidden("target_critic", batch)
            expected = self.reading.expected(agent, policy, reference, target, self.beta)
            values, kl = value + batch.each(expected), terms.kl
            states = self._state_values(batch, values, kl).tolist()
            soft_value.update((t.prompt, v) for t, v in zip(group, states, strict=True))
            correction = {}
            if corrects:
                drawn_by = policy.detach() if first else drawn[number].policy
                overlap = streamed(self._overlap, policy.detach(), reference, target, drawn_by)[0]
                correction = {
                    "importance": self._importance(batch, group, terms.log_prob),
                    "baseline": batch.to_padded(value + batch.each(overlap)),
                }
            evaluated = batch, group, values, kl, next_soft_value, correction
            # While V knows nothing, only the whole return says anything.
            knows = self.value.fitted or not self.reading.has_value
            targets = self._targets(*evaluated, lam=self.lam if knows else 1.0)
            if first and self.reading.has_value:
                self.value.observe(batch.each(agent.features(reference)), self._targets(*evaluated, lam=1.0))
            value = value + error
            if first and self.epochs > 1:
                drawn.append(Drawn(batch, policy.detach(), reference, value, targets))
            self._descend(terms, value, targets, total, sums)
            advantages.append(terms.advantage.split(batch.lengths.tolist()))
            sums["kl"] += float(kl.sum())
        return sums, advantages

    def _critic_pass(self, drawn: list[Drawn], total: int) -> dict[str, float]:
        """Adds up the critic's gradients once more, at the targets there were; returns sums of what is logged."""
        sums = {"policy_loss": 0.0, "critic_loss": 0.0}
        for batch, policy, reference, value, targets in drawn:
            critic = self.agent.hidden("critic", batch, grad=True)
            terms = self.reading.terms(self.agent, policy, reference, critic, batch.tokens, self.beta).each(batch)
            self._descend(terms, value, targets, total, sums)
        return sums

    def _descend(self, terms: Terms, value: Tensor, targets: Tensor, total: int, sums: dict[str, float]) -> None:
        """Adds the gradients of a micro-batch, each loss divided by `total` tokens, and its losses to `sums`."""
        error = self._critic_loss(value + terms.q_taken, targets)
        # No gradient of the policy's loss reaches the critic, none of the critic's the policy, so one backward pass
        # serves both.
        ((terms.policy_loss + error + self.advantage_prior * terms.prior).sum() / total).backward()
        sums["policy_loss"] += float(terms.policy_loss.detach().sum())
        sums["critic_loss"] += float(error.detach().sum())

    def _learn_besides(self, total: int) -> None:
        """Adds, in each pass, what a variant learns from besides the batch; nothing here. Losses by `total` tokens."""

    # Targets ---------------------------------------------------------------------------------------------------

    def _value(self, reference: Tensor) -> Tensor:
        """V [M] at the reference's hidden states [M, H]; 0 in readings of Q without it."""
        if self.reading.has_value:
            return self.value(self.agent.features(reference))
        return reference.new_zeros(len(reference))

    @torch.no_grad()
    def _mean_error(
        self,
        groups: list[list[Transition]],
        batches: list[Sequences],
        total: int,
        soft_value: dict[tuple[int, ...], float],
    ) -> float:
        """How much more the batch's tokens earned, by whole returns, than V says, on average over all `total` of them.

        `soft_value` is that of next states in which nobody acted.
        """
        found = []
        for group, batch in zip(groups, batches, strict=True):
            values, kl = self._evaluated(batch)
            states = self._state_values(batch, values, kl).tolist()
            soft_value.update((t.prompt, v) for t, v in zip(group, states, strict=True))
            found.append((values, kl))
        error = 0.0
        for group, batch, (values, kl) in zip(groups, batches, found, strict=True):
            following = self._next_soft_value(group, soft_value)
            error += float((self._targets(batch, group, values, kl, following, {}, lam=1.0) - values).sum())
        return distributed.total({"error": error})["error"] / total

    def _critic_loss(self, q_taken: Tensor, targets: Tensor) -> Tensor:
        """The critic's loss [N] for Q of the tokens taken."""
        return critic_loss(q_taken, targets)

    def _overlap(self, policy: Tensor, reference: Tensor, target: Tensor, actor: Tensor) -> list[Tensor]:
        """The target critic's Q, less its level, averaged over what policy and sampling distribution share."""
        policy_logits, reference_logits, target_logits = (self.agent.logits(h) for h in (policy, reference, target))
        drawn_from = next_token_distribution(self.agent.logits(actor), *self.sampling)
        q = self.reading.varying(policy_logits, reference_logits, target_logits, self.beta)
        return [overlap_q(policy_logits, drawn_from, q)]

    def _importance(self, batch: Sequences, group: list[Transition], log_prob: Tensor) -> Tensor:
        """pi(w) / mu(w) of the sampled tokens [batch, longest], mu being what they were drawn from."""
        drawn = torch.tensor([p for t in group for p in t.log_probs], device=log_prob.device)
        return batch.to_padded((log_prob - drawn).exp())

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
        """Per-token soft targets [N] from V and KL at the action positions [N].

        `correction` holds the importance weights and the baseline that make the return of actions that were not
        drawn from the policy (temperature, top-k) one of the policy's; it is empty for actions that were.
        """
        padded = lambda_targets(
            batch.to_padded(values),
            batch.to_padded(kl),
            batch.lengths,
            reward=values.new_tensor([t.reward for t in group]),
            done=torch.tensor([t.done for t in group], device=values.device),
            next_soft_value=next_soft_value,
            beta=self.beta,
            gamma=self.gamma,
            lam=lam,
            **correction,
        )
        return batch.to_flat(padded)

    def _state_values(self, batch: Sequences, values: Tensor, kl: Tensor) -> Tensor:
        """E_pi[Q] - beta KL at the first token of each state acted in, [batch]."""
        first = batch.lengths.cumsum(0) - batch.lengths
        return (values - self.beta * kl)[first]

    @torch.no_grad()
    def _next_soft_value(self, group: list[Transition], known: dict[tuple[int, ...], float]) -> Tensor:
        """The soft value of each next state [batch], 0 where nothing follows; fills in `known` as it goes."""
        wanted = {t.next_prompt for t in group if not t.done} - known.keys()
        for states, batch in state_batches(self.agent, wanted, self.tokens_at_once):
            soft = self._state_values(batch, *self._evaluated(batch))
            known.update(zip(states, soft.tolist(), strict=True))
        values = [0.0 if t.done else known[t.next_prompt] for t in group]
        return torch.tensor(values, device=self.agent.device)

    @torch.no_grad()
    def _evaluated(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """E_pi[Q] and KL[pi || rho] at the action positions [N], for which no gradient is wanted."""
        agent = self.agent
        reference, policy = agent.hidden("reference", batch), agent.hidden("policy", batch)
        target = None if self.reading.has_value else agent.hidden("target_critic", batch)
        values = self._value(reference) + self.reading.expected(agent, policy, reference, target, self.beta)
        return batch.each(values), batch.each(next_token_kl(agent, policy, reference))

    # State -----------------------------------------------------------------------------------------------------

    def get_state(self) -> dict:
        """See `Method.get_state`."""
        return {"optimisers": [o.state_dict() for o in self.optimisers], "value": self.value.get_state()}

    def set_state(self, state: dict) -> None:
        """See `Method.set_state`."""
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.value.set_state(state["value"])
