"""Collecting a batch: the agent acts in all environments for a few steps.

`collect` lets an `Actor` act in several environments side by side. It returns the transitions that the methods learn
from (token ids as they were sampled, the reward of the whole action, the token ids of the state that follows), and with
them the steps and actions that go into `steps.csv`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from etpo_core.interfaces import Transition
from etpo_paper.base import distributed
from etpo_paper.environment.episodes import Episodes, Step
from etpo_paper.environment.prompts import Action, Prompt


class Actor(Protocol):
    """What writes the actions: a language model whose policy may be trained (`model.agent`), or a chat model."""

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of a state."""

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token of an action."""

    def act(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        top_k: int = 0,
        ended: Callable[[str], None] | None = None,
    ) -> list[Action]:
        """An action for each state; `ended` is called with each body as soon as it is written."""

    def refresh(self) -> None:
        """Makes the next action that of the policy as it is now."""

    def get_state(self) -> dict[str, Any]:
        """What the next action depends on, for a checkpoint."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""


def collect(
    actor: Actor,
    environments: Episodes,
    steps: int,
    *,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float,
    top_k: int,
) -> tuple[list[Transition], list[tuple[Step, Action]]]:
    """Lets the agent act `steps` times in every environment.

    Args:
        actor: writes the actions.
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
    transitions: list[Transition] = []
    records: list[tuple[Step, Action]] = []
    for _ in range(steps):
        # A program runs while others are still being written.
        with environments.ahead() as ended:
            written = actor.act(
                distributed.share(environments.prompts),
                max_new_tokens=max_new_tokens,
                generator=generator,
                temperature=temperature,
                top_k=top_k,
                ended=ended,
            )
            # Every step of sampling asks for numbers once, up to the end of the longest action.
            distributed.align(generator, max(a.token_count or 0 for a in written))
            actions = distributed.merge(written)
            taken = environments.step([a.body for a in actions])
        for action, step in zip(actions, taken, strict=True):
            transitions.append(
                Transition(
                    prompt=actor.encode(step.prompt),  # the environments are in the next state by now
                    action=action.tokens,
                    log_probs=action.log_probs,
                    reward=step.reward,
                    terminated=step.terminated,
                    next_prompt=None if step.next_prompt is None else actor.encode(step.next_prompt),
                    environment=step.environment,
                )
            )
        records += zip(taken, actions, strict=True)
    return transitions, records
