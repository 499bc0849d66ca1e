"""Environments of other libraries as ours, and ours as a reward of another trainer's."""

from dataclasses import dataclass, field

import gymnasium
import pytest

from etpo_paper.environment.adapters import Gymnasium, OpenEnv, reward_function
from etpo_paper.environment.episodes import Episodes
from etpo_paper.environment.sql import Sql


class Echo(gymnasium.Env):
    """Rewards the word that it shows."""

    observation_space = gymnasium.spaces.Text(10)
    action_space = gymnasium.spaces.Text(10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.word = "".join(self.np_random.choice(list("abc"), 4))
        return self.word, {}

    def step(self, action):
        return self.word, float(action == self.word), action == self.word, False, {}


def test_a_gymnasium_environment_of_texts_is_an_environment_as_it_is():
    from gymnasium.utils.env_checker import check_env

    check_env(Echo(), skip_render_check=True)
    episodes = Episodes([Echo(), Echo()], seed=3)
    words = [prompt.prefix for prompt in episodes.prompts]
    assert [s.reward for s in episodes.step([words[0], "no"])] == [1.0, 0.0]
    other = Episodes([Echo(), Echo()], seed=3)
    other.set_state(episodes.get_state())
    assert other.prompts == episodes.prompts


def test_a_gymnasium_environment_of_numbers_becomes_one_with_two_functions():
    def read(text):
        if text.strip() not in ("left", "down", "right", "up"):
            raise ValueError("Expected left, down, right or up.")
        return ("left", "down", "right", "up").index(text.strip())

    lake = gymnasium.make("FrozenLake-v1", is_slippery=False)
    environment = Gymnasium(lake, "Field {}.".format, read, max_failures=2)
    assert environment.reset(seed=0)[0] == "Field 0."
    assert environment.step("right")[:4] == ("Field 1.", 0.0, False, False)
    following, reward, terminated, truncated, told = environment.step("fly")
    assert following == "Field 1.\nExpected left, down, right or up.\n" and (reward, terminated) == (-1.0, False)
    assert not truncated and told["error_class"] == "ValueError" and told["status"] == "unreadable"
    for action in ("right", "down", "down", "down"):
        answer = environment.step(action)
    assert answer[:4] == ("Field 14.", 0.0, False, False)
    assert environment.step("right")[1:4] == (1, True, False)
    environment.reset(seed=0)
    assert [environment.step("fly")[3] for _ in range(2)] == [False, True]


@dataclass
class Observation:
    """As of OpenEnv's servers: the end and the reward are in the observation."""

    text: str
    done: bool = False
    reward: float | None = None


@dataclass
class Result:
    """As of OpenEnv's clients: the observation is in the result."""

    observation: Observation
    reward: float | None = None
    done: bool = False


@dataclass
class Server:
    count: int = 0
    seeds: list = field(default_factory=list)

    def reset(self, seed=None, episode_id=None):
        self.count = 0
        self.seeds.append(seed)
        return Observation("begin")

    def step(self, action, timeout_s=None):
        self.count += 1
        return Observation(f"{action}?", self.count == 2, None if self.count == 1 else 0.5)

    @property
    def state(self):
        return {"step_count": self.count}


class Client:
    def __init__(self):
        self.server = Server()

    def reset(self):
        return Result(self.server.reset())

    def step(self, action):
        answer = self.server.step(action)
        return Result(answer, answer.reward, answer.done)

    def state(self):
        return self.server.state


@pytest.mark.parametrize("make", [Server, Client])
def test_an_environment_of_openenv_and_a_client_of_one_are_environments(make):
    environment = OpenEnv(make(), lambda observation: observation.text)
    assert environment.reset(seed=7) == ("begin", {"state": {"step_count": 0}})
    assert environment.step("go") == ("go?", 0.0, False, False, {"state": {"step_count": 1}})
    assert environment.step("go") == ("go?", 0.5, True, False, {"state": {"step_count": 2}})
    if make is Server:
        assert environment.environment.seeds == [7]


def test_an_environment_becomes_a_reward_function_of_trl():
    made = []

    def make(prompt):
        made.append(prompt)
        return Sql("CREATE TABLE t (a); INSERT INTO t VALUES (1), (2);", prompt, "SELECT a FROM t")

    reward = reward_function(make)
    found = reward(prompts=["p", "p", "q"], completions=[" a FROM t", " b", " 1"], ids=[1], log_extra=None)
    assert found == [1, -1, 2 / 3]
    chat = [{"role": "assistant", "content": " a FROM t"}]
    assert reward([[{"role": "user", "content": "p"}]], [chat]) == [1.0] and made == ["p", "q"]
