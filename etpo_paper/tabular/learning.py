"""Update rules at work in small worlds: what they learn can be compared with the optimum.

`TabularEnvironments` draws episodes from a `worlds.World`, `learn` lets an update rule train `TabularNetworks` on them,
and `regret` says how far the policy is from the best one. What learns is the class that trains the language model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from etpo_core.interfaces import Alone, Method, Transition
from etpo_paper.tabular.networks import TabularNetworks
from etpo_paper.tabular.worlds import World


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
            terminated, reward = world.terminated[here, action], world.reward[here, action]
            columns = (x.tolist() for x in (here, action, reward, terminated, following))
            for environment, (s, a, r, ended, n) in enumerate(zip(*columns, strict=True)):
                length = int(world.lengths[a])
                batch.append(
                    Transition(
                        prompt=(s,),
                        action=tuple(world.tokens[a, :length].tolist()),
                        log_probs=tuple(log_prob[s, a, :length].tolist()),
                        reward=r,
                        terminated=ended,
                        next_prompt=None if ended else (n,),
                        environment=environment,
                    )
                )
            self.states = torch.where(terminated, self._anywhere(len(here)), following)
        return batch


def regret(world: World, best: Tensor, policy_logits: Tensor, beta: float, gamma: float) -> float:
    """How much soft value a policy lacks: the mean over states of V*(s) - V^π(s), by brute force.

    Args:
        world: where.
        best: [S], V* of `world.action_optimum`, which depends on no policy and takes longer than all else here.
        policy_logits: [S, P, V] of π.
        beta: β > 0.
        gamma: γ in [0, 1), between actions.
    """
    value, _ = world.action_values(policy_logits, beta, gamma)
    return float((best - value).mean())


def learn(
    method: Method,
    world: World,
    *,
    updates: int,
    count: int,
    steps: int,
    seed: int,
    beta: float,
    gamma: float,
    behaviour: Tensor | None = None,
    every: int = 1,
) -> Sequence[float]:
    """Trains a method on sampled episodes of a world.

    Args:
        method: a fresh update rule.
        world: where.
        updates: how many.
        count: environments side by side.
        steps: of each between two updates.
        seed: of the sampling.
        beta: of the regret.
        gamma: of the regret.
        behaviour: [S, P, V] logits of the policy that acts; None for the one that learns.
        every: updates between two looks at the regret.

    Returns:
        The regret before the first update and after each `every`-th.
    """
    networks, environments = TabularNetworks(world), TabularEnvironments(world, count, seed)
    best, _, _ = world.action_optimum(beta, gamma)
    method.start(networks, Alone())
    curve = [regret(world, best, networks.policy_logits, beta, gamma)]
    for update in range(1, updates + 1):
        acting = networks.policy_logits if behaviour is None else behaviour
        method.update(environments.collect(acting, steps))
        if update % every == 0:
            curve.append(regret(world, best, networks.policy_logits, beta, gamma))
    return curve
