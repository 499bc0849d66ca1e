"""Networks that are tables over the prefixes of a small world, computed with the printed equations.

`TabularNetworks` fulfils `interfaces.Networks` as the language model does, but a role is a table of logits, one row a
prefix, and its losses are the functions of `etpo_core.losses` and `etpo_core.bellman` themselves, applied to whole rows
of logits. So the equations that one reads there are the ones that learn in the worlds; a test holds the language
model's closed forms equal to them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from etpo_core.bellman import kl_divergence, taken, token_log_prob
from etpo_core.interfaces import Batch, PolicyTerms, Terms, Transition
from etpo_core.losses import advantage_square, policy_loss, q_dueling
from etpo_paper.tabular.worlds import World


@dataclass(frozen=True, eq=False)
class TabularBatch(Batch):
    """Some transitions of a world.

    Attributes:
        rows: integer [N], the row of the tables for each real position, one action after another.
        tokens: integer [N], the tokens taken there.
    """

    rows: Tensor
    tokens: Tensor


class TabularNetworks:
    """Policy, critic and target critic as tables over the prefixes of a world, each starting at the reference.

    A prompt is one token: the number of its state.

    Args:
        world: whose prefixes the tables cover.
        momentum: first beta of AdamW.
        dtype: of tables and rewards.
    """

    device = torch.device("cpu")

    def __init__(self, world: World, momentum: float = 0.9, dtype: torch.dtype = torch.float32):
        self.momentum, self.dtype = momentum, dtype
        states, self._prefixes, vocabulary = world.reference_logits.shape
        self._reference = world.reference_logits.to(dtype).flatten(0, 1)
        rows = states * self._prefixes
        self._code = torch.eye(rows, dtype=dtype)
        self._tables = {
            role: nn.Parameter(torch.zeros(rows, vocabulary, dtype=dtype))
            for role in ("policy", "critic", "target_critic")
        }
        self.value_head = nn.Linear(rows, 1, bias=False, dtype=dtype)
        nn.init.zeros_(self.value_head.weight)
        self._prefix_of = {
            tuple(action[:j].tolist()): int(prefix)
            for action, prefixes, length in zip(world.tokens, world.prefixes, world.lengths, strict=True)
            for j, prefix in enumerate(prefixes[:length])
        }

    @property
    def policy_logits(self) -> Tensor:
        """The policy as a table [states, prefixes, V] in float64, as `World` takes it."""
        table = self._reference + self._tables["policy"].detach()
        return table.view(-1, self._prefixes, table.shape[-1]).double()

    def batches(self, transitions: Sequence[Transition]) -> list[TabularBatch]:
        """See `Networks.batches`: a world is small, so there is one."""
        if not transitions:
            return []
        rows = [
            t.prompt[0] * self._prefixes + self._prefix_of[t.action[:j]]
            for t in transitions
            for j in range(len(t.action))
        ]
        batch = TabularBatch(
            transitions=transitions,
            lengths=torch.tensor([len(t.action) for t in transitions]),
            reward=torch.tensor([t.reward for t in transitions], dtype=self.dtype),
            terminated=torch.tensor([t.terminated for t in transitions]),
            rows=torch.tensor(rows),
            tokens=torch.tensor([token for t in transitions for token in t.action]),
        )
        return [batch]

    def state_batches(self, states: Iterable[tuple[int, ...]]) -> list[TabularBatch]:
        """See `Networks.state_batches`."""
        return self.batches([Transition(state, (0,), (0.0,), 0.0, True, None) for state in sorted(states)])

    def _logits(self, role: str, batch: TabularBatch, grad: bool = False) -> Tensor:
        """[N, V] logits of a role at the real positions."""
        logits = self._reference[batch.rows]
        if role == "reference":
            return logits
        with torch.set_grad_enabled(grad):
            return logits + self._tables[role][batch.rows]

    def evaluate(self, batch: TabularBatch, grad: bool = False) -> PolicyTerms:
        """See `Networks.evaluate`."""
        policy, reference = self._logits("policy", batch, grad), self._logits("reference", batch)
        log_prob = token_log_prob(policy, batch.tokens)
        return PolicyTerms(batch.padded(log_prob), batch.padded(kl_divergence(policy.detach(), reference)))

    def log_prob(self, batch: TabularBatch, role: str, grad: bool = False) -> Tensor:
        """See `Networks.log_prob`."""
        return batch.padded(token_log_prob(self._logits(role, batch, grad), batch.tokens))

    def terms(self, batch: TabularBatch, beta: float, policy: Literal["trained", "fixed", "critic"]) -> Terms:
        """See `Networks.terms`."""
        reference, critic = self._logits("reference", batch), self._logits("critic", batch, grad=True)
        of_policy = critic.detach() if policy == "critic" else self._logits("policy", batch, grad=policy == "trained")
        advantage = q_dueling(critic.new_zeros(len(critic)), critic, reference, of_policy, beta)
        terms = Terms(
            policy_loss=policy_loss(of_policy, reference, advantage, beta),
            kl=kl_divergence(of_policy.detach(), reference),
            log_prob=token_log_prob(of_policy.detach(), batch.tokens),
            advantage=taken(advantage, batch.tokens),
            advantage_square=advantage_square(of_policy, advantage),
        )
        return Terms(*(batch.padded(values) for values in terms))

    def map_logits(
        self,
        batch: TabularBatch,
        function: Callable[[dict[str, Tensor], Tensor], Sequence[Tensor]],
        roles: Sequence[str],
        learner: str | None = None,
    ) -> tuple[Tensor, ...]:
        """See `Networks.map_logits`."""
        logits = {role: self._logits(role, batch, grad=role == learner) for role in roles}
        return tuple(batch.padded(values) for values in function(logits, batch.tokens))

    def features(self, batch: TabularBatch, role: str = "reference", grad: bool = False) -> Tensor:
        """See `Networks.features`: a one-hot code of each prefix, the same for all roles."""
        return batch.padded(self._code[batch.rows])

    def value(self, features: Tensor) -> Tensor:
        """See `Networks.value`."""
        return self.value_head(features).squeeze(-1)

    def parameters(self, role: str) -> list[nn.Parameter]:
        """The table of a role."""
        return [self._tables[role]]

    def adamw(self, rates: Mapping[str, float]) -> torch.optim.Optimizer:
        """See `Networks.adamw`."""
        parts = {role: [table] for role, table in self._tables.items()}
        parts["value"] = list(self.value_head.parameters())
        groups = [{"params": parts[name], "lr": rate} for name, rate in rates.items()]
        return torch.optim.AdamW(groups, betas=(self.momentum, 0.999), weight_decay=0.0)

    def step(self, optimiser: torch.optim.Optimizer) -> float:
        """See `Networks.step`; the gradient of a table is not clipped."""
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        optimiser.step()
        optimiser.zero_grad()
        return float(norm)

    @torch.no_grad()
    def polyak_update(self, source: str, target: str, tau: float) -> None:
        """See `Networks.polyak_update`."""
        self._tables[target].mul_(tau).add_(self._tables[source], alpha=1.0 - tau)
