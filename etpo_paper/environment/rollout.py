"""Collecting a batch: the agent acts in all environments for a few steps.

A `Transition` is what the methods learn from: token ids as they were sampled, the reward of the whole action, and
the token ids of the state that follows. `collect` returns the transitions of a batch and, beside them, the rows that
go into `steps.csv`.
"""

from dataclasses import dataclass

import torch

from etpo_paper.base import distributed
from etpo_paper.environment.prompts import Action
from etpo_paper.environment.text_mdp import Step, TextEnvironments


@dataclass(frozen=True)
class Transition:
    """One action and what it earned.

    Attributes:
        prompt: token ids of the state s_t.
        action: token ids of the action a_t as sampled, end token included.
        log_probs: log-probability of each action token under the distribution it was drawn from.
        reward: r(s_t, a_t).
        done: True when no state follows.
        next_prompt: token ids of s_{t+1}; None when done. Present when an episode was cut off: bootstrap from it.
    """

    prompt: tuple[int, ...]
    action: tuple[int, ...]
    log_probs: tuple[float, ...]
    reward: float
    done: bool
    next_prompt: tuple[int, ...] | None


def collect(
    agent,
    environments: TextEnvironments,
    steps: int,
    *,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float,
    top_k: int,
) -> tuple[list[Transition], list[tuple[Step, Action]]]:
    """Lets the agent act `steps` times in every environment.

    Args:
        agent: an `Agent`.
        environments: where it acts; their state moves on.
        steps: environment steps of each environment.
        max_new_tokens: length at which an action is cut off.
        generator: of the sampling.
        temperature: of sampling.
        top_k: sample among the k likeliest tokens, 0 = all.

    Returns:
        The transitions, and each step with its action, both ordered by time and then by environment; where several
        processes share the work, those of all of them.
    """
    transitions, records = [], []
    for _ in range(steps):
        # A program runs while others are still being written.
        with environments.ahead() as ended:
            written = agent.act(
                distributed.own(environments.prompts),
                max_new_tokens=max_new_tokens,
                generator=generator,
                temperature=temperature,
                top_k=top_k,
                ended=ended,
            )
            # Every step of sampling asks for numbers once, up to the end of the longest action.
            distributed.align(generator, max(a.token_count for a in written))
            actions = distributed.merge(written)
            taken = environments.step([a.body for a in actions])
        for action, step in zip(actions, taken, strict=True):
            transitions.append(
                Transition(
                    prompt=agent.encode(step.prompt),  # the environments are in the next state by now
                    action=action.tokens,
                    log_probs=action.log_probs,
                    reward=step.reward,
                    done=step.done,
                    next_prompt=None if step.next_prompt is None else agent.encode(step.next_prompt),
                )
            )
        records += zip(taken, actions, strict=True)
    return transitions, records
