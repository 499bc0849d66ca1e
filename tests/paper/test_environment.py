from contextlib import contextmanager

import pytest

from etpo_core.errors import UserError
from etpo_core.sandbox import Outcome, Status
from etpo_paper.base.settings import load_defaults
from etpo_paper.environment.prompts import program, reflection_prompt, task_prompt
from etpo_paper.environment.scikit_learn import episodes


class Scripted:
    """An executor whose verdicts are given: a number is a score, a string an error."""

    def __init__(self, verdicts):
        self.verdicts, self.sources, self.started, self.left = list(verdicts), [], [], 0

    @contextmanager
    def ahead(self, x, y, split_seeds, seed=0):
        try:
            yield self.started.append
        finally:
            self.left += 1

    def score_many(self, sources, x, y, split_seeds, seed=0):
        self.sources += sources
        out = []
        for _ in sources:
            verdict = self.verdicts.pop(0)
            if isinstance(verdict, Outcome):
                out.append(verdict)
            elif isinstance(verdict, str):
                out.append(Outcome(Status.SNIPPET_ERROR, error_type="ValueError", message=verdict, line=6))
            else:
                out.append(Outcome(Status.OK, score=verdict, scores=(verdict,) * len(split_seeds)))
        return out


def make(task, verdicts, count=1, **options):
    section = load_defaults().environment.model_copy(update={"split_seeds": (0, 1), **options})
    return episodes(task, Scripted(verdicts), section, count)


def test_success_ends_the_episode_and_pays_the_score(toy_task):
    environments = make(toy_task, [0.8])
    (step,) = environments.step(["    model = 1\n"])
    assert (step.reward, step.terminated, step.truncated, step.next_prompt, step.error) == (0.8, True, False, None, "")
    assert environments.prompts == [task_prompt("Toy", 3, 20)]


def test_failure_pays_minus_one_and_shows_code_and_error(toy_task):
    environments = make(toy_task, ["bad shape"])
    (step,) = environments.step(["    model = 1\n"])
    assert (step.reward, step.terminated, step.error_class) == (-1.0, False, "ValueError")
    expected = reflection_prompt("Toy", 3, 20, "    model = 1\n", "ValueError: bad shape (line 6)")
    assert environments.prompts == [expected] and step.next_prompt == expected
    assert "bad shape" in expected.prefix and "    model = 1\n    return model" in expected.prefix


def test_a_fault_of_the_sandbox_is_no_failure_of_the_program(toy_task):
    environments = make(toy_task, [Outcome(Status.INFRASTRUCTURE_FAULT, message="no worker starts")])
    with pytest.raises(UserError, match="the sandbox failed: .*no worker starts.*goes on after its last update"):
        environments.step(["    model = 1\n"])


def test_the_step_limit_ends_an_episode_and_nothing_is_bootstrapped(toy_task):
    environments = make(toy_task, ["a", "b", "c"], max_steps=2)
    first, second, third = (environments.step(["    x\n"])[0] for _ in range(3))
    assert not first.terminated and first.next_prompt is not None
    assert second.terminated and not second.truncated and second.next_prompt is None
    assert (first.episode, second.episode, third.episode) == (0, 0, 1)
    assert (first.episode_step, second.episode_step, third.episode_step) == (1, 2, 1)


def test_an_episode_can_be_bootstrapped_at_its_step_limit_instead(toy_task):
    environments = make(toy_task, ["a", "b", "c"], max_steps=2, bootstrap_at_limit=True)
    first, second, third = (environments.step(["    x\n"])[0] for _ in range(3))
    assert (first.truncated, second.truncated) == (False, True)
    assert second.next_prompt is not None and not second.terminated
    assert (first.episode, second.episode, third.episode) == (0, 0, 1)
    assert (first.episode_step, second.episode_step, third.episode_step) == (1, 2, 1)


def test_without_reflection_every_step_ends_its_episode(toy_task):
    environments = make(toy_task, ["a"], max_steps=1, bootstrap_at_limit=True)
    (step,) = environments.step(["    x\n"])
    assert step.terminated and not step.truncated and step.next_prompt is None and step.reward == -1.0


def test_environments_are_independent(toy_task):
    environments = make(toy_task, [0.7, "broken", 0.9], count=3)
    steps = environments.step(["    a\n", "    b\n", "    c\n"])
    assert [s.terminated for s in steps] == [True, False, True]
    assert [environments._episode[i] for i in range(3)] == [3, 1, 4]


def test_grid_search_can_be_forbidden_as_in_the_released_code(toy_task):
    body = "    model = GridSearchCV(x)\n"
    environments = make(toy_task, [0.9], count=2, forbid_grid_search=True)
    banned, allowed = environments.step([body, "    model = 1\n"])
    assert (banned.reward, banned.error_class, allowed.reward) == (-1.0, "RuntimeError", 0.9)
    assert environments._backend._executor.sources == [program("    model = 1\n")]


def test_bodies_are_executed_ahead_of_the_step_but_for_those_that_are_forbidden(toy_task):
    environments = make(toy_task, [0.9], count=2, forbid_grid_search=True)
    executor, bodies = environments._backend._executor, ["    model = GridSearchCV(x)\n", "    model = 1\n"]
    with environments.ahead() as start:
        for body in reversed(bodies):
            start(body)
        assert executor.started == [program("    model = 1\n")] and not executor.left
        assert [step.reward for step in environments.step(bodies)] == [-1.0, 0.9]
    assert executor.left == 1


def test_when_writing_fails_the_programs_begun_are_left(toy_task):
    environments = make(toy_task, [])
    with pytest.raises(RuntimeError, match="no memory"), environments.ahead() as start:
        start("    model = 1\n")
        raise RuntimeError("no memory")
    assert environments._backend._executor.left == 1


def test_state_round_trip(toy_task):
    environments = make(toy_task, ["a", "b", 0.5], count=1)
    environments.step(["    x\n"])
    other = make(toy_task, ["b"], count=1)
    other.set_state(environments.get_state())
    assert other.step(["    y\n"]) == environments.step(["    y\n"])


def test_the_program_is_the_function_around_the_action():
    namespace = {}
    exec(program("    model = x_train + y_train\n"), namespace)
    assert namespace["build_model"](1, 2) == 3


@pytest.mark.parametrize("error", ["multi\nline\t error", "x" * 5000])
def test_an_error_stays_one_short_comment(error):
    text = reflection_prompt("Toy", 3, 20, "    a\n", error).prefix
    comment = next(line for line in text.splitlines() if "fails:" in line)
    assert len(comment) < 400
