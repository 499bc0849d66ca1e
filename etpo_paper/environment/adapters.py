"""Environments of other libraries, and rewards for other trainers; none of these libraries is imported here.

A `gymnasium.Env` whose observations and actions are texts is an `Environment` as it is. One with other spaces becomes
one with two functions of yours, which describe an observation and read an action (`Gymnasium`). The same holds for what
OpenEnv calls an environment or a client (`OpenEnv`). `reward_function` turns an environment into a function that TRL's
trainers take for `reward_funcs`.
"""

from collections.abc import Callable, Sequence
from typing import Any

from etpo_paper.environment.episodes import Environment, Observation


class Gymnasium:
    """A `gymnasium.Env` with spaces of any kind, behind two functions of the user's.

    Args:
        environment: the environment.
        describe: makes a text of an observation.
        read: makes an action of a text, and raises ValueError where it cannot.
        failure_reward: earned by an action that cannot be read. The episode then goes on from the same observation with
            the reason under it, and the environment does not notice.
        max_failures: how many actions that cannot be read truncate an episode.
    """

    def __init__(
        self,
        environment: Any,
        describe: Callable[[Any], str] = str,
        read: Callable[[str], Any] = str,
        failure_reward: float = -1.0,
        max_failures: int = 5,
    ):
        self.environment, self._describe, self._read = environment, describe, read
        self._failure_reward, self._max_failures = failure_reward, max_failures
        self._shown, self._failures = "", 0

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """See `Environment.reset`."""
        observation, told = self._begin(seed)
        self._shown, self._failures = self._describe(observation), 0
        return self._shown, told

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """See `Environment.step`."""
        try:
            read = self._read(action)
        except ValueError as error:
            self._failures += 1
            told = {"status": "unreadable", "error": str(error), "error_class": type(error).__name__}
            following = f"{self._shown}\n{error}\n"
            return following, self._failure_reward, False, self._failures >= self._max_failures, told
        observation, reward, terminated, truncated, told = self._act(read)
        self._shown = self._describe(observation)
        return self._shown, reward, terminated, truncated, told

    def _begin(self, seed: int | None) -> tuple[Any, dict[str, Any]]:
        return self.environment.reset(seed=seed)

    def _act(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.environment.step(action)


class OpenEnv(Gymnasium):
    """An environment or a synchronous client of OpenEnv (`reset`, `step`, `state`), see `Gymnasium` for the arguments.

    An environment answers with an observation that has `done` and `reward`, a client with a result that has an
    observation, `reward` and `done`; both are understood. OpenEnv has one flag for the end of an episode, which is
    taken for terminated. A reward that is not given counts as 0. `state` is among the remarks.
    """

    def _begin(self, seed: int | None) -> tuple[Any, dict[str, Any]]:
        try:
            answer = self.environment.reset(seed=seed)
        except TypeError:  # OpenEnv lets an environment leave the seed out
            answer = self.environment.reset()
        return self._observation(answer), self._state()

    def _act(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        answer = self.environment.step(action)
        reward = 0.0 if answer.reward is None else float(answer.reward)
        return self._observation(answer), reward, bool(answer.done), False, self._state()

    def _observation(self, answer: Any) -> Any:
        return getattr(answer, "observation", answer)

    def _state(self) -> dict[str, Any]:
        state = self.environment.state  # a property of an environment, a method of a client
        return {"state": state() if callable(state) else state}


def reward_function(make: Callable[[str], Environment], seed: int = 0) -> Callable[..., list[float]]:
    """A reward function as TRL's trainers call it: what the first action of an episode earns.

    Args:
        make: takes a prompt and returns an environment; called once for each different prompt.
        seed: of `reset`.

    Returns:
        A function of `prompts` and `completions`, each a list of texts or of chat messages, that returns a reward for
        each completion. It takes and ignores what else a trainer passes.
    """
    made: dict[str, Environment] = {}

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        earned = []
        for prompt, completion in zip(map(_text, prompts), map(_text, completions), strict=True):
            if prompt not in made:
                made[prompt] = make(prompt)
            made[prompt].reset(seed=seed)
            earned.append(float(made[prompt].step(completion)[1]))
        return earned

    return reward


def _text(message: Any) -> str:
    """The text of a prompt or completion, which is a text or a list of chat messages."""
    return message if isinstance(message, str) else "".join(str(part["content"]) for part in message)
