"""An agent of tables for a small world, so that the methods themselves can be watched where the optimum is known.

`TabularAgent` offers what a method asks of `agent.Agent`, but its networks are tables over prefixes: the hidden state
of a prefix is its row of logits followed by a one-hot code of the prefix, the "head" picks the logits out, and a value
head is a table as well. `TabularEnvironments` draws episodes from a `worlds.World`. Nothing of a method is written
here a second time: what learns is the class that trains the language model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from etpo_paper.base.settings import Settings
from etpo_paper.environment.rollout import Transition
from etpo_paper.model.agent import ADAPTERS, Sequences
from etpo_paper.tabular.worlds import World


class TabularAgent:
    """Policy, critic and target critic as tables over the prefixes of a world, each starting at the reference.

    A prompt is one token, the number of its state.

    Args:
        world: whose prefixes the tables cover.
    """

    device = torch.device("cpu")

    def __init__(self, world: World):
        self.reference = world.reference_logits.float()
        states, self.prefixes, vocabulary = self.reference.shape
        rows = states * self.prefixes
        self.vocabulary = vocabulary
        self.head_weight = torch.cat([torch.eye(vocabulary), torch.zeros(vocabulary, rows)], dim=1)
        self._code = torch.eye(rows)
        self._tables = {adapter: nn.Parameter(torch.zeros(rows, vocabulary)) for adapter in ADAPTERS}
        self.value_heads = nn.ModuleDict({adapter: nn.Linear(rows, 1, bias=False) for adapter in ADAPTERS[1:]})
        for head in self.value_heads.values():
            nn.init.zeros_(head.weight)
        self._prefix_of = {
            tuple(action[:j].tolist()): int(prefix)
            for action, prefixes, length in zip(world.tokens, world.prefixes, world.lengths, strict=True)
            for j, prefix in enumerate(prefixes[:length])
        }

    def parameters(self, adapter: str) -> list[nn.Parameter]:
        """The table of an adapter."""
        return [self._tables[adapter]]

    def hidden(self, role: str, sequences: Sequences, grad: bool = False) -> Tensor:
        """See `Agent.hidden`: logits and code of each prefix, [M, V + rows]."""
        shared = sequences.prefix.tolist()
        whole = [shared + row for row in sequences.ids.tolist()]
        index = torch.tensor(
            [
                whole[row][0] * self.prefixes + self._prefix_of[tuple(whole[row][1 : len(shared) + column + 1])]
                for row, column in zip(sequences.rows.tolist(), sequences.columns.tolist(), strict=True)
            ]
        )
        with torch.set_grad_enabled(grad):
            logits = self.reference.flatten(0, 1)[index]
            if role != "reference":
                logits = logits + self._tables[role][index]
            return torch.cat([logits, self._code[index]], dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Agent.logits`."""
        return hidden[:, : self.vocabulary]

    def features(self, hidden: Tensor) -> Tensor:
        """See `Agent.features`: the code of each prefix."""
        return hidden[:, self.vocabulary :]

    def value(self, adapter: str, hidden: Tensor) -> Tensor:
        """See `Agent.value`."""
        return self.value_heads[adapter](self.features(hidden)).squeeze(-1)

    @torch.no_grad()
    def track(self, roles: tuple[str, str], tau: float) -> None:
        """See `Agent.track`."""
        source, target = roles
        pairs = [(self._tables[source], self._tables[target])]
        if target in self.value_heads:
            pairs.append((self.value_heads[source].weight, self.value_heads[target].weight))
        for new, old in pairs:
            old.mul_(tau).add_(new, alpha=1.0 - tau)

    @property
    def policy_logits(self) -> Tensor:
        """The policy as a table [S, P, V] in float64, as `World` takes it."""
        return (self.reference + self._tables["policy"].detach().view_as(self.reference)).double()


class TabularEnvironments:
    """Several episodes of a world side by side, each starting anew in a random state when it ends.

    Args:
        world: where they take place.
        count: how many.
        seed: of states and actions.
    """

    def __init__(self, world: World, count: int, seed: int):
        self.world, self.generator = world, torch.Generator().manual_seed(seed)
        self.states = self._anywhere(count)

    def _anywhere(self, count: int) -> Tensor:
        return torch.randint(len(self.world.reward), (count,), generator=self.generator)

    @torch.no_grad()
    def collect(self, policy_logits: Tensor, steps: int) -> list[Transition]:
        """Acts `steps` times in every environment; transitions are ordered by time, then by environment."""
        world, batch = self.world, []
        log_prob = world.token_log_prob(policy_logits)
        chance = log_prob.sum(-1).exp()
        for _ in range(steps):
            here = self.states
            action = torch.multinomial(chance[here], 1, generator=self.generator).squeeze(1)
            following = torch.multinomial(world.transition[here, action], 1, generator=self.generator).squeeze(1)
            done, reward = world.done[here, action], world.reward[here, action]
            for s, a, r, d, n in zip(*(x.tolist() for x in (here, action, reward, done, following)), strict=True):
                length = int(world.lengths[a])
                batch.append(
                    Transition(
                        prompt=(s,),
                        action=tuple(world.tokens[a, :length].tolist()),
                        log_probs=tuple(log_prob[s, a, :length].tolist()),
                        reward=r,
                        done=d,
                        next_prompt=None if d else (n,),
                    )
                )
            self.states = torch.where(done, self._anywhere(len(here)), following)
        return batch


def regret(world: World, policy_logits: Tensor, beta: float, gamma: float) -> float:
    """How much soft value a policy lacks: the mean over states of V*(s) - V^pi(s), by brute force."""
    best, _, _ = world.action_optimum(beta, gamma)
    value, _ = world.action_values(policy_logits, beta, gamma)
    return float((best - value).mean())


def learn(
    method, world: World, *, updates: int, count: int, steps: int, seed: int, beta: float, gamma: float
) -> Sequence[float]:
    """Trains a method on sampled episodes of a world.

    Args:
        method: a fresh method of `methods`.
        world: where.
        updates: how many.
        count: environments side by side.
        steps: of each between two updates.
        seed: of the sampling.
        beta: of the regret.
        gamma: of the regret.

    Returns:
        The regret before the first update and after each.
    """
    agent, environments = TabularAgent(world), TabularEnvironments(world, count, seed)
    method.start(
        agent,
        Settings(
            grad_norm=1e9, momentum=0.9, micro_batch_tokens=1_000_000, temperature=1.0, top_k=0, environments=count
        ),
    )
    curve = [regret(world, agent.policy_logits, beta, gamma)]
    for _ in range(updates):
        method.update(environments.collect(agent.policy_logits, steps))
        curve.append(regret(world, agent.policy_logits, beta, gamma))
    return curve
