"""ETPO: per-token soft Bellman backup and per-token policy update (arXiv 2402.06700).

The critic regresses Q of each token that was drawn on its soft Bellman target. The policy minimises
KL(π ‖ ρ exp(Q/β) / Z) at each prefix, over all tokens of the vocabulary at once.

How Q is read off a language model is left open by the paper. Here the critic is dueling: Q = V + A - E_π[A]. The value
V(prefix) is fitted by least squares to the soft returns of the batches so far (`value`), and the language-model head
gives the advantage A(w) = β (z_critic(w) - z_ρ(w)). With fresh weights the critic equals the reference, so A is 0 and
the policy starts exactly at its optimum ρ. Three things follow:

- E_π[Q] is V whatever the critic's logits are, so the backup needs no expectation over a target critic.
- The target policy ρ exp(Q/β) / Z is softmax(z_critic): the policy that has the critic's weights. Its loss can be
  descended, as in the paper (`policy_lr` a number), or minimised by taking these weights (`policy_lr: exact`), which
  runs and differentiates one network less.
- Only tokens that were drawn are regressed, so `advantage_prior` holds the advantage of all others near 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from etpo_core.bellman import lambda_targets, soft_value, token_targets
from etpo_core.errors import UserError
from etpo_core.interfaces import Batch, Networks, Reducer, Terms, Transition, UpdateResult, credit_of
from etpo_core.losses import critic_loss
from etpo_core.value import LeastSquaresValue

State = tuple[int, ...]


class ETPO:
    """Entropy-regularised token-level policy optimisation.

    Args:
        beta: β, weight of KL[π‖ρ], in units of reward per nat.
        gamma: γ, discount between actions; inside an action the discount is 1.
        lam: λ of the soft return inside an action: 0 is the paper's one-step backup, 1 the whole return.
        tau: share of itself that the target critic keeps at each update (Polyak averaging). The dueling form reads no
            target critic; Q parameterisations without a value do.
        advantage_prior: weight of E_π[A²] in the critic's loss.
        policy_lr: learning rate of the policy, for one step down its loss in each pass over a batch; or "exact": after
            an update the policy becomes the minimiser of its loss.
        critic_lr: learning rate of the critic.
        value_decay: factor by which a batch counts less for V with each batch that follows.
        value_ridge: ridge penalty of V, which keeps it from learning a few batches by heart.
        epochs: passes over a batch. Targets are computed in the first pass, by the policy that acted, and kept.
        reflect: whether failed tries come back with their error.

    Raises:
        UserError: `policy_lr` is neither a number nor "exact".
    """

    trains = True

    def __init__(
        self,
        *,
        beta: float,
        gamma: float,
        lam: float,
        tau: float,
        advantage_prior: float,
        policy_lr: float | str,
        critic_lr: float,
        value_decay: float,
        value_ridge: float,
        epochs: int,
        reflect: bool,
    ):
        if isinstance(policy_lr, str) and policy_lr != "exact":
            raise UserError(f"policy_lr: got {policy_lr!r}, expected a learning rate or exact")
        self.beta, self.gamma, self.lam, self.tau = beta, gamma, lam, tau
        self.advantage_prior, self.epochs, self.reflect = advantage_prior, epochs, reflect
        self.policy_lr, self.critic_lr = policy_lr, critic_lr
        self.value = LeastSquaresValue(value_decay, value_ridge)
        self.optimisers: list[torch.optim.Optimizer] = []

    @property
    def exact(self) -> bool:
        """Whether the policy takes the critic's weights instead of descending its loss."""
        return self.policy_lr == "exact"

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """See `Method.start`."""
        self.networks, self.reducer = networks, reducer
        self.optimisers = [networks.adamw({"critic": self.critic_lr})]
        if not isinstance(self.policy_lr, str):
            self.optimisers.append(networks.adamw({"policy": self.policy_lr}))

    def update(self, transitions: Sequence[Transition]) -> UpdateResult:
        """`epochs` passes over a batch: in each, all gradients are taken at the same weights, then both networks step.

        See `Method.update`.
        """
        networks, reducer = self.networks, self.reducer
        total = sum(len(t.action) for t in transitions)
        batches = networks.batches(reducer.share(transitions))
        sums = {"policy_loss": 0.0, "critic_loss": 0.0, "kl": 0.0}
        expected_q, targets, advantages = [], [], []
        known = self._values_of_new_states(batches)
        for epoch in range(self.epochs):
            for number, batch in enumerate(batches):
                terms = self._terms(batch, epoch)
                if epoch == 0:
                    expected_q.append(self._expected_q(batch))
                    soft = self._state_values(batch, expected_q[-1], terms.kl)
                    known.update((t.prompt, v) for t, v in zip(batch.transitions, soft.tolist(), strict=True))
                    next_soft_value = self._next_soft_value(batch, known)
                    targets.append(self._regressed(batch, expected_q[-1], terms.kl, next_soft_value))
                    advantages.append(terms.advantage.detach())
                    sums["kl"] += float(batch.flat(terms.kl).sum())
                q_taken = self._level(batch, expected_q[number]) + terms.advantage
                error = self._critic_loss(q_taken, targets[number], batch.mask)
                # No gradient of the policy's loss reaches the critic and none of the critic's the policy, so one
                # backward pass serves both.
                loss = terms.policy_loss + error + self.advantage_prior * terms.advantage_square
                (loss.sum() / total).backward()
                sums["policy_loss"] += float(batch.flat(terms.policy_loss.detach()).sum())
                sums["critic_loss"] += float(batch.flat(error.detach()).sum())
            self._learn_besides(total)
            for optimiser in self.optimisers:
                networks.step(optimiser)
            networks.polyak_update("critic", "target_critic", self.tau)
        self._finish()
        sums = reducer.total(sums)
        logged = {
            "policy_loss": sums["policy_loss"] / (total * self.epochs),
            "critic_loss": sums["critic_loss"] / (total * self.epochs),
            "kl_per_token": sums["kl"] / total,
            "kl_per_action": sums["kl"] / len(transitions),
        }
        return UpdateResult(logged, credit_of(transitions, batches, advantages, reducer))

    # What the two losses are made of; variants replace single steps ---------------------------------------------

    def _terms(self, batch: Batch, epoch: int) -> Terms:
        """The terms of both losses, see `Networks.terms`."""
        if not self.exact:
            return self.networks.terms(batch, self.beta, policy="trained")
        # An exact policy has the critic's weights until the critic has moved.
        return self.networks.terms(batch, self.beta, policy="critic" if epoch == 0 else "fixed")

    @torch.no_grad()
    def _expected_q(self, batch: Batch) -> Tensor:
        """[B, T] E_π[Q̄] at each prefix; under the dueling form it is V, because the advantage is centred under π."""
        return batch.padded(self.value(batch.flat(self.networks.features(batch))))

    def _level(self, batch: Batch, expected_q: Tensor) -> Tensor:
        """[B, T] what the advantage of a token is added to, to give the Q that is regressed."""
        return expected_q

    def _critic_loss(self, q_taken: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """[B, T] the critic's loss for Q of the tokens taken."""
        return critic_loss(q_taken, targets, mask)

    def _learn_besides(self, total: int) -> None:
        """Adds, in each pass, the gradients of what a variant learns from besides the batch; losses over `total`."""

    def _finish(self) -> None:
        """Ends an update, when all steps are done."""
        if self.exact:
            self.networks.polyak_update("critic", "policy", 0.0)
        self.value.fit(self.reducer)

    # The backup -------------------------------------------------------------------------------------------------

    def _regressed(self, batch: Batch, expected_q: Tensor, kl: Tensor, next_soft_value: Tensor) -> Tensor:
        """[B, T] what Q of each token is regressed to; V observes the whole soft returns of the same tokens."""
        # Before its first fit V says nothing, so only the whole return does.
        targets = self._targets(batch, expected_q, kl, next_soft_value, self.lam if self.value.fitted else 1.0)
        returns = self._targets(batch, expected_q, kl, next_soft_value, 1.0)
        self.value.observe(batch.flat(self.networks.features(batch)), batch.flat(returns))
        return targets

    def _targets(self, batch: Batch, expected_q: Tensor, kl: Tensor, next_soft_value: Tensor, lam: float) -> Tensor:
        """[B, T] the per-token soft Bellman targets, see `bellman.token_targets` and `bellman.lambda_targets`."""
        ends = batch.reward, batch.terminated, next_soft_value
        if lam == 0.0:
            return token_targets(soft_value(expected_q, kl, self.beta), batch.lengths, *ends, self.gamma)
        return lambda_targets(expected_q, kl, batch.lengths, *ends, self.beta, self.gamma, lam)

    def _state_values(self, batch: Batch, expected_q: Tensor, kl: Tensor) -> Tensor:
        """[B] soft value of each state acted in: E_π[Q] - β KL[π‖ρ] at its empty prefix."""
        return soft_value(expected_q[:, 0], kl[:, 0], self.beta)

    def _values_of_new_states(self, batches: Sequence[Batch]) -> dict[State, float]:
        """The soft values of next states in which nobody acted; the others get theirs with their action."""
        acted = {t.prompt for batch in batches for t in batch.transitions}
        known: dict[State, float] = {}
        self._evaluate_states({t.next_prompt for b in batches for t in b.transitions if t.next_prompt} - acted, known)
        return known

    def _next_soft_value(self, batch: Batch, known: dict[State, float]) -> Tensor:
        """[B] the soft value of each next state, 0 where nothing follows; fills in `known` as it goes."""
        following = [t.next_prompt for t in batch.transitions]
        self._evaluate_states({state for state in following if state} - known.keys(), known)
        return torch.tensor([known[state] if state else 0.0 for state in following], device=batch.lengths.device)

    @torch.no_grad()
    def _evaluate_states(self, states: set[State], known: dict[State, float]) -> None:
        for batch in self.networks.state_batches(states):
            soft = self._state_values(batch, self._expected_q(batch), self.networks.evaluate(batch).kl)
            known.update((t.prompt, v) for t, v in zip(batch.transitions, soft.tolist(), strict=True))

    # State ------------------------------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """See `Method.get_state`."""
        return {"optimisers": [o.state_dict() for o in self.optimisers], "value": self.value.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """See `Method.set_state`."""
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.value.set_state(state["value"])
