"""ETPO with a Q that is a function of the language model's logits alone, without a value of its own.

The paper says that Q starts from the language model and leaves open how. Beside the dueling form of `ETPO` two other
Q parameterisations are possible, and `losses` says what each implies at the start:

    residual   Q = β (z - z_ρ): 0 at the start, when the target policy is ρ
    raw        Q = z: the logits as values, as in the released code; at the start the target policy is nearly an argmax

Everything else is as in `etpo`: the backup's E_π[Q̄] is now taken over the target critic's logits, and only tokens that
were drawn are regressed.
"""

import torch
from torch import Tensor

from etpo_core.bellman import expected_q, kl_divergence, taken, token_log_prob
from etpo_core.errors import UserError, unknown
from etpo_core.interfaces import Batch, Terms
from etpo_core.losses import policy_loss, q_raw, q_residual
from etpo_core.update.etpo import ETPO

PARAMETERISATIONS = ("residual", "raw")
Logits = dict[str, Tensor]


class OnLogitsETPO(ETPO):
    """ETPO with Q read off the logits.

    Args:
        parameterisation: of Q: residual or raw.
        beta: as `ETPO`, and so are the following.
        gamma: see there.
        lam: see there.
        tau: see there; here the backup reads the target critic.
        policy_lr: see there.
        critic_lr: see there.
        epochs: see there.
        reflect: see there.

    Raises:
        UserError: an unknown parameterisation, or an exact policy where the target policy is not the critic's softmax.
    """

    def __init__(
        self,
        *,
        parameterisation: str,
        beta: float,
        gamma: float,
        lam: float,
        tau: float,
        policy_lr: float | str,
        critic_lr: float,
        epochs: int,
        reflect: bool,
    ):
        super().__init__(
            beta=beta,
            gamma=gamma,
            lam=lam,
            tau=tau,
            advantage_prior=0.0,
            policy_lr=policy_lr,
            critic_lr=critic_lr,
            value_decay=1.0,
            value_ridge=1.0,
            epochs=epochs,
            reflect=reflect,
        )
        if parameterisation not in PARAMETERISATIONS:
            raise unknown("parameterisation of Q", parameterisation, PARAMETERISATIONS)
        if self.exact and parameterisation != "residual":
            raise UserError(
                f"policy_lr: exact has no weights to take with parameterisation {parameterisation}, "
                "expected a learning rate"
            )
        self.parameterisation = parameterisation

    def q(self, logits: Logits, role: str) -> Tensor:
        """[n, V] Q of a critic, in units of reward."""
        if self.parameterisation == "raw":
            return q_raw(logits[role])
        return q_residual(logits[role], logits["reference"], self.beta)

    def policy_loss(self, logits: Logits) -> Tensor:
        """[n] the policy's loss against this Q."""
        return policy_loss(logits["policy"], logits["reference"], self.q(logits, "critic"), self.beta)

    def _terms(self, batch: Batch, epoch: int) -> Terms:
        """See `ETPO._terms`; here `advantage` is Q of the token taken less E_π[Q], and its square is not penalised."""
        as_critic = self.exact and epoch == 0

        def of_policy(logits: Logits, tokens: Tensor) -> list[Tensor]:
            logits = {**logits, "policy": logits["critic"]} if as_critic else logits
            kl = kl_divergence(logits["policy"].detach(), logits["reference"])
            return [self.policy_loss(logits), kl, token_log_prob(logits["policy"].detach(), tokens)]

        def of_critic(logits: Logits, tokens: Tensor) -> list[Tensor]:
            q = self.q(logits, "critic")
            level = expected_q(logits["critic" if as_critic else "policy"].detach(), q.detach())
            return [taken(q, tokens) - level, level]

        roles = ["reference", "critic"] if as_critic else ["policy", "reference", "critic"]
        learner = None if self.exact else "policy"
        loss, kl, log_prob = self.networks.map_logits(batch, of_policy, roles, learner)
        advantage, self._expected_of_critic = self.networks.map_logits(batch, of_critic, roles, "critic")
        return Terms(loss, kl, log_prob, advantage, torch.zeros_like(advantage))

    def _level(self, batch: Batch, expected_q: Tensor) -> Tensor:
        """See `ETPO._level`: E_π[Q] of the critic that learns, so that the sum is its Q."""
        return self._expected_of_critic

    def _expected_q(self, batch: Batch) -> Tensor:
        """See `ETPO._expected_q`: over the target critic."""

        def mean(logits: Logits, tokens: Tensor) -> list[Tensor]:
            return [expected_q(logits["policy"], self.q(logits, "target_critic"))]

        return self.networks.map_logits(batch, mean, ["policy", "reference", "target_critic"])[0]

    def _regressed(self, batch: Batch, expected_q: Tensor, kl: Tensor, next_soft_value: Tensor) -> Tensor:
        """See `ETPO._regressed`; there is no V to fit."""
        return self._targets(batch, expected_q, kl, next_soft_value, self.lam)

    def _finish(self) -> None:
        """See `ETPO._finish`."""
        if self.exact:
            self.networks.polyak_update("critic", "policy", 0.0)
