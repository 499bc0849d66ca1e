"""OREO: a policy and a value learnt together from path consistency (arXiv 2412.16145, ACL 2025).

As `shiq`, every prefix has a residual of its own. But V is a network of its own, as in `poad`: a scalar head on the
critic's features. With δ_j = V(s, w¹…wʲ⁻¹) + β Σ_{k≥j} log π/ρ(wᵏ) - r - γ V(s'), the critic minimises (equation 8) and
the policy minimises (equation 9)

    L_V = mean over actions of 1/T Σ_j δ_j²,  gradient into V
    L_π = mean over actions of 1/T Σ_j δ_j² + α KL[π‖ρ](s, w¹…wʲ⁻¹),  gradient into log π(wʲ) of the j-th term only

The paper stops the gradient of the later tokens' log π, so that each token is moved by one residual. Its code
(github.com/jwhj/OREO) does the same; KL is over the whole vocabulary there and here.

Choices. The paper is offline; here each batch is fresh, and one pass over it is its iterative form. A path is an
action: the paper's goes on over several turns, while here what follows enters as γ V(s'), a constant (`paths` says
why). γ = 1 there. V of a next state is the present critic's, without a target network.

What to know. α is a second KL, beside the one that β prices. On the policy's own data, and where the action is one
token, E[∇ δ²] is 2 β times the gradient of β KL - E[r], so α makes the fixed point that of β + α / (2 β). The paper's
β = 0.03 and α = 0.01 would give 0.20. With α = 0 the fixed point is ρ exp(Q/β) / Z.
"""

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from etpo_core.interfaces import Batch, Networks, Reducer
from etpo_paper.methods.paths import PathConsistency, Rows, from_here


class OREO(PathConsistency):
    """Policy and value by path consistency.

    Args:
        alpha: α, weight of the policy's further KL, in units of reward squared per nat.
        critic_lr: learning rate of the critic.
        value_lr: learning rate of the critic's value head.
        settings: as `PathConsistency`.
    """

    def __init__(self, *, alpha: Annotated[float, Field(ge=0)], critic_lr: float, value_lr: float, **settings: Any):
        super().__init__(**settings)
        self.alpha, self.critic_lr, self.value_lr = alpha, critic_lr, value_lr

    def start(self, networks: Networks, reducer: Reducer) -> None:
        """See `Method.start`."""
        super().start(networks, reducer)
        self.optimisers.append(networks.adamw({"critic": self.critic_lr, "value": self.value_lr}))

    def _losses(self, batch: Batch, rows: Rows, earned: Tensor) -> tuple[Tensor, Tensor]:
        """See `PathConsistency._losses`."""
        value = self.networks.value(self.networks.features(batch, "critic", grad=True))
        paid = self.beta * from_here(rows.log_ratio).detach()
        own = self.beta * (rows.log_ratio - rows.log_ratio.detach())  # 0, with the gradient of the token itself
        share = batch.mask / batch.lengths[:, None].to(rows.kl.dtype)
        policy = (value.detach() + paid + own - earned[:, None]).square() + self.alpha * rows.kl
        critic = (value + paid - earned[:, None]).square()
        return policy * share, critic * share

    def _value(self, batch: Batch) -> Tensor:
        """See `PathConsistency._value`."""
        return self.networks.value(self.networks.features(batch, "critic"))[:, 0]
