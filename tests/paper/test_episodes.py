"""Environments of one's own: what they must answer, how several are stepped together, and how a run goes on."""

import random

import pytest

from etpo_core.errors import UserError
from etpo_paper.environment.episodes import Episodes
from etpo_paper.environment.prompts import Prompt


class Guess:
    """A number is to be guessed; it says higher or lower, and cuts an episode off after three guesses."""

    seeds: list

    def __init__(self, drift=0):
        self.seeds, self.drift = [], drift

    def reset(self, *, seed=None):
        self.seeds.append(seed)
        self.number, self.guesses = random.Random(seed).randrange(10) + self.drift * len(self.seeds), 0
        return "Guess.", {}

    def step(self, action):
        self.guesses += 1
        if not action.isdigit():
            told = {"status": "failed", "error": "no number", "error_class": "ValueError"}
            return "A number.", -1.0, False, self.guesses == 3, told
        right, more = int(action) == self.number, int(action) < self.number
        return "More." if more else "Less.", float(right), right, self.guesses == 3, {}


def test_episodes_go_on_side_by_side_each_with_a_seed_of_its_own():
    made = [Guess(), Guess()]
    episodes = Episodes(made, seed=5)
    assert episodes.prompts == [Prompt("Guess.", "")] * 2 and made[0].seeds != made[1].seeds
    first, second = episodes.step([str(made[0].number), "x"])
    assert (first.reward, first.terminated, first.truncated, first.next_prompt) == (1.0, True, False, None)
    assert (first.status, first.error, second.status, second.error) == ("ok", "", "failed", "no number")
    assert second.error_class == "ValueError" and second.next_prompt == Prompt("A number.", "")
    assert episodes.prompts == [Prompt("Guess.", ""), Prompt("A number.", "")]
    episodes.step(["x", "x"])
    third = episodes.step(["x", "x"])[1]
    assert (third.episode, third.episode_step, third.terminated, third.truncated) == (1, 3, False, True)
    assert third.next_prompt == Prompt("A number.", ""), "what follows where it was cut off is bootstrapped"
    assert episodes.step(["x", "x"])[1].episode == 3 and len({*made[0].seeds, *made[1].seeds}) == 5
    assert [env.seeds for env in made] == [env.seeds for env in again(5)]


def again(seed):
    made = [Guess(), Guess()]
    episodes = Episodes(made, seed)
    for action in (str(made[0].number), "x", "x"):
        episodes.step([action, "x"])
    episodes.step(["x", "x"])
    return made


def test_an_environment_that_cannot_say_where_it_stands_is_brought_there_by_the_same_actions():
    first, second = Episodes([Guess()], 1), Episodes([Guess()], 1)
    first.step(["x"])
    second.set_state(first.get_state())
    assert second.prompts == first.prompts and second.step(["5"]) == first.step(["5"])


def test_an_environment_that_answers_differently_the_second_time_is_refused():
    first, second = Episodes([Guess(drift=-20)], 1), Episodes([Guess(drift=20)], 1)
    first.step(["5"])
    assert first.prompts == [Prompt("Less.", "")]
    with pytest.raises(UserError, match="^Guess answered the same actions after reset.seed. differently than before"):
        second.set_state(first.get_state())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (("more", 1.0, True), "Guess.step gave 3 values; expected .observation, reward, terminated, truncated, info."),
        (None, "Guess.step gave NoneType; expected"),
        ((3, 1.0, False, False, {}), "Guess.step gave the observation 3; expected a text"),
        (("more", "1", False, False, {}), "Guess.step gave the reward '1'; expected a finite number"),
        (("more", float("nan"), False, False, {}), "Guess.step gave the reward nan; expected a finite number"),
    ],
)
def test_an_answer_of_another_kind_is_refused_in_one_line(monkeypatch, answer, message):
    monkeypatch.setattr(Guess, "step", lambda self, action: answer)
    with pytest.raises(UserError, match=f"^{message}"):
        Episodes([Guess()]).step(["1"])


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        (lambda self: ("Guess.", {}), "Guess.reset takes no seed; expected reset.self, ., seed=None."),
        (lambda self, seed=None: "Guess.", "Guess.reset gave str; expected .observation, info."),
        (lambda self, **more: (3, {}), "Guess.reset gave the observation 3; expected a text"),
    ],
)
def test_a_beginning_of_another_kind_is_refused_in_one_line(monkeypatch, reset, message):
    monkeypatch.setattr(Guess, "reset", reset)
    with pytest.raises(UserError, match=f"^{message}"):
        Episodes([Guess()])


def test_remarks_need_not_be_there():
    class Plain(Guess):
        def step(self, action):
            return None, 1, True, False, None

    (step,) = Episodes([Plain()]).step(["1"])
    assert (step.reward, step.status, step.next_prompt) == (1.0, "ok", None)


class Counted(Guess):
    """Says how many guesses were made, and may be told."""

    def get_state(self):
        return {"guesses": self.guesses, "number": self.number}

    def set_state(self, state):
        self.guesses, self.number = state["guesses"], state["number"]


def test_a_state_is_that_after_the_last_step_or_of_the_episode_that_began_with_it():
    first, second = Episodes([Counted(), Counted()], 1), Episodes([Counted(), Counted()], 9)
    first.step([str(first._environments[0].number), "x"])
    assert [s["guesses"] for s in first.get_state()["environments"]] == [0, 1]
    second.set_state(first.get_state())
    assert second.get_state() == first.get_state()
    assert second.step(["x", "x"]) == first.step(["x", "x"]) and second.get_state() == first.get_state()
