"""Environments of text, and several of them stepped together.

An `Environment` is one episode after another in Gymnasium's terms: `reset` gives the first observation, `step` takes an
action, which is a text, and gives the next observation, the reward, whether the episode has ended (terminated) or was
cut off (truncated), and a dictionary of remarks. It need not inherit from anything. `Episodes` lets several of them run
side by side, because a language model writes many texts at once, and is what training acts in. The environment of the
paper is `scikit_learn.ScikitLearn`; `sql.Sql` is another one, a page long.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from etpo_core.errors import UserError
from etpo_paper.base import distributed
from etpo_paper.environment.prompts import Prompt

Observation = str | Prompt


class Environment(Protocol):
    """One episode after another of a task whose states and actions are texts.

    An environment may also have `get_state() -> dict` and `set_state(dict)`, which say and restore where its episode
    stands. Without them, a run that was stopped resets it with the same seed and takes the actions of the episode once
    more, so that it must then answer the same actions in the same way.
    """

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode.

        Args:
            seed: of whatever is random in the episode.

        Returns:
            The first observation, a text or a `Prompt`, and remarks, which training does not look at.
        """

    def step(self, action: str) -> tuple[Observation | None, float, bool, bool, dict[str, Any]]:
        """Acts.

        Args:
            action: the text that the model wrote.

        Returns:
            The next observation (what it is after the end of an episode does not matter), the reward, terminated,
            truncated, and remarks. Of the remarks, training writes down "status" (a word, "ok" if it is not there),
            "error" and "error_class" (what the action did wrong, "" if they are not there). The best action of a run is
            chosen among those whose status is "ok".
        """


class Backend(Protocol):
    """Work that the steps of several environments have in common, such as workers that run programs side by side."""

    def ahead(self) -> AbstractContextManager[Callable[[str], None]]:
        """Yields a function that is told each action as soon as it is written, before the others are."""

    def run(self, actions: Sequence[str]) -> None:
        """Does the work of some actions, so that `step` finds it done."""


@dataclass(frozen=True)
class Step:
    """What one environment step brought about.

    Attributes:
        environment: index of the environment.
        episode: number of the episode, counted over all environments.
        episode_step: 1 for the first action of an episode.
        prompt: the state that was acted in.
        body: the action.
        reward: what it earned.
        terminated: whether the episode ended, so that nothing follows.
        truncated: whether the episode was cut off, though a state would follow.
        next_prompt: the state that follows; None when terminated. A truncated episode has one, and is bootstrapped.
        status: "ok", or a word that says how the action failed.
        error: its error text, empty when there is none.
        error_class: name of the exception, empty when there is none.
        code_hash: sha256 of the action, first 16 hexadecimal digits.
    """

    environment: int
    episode: int
    episode_step: int
    prompt: Prompt
    body: str
    reward: float
    terminated: bool
    truncated: bool
    next_prompt: Prompt | None
    status: str
    error: str
    error_class: str
    code_hash: str


