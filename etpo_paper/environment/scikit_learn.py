"""The environment of the paper: states are prompts, actions are bodies of `build_model`, the reward is what they score.

An episode starts from the task's prompt. Code that runs earns its mean ROC AUC over the shared 50/50 splits and ends
the episode; code that fails in any way earns -1, and the next state shows the failed body with its error. The try
number `max_steps` ends the episode as well, as the paper has it: nothing follows, and nothing is bootstrapped.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from etpo_core.errors import UserError
from etpo_core.sandbox import SandboxPool, Status
from etpo_paper.base.settings import Environment as Section
from etpo_paper.data.tasks import Task
from etpo_paper.environment.episodes import Episodes
from etpo_paper.environment.prompts import Prompt, program, reflection_prompt, task_prompt


class Verdict(NamedTuple):
    """What came of a body: the executor's status, the score if it ran, and otherwise the error."""

    status: str
    score: float | None
    error: str
    error_class: str


class Programs:
    """Scores bodies on one data set, many at a time; the `Backend` of its environments.

    Args:
        task: the data set.
        executor: scores programs; owned by the caller. Where several processes share the work, each has one.
        split_seeds: seeds of the 50/50 splits that give the reward.
        forbid_grid_search: treat code that contains `GridSearchCV(` as failed, as the released code does.
    """

    def __init__(self, task: Task, executor: SandboxPool, split_seeds: Sequence[int], forbid_grid_search: bool = False):
        self.task, self._executor, self._split_seeds = task, executor, tuple(split_seeds)
        self._forbid_grid_search = forbid_grid_search
        self._verdicts: dict[str, Verdict] = {}

    def _banned(self, body: str) -> bool:
        return self._forbid_grid_search and "GridSearchCV(" in body

    @contextmanager
    def ahead(self) -> Iterator[Callable[[str], None]]:
        """See `Backend.ahead`."""
        with self._executor.ahead(self.task.x, self.task.y, self._split_seeds) as start:
            yield lambda body: None if self._banned(body) else start(program(body))

    def run(self, actions: Sequence[str]) -> None:
        """Scores bodies; a forbidden call is not executed at all.

        Raises:
            UserError: the sandbox failed, which says nothing about a program, so that it earns nothing.
        """
        allowed = [body for body in actions if not self._banned(body)]
        sources = [program(body) for body in allowed]
        outcomes = self._executor.score_many(sources, self.task.x, self.task.y, self._split_seeds)
        message = "RuntimeError: GridSearchCV is not allowed, choose the parameters directly"
        banned = Verdict(str(Status.SNIPPET_ERROR), None, message, "RuntimeError")
        self._verdicts = dict.fromkeys(actions, banned)
        for body, o in zip(allowed, outcomes, strict=True):
            if o.status == Status.INFRASTRUCTURE_FAULT:
                raise UserError(
                    f"the sandbox failed: {o.error_text}; `python -m etpo_core.sandbox doctor` says what is wrong, "
                    "the run goes on after its last update"
                )
            score = o.score if o.status == Status.OK else None
            self._verdicts[body] = Verdict(str(o.status), score, o.error_text, o.error_type or "")

    def verdict(self, body: str) -> Verdict:
        """What came of a body, which is run if `run` was not asked for it last."""
        if body not in self._verdicts:
            self.run([body])
        return self._verdicts[body]


class ScikitLearn:
    """One episode after another of writing `build_model` for a task, see `episodes.Environment`.

    Args:
        programs: scores the bodies.
        max_steps: steps of an episode; 1 switches reflection off, and the single step then ends the episode for good.
        bootstrap_at_limit: the last failed try of an episode leads to the state that would follow, whose value is
            bootstrapped. The paper gives a done signal there.
        failure_reward: reward of code that fails in any way.
    """

    def __init__(
        self,
        programs: Programs,
        *,
        max_steps: int = 5,
        bootstrap_at_limit: bool = False,
        failure_reward: float = -1.0,
    ):
        self._programs, self._max_steps, self._failure_reward = programs, max_steps, failure_reward
        # With a single step to an episode there is no state in which an error could be read.
        self._bootstraps = bootstrap_at_limit and max_steps > 1
        rows, features = programs.task.x.shape
        self._task = {"description": programs.task.spec.description, "features": features, "rows": rows // 2}
        self._tries = 0

    def reset(self, *, seed: int | None = None) -> tuple[Prompt, dict[str, Any]]:
        """See `Environment.reset`; nothing in an episode is random."""
        self._tries = 0
        return task_prompt(**self._task), {}

    def step(self, action: str) -> tuple[Prompt, float, bool, bool, dict[str, Any]]:
        """See `Environment.step`."""
        status, score, error, error_class = self._programs.verdict(action)
        self._tries += 1
        ran, at_limit = score is not None, self._tries >= self._max_steps
        reward = self._failure_reward if score is None else score
        terminated = ran or at_limit and not self._bootstraps
        following = reflection_prompt(**self._task, body=action, error=error)
        told = {"status": status, "error": "" if ran else error, "error_class": "" if ran else error_class}
        return following, reward, terminated, at_limit and not terminated, told

    def get_state(self) -> dict[str, Any]:
        """Where the episode stands."""
        return {"tries": self._tries}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        self._tries = state["tries"]


def episodes(task: Task, executor: SandboxPool, section: Section, count: int, reflect: bool = True) -> Episodes:
    """The environments of a run.

    Args:
        task: the data set.
        executor: see `Programs`.
        section: the section `environment` of the settings.
        count: how many episodes run side by side.
        reflect: whether a failed try is followed by another.
    """
    programs = Programs(task, executor, section.split_seeds, section.forbid_grid_search)

    def environment() -> ScikitLearn:
        return ScikitLearn(
            programs,
            max_steps=section.max_steps if reflect else 1,
            bootstrap_at_limit=section.bootstrap_at_limit,
            failure_reward=section.failure_reward,
        )

    return Episodes([environment() for _ in range(count)], backend=programs, as_file=program)
