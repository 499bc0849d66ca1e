"""What tests of update rules in small worlds share: every action written out, networks that show their gradients."""

import torch

from etpo_core.interfaces import Transition
from etpo_paper.tabular.networks import TabularNetworks


class Watched(TabularNetworks):
    """Tables in float64 that remember the gradient of each step."""

    def __init__(self, world):
        super().__init__(world, dtype=torch.float64)
        self.gradients = {"policy": None, "value": None}

    def set(self, policy_logits, values=None):
        with torch.no_grad():
            self._tables["policy"].copy_(policy_logits.flatten(0, 1) - self._reference)
            if values is not None:
                self.value_head.weight.copy_(values.flatten()[None])
        return self

    def step(self, optimiser):
        for name, weights in [("policy", self._tables["policy"]), ("value", self.value_head.weight)]:
            if weights.grad is not None and self.gradients[name] is None:
                self.gradients[name] = weights.grad.clone()
        return super().step(optimiser)


def everything(world):
    """Every action in every state once, with some next state unless it terminates."""
    return [
        Transition(
            prompt=(s,),
            action=tuple(world.tokens[a, : world.lengths[a]].tolist()),
            log_probs=(0.0,) * int(world.lengths[a]),
            reward=float(world.reward[s, a]),
            terminated=bool(world.terminated[s, a]),
            next_prompt=None if world.terminated[s, a] else ((s + a) % len(world.reward),),
            environment=s,
        )
        for s in range(len(world.reward))
        for a in range(len(world.lengths))
    ]