class Episodes:
    """Several environments, stepped together; where one's episode ends, its next one begins.

    Where several processes share a run, each steps its share of the environments, and all are told what came of it.

    Args:
        environments: as many as episodes run side by side.
        seed: of the run. Each episode is reset with a seed that is made of it and of the episode's number.
        backend: work that the environments have in common, if there is any.
        as_file: makes of an action the text that is kept as the best of a run.
    """

    def __init__(
        self,
        environments: Sequence[Environment],
        seed: int = 0,
        backend: Backend | None = None,
        as_file: Callable[[str], str] = str,
    ):
        self.count, self.as_file = len(environments), as_file
        self._environments, self._seed, self._backend = list(environments), seed, backend
        self._episodes_started = self.count
        self._episode = list(range(self.count))
        self._episode_step = [1] * self.count
        self._actions: list[list[str]] = [[] for _ in environments]  # of the episode so far
        self.prompts = [self._reset(i) for i in range(self.count)]
        self._states = [self._where(i) for i in range(self.count)]

    def _where(self, i: int) -> Any:
        """Where an environment stands, None if it cannot say."""
        environment = self._environments[i]
        return environment.get_state() if hasattr(environment, "get_state") else None

    def _reset(self, i: int) -> Prompt:
        seed = int(np.random.SeedSequence([self._seed, self._episode[i]]).generate_state(1)[0])
        environment = self._environments[i]
        where = f"{type(environment).__name__}.reset"
        if not _takes_seed(environment.reset):
            raise UserError(f"{where} takes no seed; expected reset(self, *, seed=None)")
        answer = environment.reset(seed=seed)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise UserError(f"{where} gave {_kind(answer)}; expected (observation, info)")
        return _prompt(answer[0], where)

    def _step(self, i: int, action: str) -> tuple[Prompt | None, float, bool, bool, dict[str, Any]]:
        """An environment's answer to an action, with no state after the end of an episode."""
        environment = self._environments[i]
        return _checked(environment.step(action), f"{type(environment).__name__}.step")

    @contextmanager
    def ahead(self) -> Iterator[Callable[[str], None]]:
        """Begins the work of actions ahead of `step`: yields a function that takes an action as soon as it is written.

        `step`, called inside, waits for what is left to do. Whatever no `step` asked for is stopped at the end.
        """
        if self._backend is None:
            yield lambda action: None
        else:
            with self._backend.ahead() as start:
                yield start

    def step(self, bodies: Sequence[str]) -> list[Step]:
        """Takes one action in each environment and moves on to the next states.

        Raises:
            UserError: an environment's answer is not what `Environment.step` returns.
        """
        mine = distributed.share(range(self.count))
        if self._backend is not None:
            self._backend.run([bodies[i] for i in mine])
        taken = [(self._step(i, bodies[i]), self._where(i)) for i in mine]
        steps = []
        for i, (body, (answer, self._states[i])) in enumerate(zip(bodies, distributed.merge(taken), strict=True)):
            following, reward, terminated, truncated, told = answer
            steps.append(
                Step(
                    environment=i,
                    episode=self._episode[i],
                    episode_step=self._episode_step[i],
                    prompt=self.prompts[i],
                    body=body,
                    reward=reward,
                    terminated=terminated,
                    truncated=truncated and not terminated,
                    next_prompt=following,
                    status=str(told.get("status", "ok")),
                    error=str(told.get("error", "")),
                    error_class=str(told.get("error_class", "")),
                    code_hash=hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:16],
                )
            )
            if following is None or truncated:
                self._episode[i], self._episode_step[i] = self._episodes_started, 1
                self._actions[i] = []
                self._episodes_started += 1
                self.prompts[i], self._states[i] = self._reset(i), self._where(i)
            else:
                self._episode_step[i] += 1
                self._actions[i] = [*self._actions[i], body]
                self.prompts[i] = following
        return steps

    def get_state(self) -> dict[str, Any]:
        """Where every episode stands, for a checkpoint, which one process of several asks for."""
        return {
            "episodes_started": self._episodes_started,
            "episode": list(self._episode),
            "episode_step": list(self._episode_step),
            "prompts": [asdict(p) for p in self.prompts],
            "actions": [list(actions) for actions in self._actions],
            "environments": list(self._states),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned.

        Raises:
            UserError: an environment that cannot say where it stands answered differently this time.
        """
        self._episodes_started = state["episodes_started"]
        self._episode, self._episode_step = list(state["episode"]), list(state["episode_step"])
        self._actions = [list(actions) for actions in state["actions"]]
        self.prompts = [Prompt(**p) for p in state["prompts"]]
        self._states = list(state["environments"])
        for i, (environment, where) in enumerate(zip(self._environments, state["environments"], strict=True)):
            if where is not None:
                environment.set_state(where)  # type: ignore[attr-defined]
                continue
            prompt: Prompt | None = self._reset(i)
            for action in self._actions[i]:
                prompt = self._step(i, action)[0]
            if prompt != self.prompts[i]:
                raise UserError(
                    f"{type(environment).__name__} answered the same actions after reset(seed) differently than before "
                    "the run was stopped; give it get_state and set_state, or begin the run again in another folder"
                )


def _takes_seed(reset: Callable[..., Any]) -> bool:
    parameters = inspect.signature(reset).parameters
    return "seed" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _kind(answer: object) -> str:
    return f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__


def _prompt(observation: object, where: str) -> Prompt:
    if isinstance(observation, Prompt):
        return observation
    if not isinstance(observation, str):
        raise UserError(f"{where} gave the observation {observation!r:.60}; expected a text")
    return Prompt(observation, "")


def _checked(answer: Any, where: str) -> tuple[Prompt | None, float, bool, bool, dict[str, Any]]:
    if not isinstance(answer, tuple) or len(answer) != 5:
        raise UserError(f"{where} gave {_kind(answer)}; expected (observation, reward, terminated, truncated, info)")
    observation, reward, terminated, truncated, told = answer
    try:
        number = math.nan if isinstance(reward, str) else float(reward)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where} gave the reward {reward!r:.60}; expected a finite number")
    following = None if terminated else _prompt(observation, where)
    return following, number, bool(terminated), bool(truncated), dict(told or {})
