"""The text MDP: states are prompts, actions are bodies of `build_model`, the reward is what the code scores.

An episode starts from the task's prompt. Code that runs earns its mean ROC AUC over the shared 50/50 splits and ends
the episode; code that fails in any way earns -1, and the next state shows the failed body with its error. The try
number `max_steps` ends the episode as well, as the paper has it: nothing follows, and nothing is bootstrapped. Several
episodes of one task run side by side, because the model writes and the executor scores many programs at once.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from etpo_core.errors import UserError
from etpo_core.sandbox import Outcome, SandboxPool, Status
from etpo_paper.base import distributed
from etpo_paper.data.tasks import Task
from etpo_paper.environment.prompts import Prompt, program, reflection_prompt, task_prompt


@dataclass(frozen=True)
class Step:
    """What one environment step brought about.

    Attributes:
        environment: index of the environment.
        episode: number of the episode, counted over all environments.
        episode_step: 1 for the first try of an episode.
        prompt: the state that was acted in.
        body: the action.
        reward: mean ROC AUC, or the failure reward.
        terminated: True when the code ran or the step limit was reached: nothing follows.
        truncated: True when the episode was cut at its step limit, where that is not taken for an end of its own.
        next_prompt: the state that follows; None when terminated. A truncated episode has one, and is bootstrapped.
        status: the executor's verdict.
        error: its error text, empty when the code ran.
        error_class: name of the exception, empty when there is none.
        code_hash: sha256 of the body, first 16 hexadecimal digits.
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


class TextEnvironments:
    """`count` environments of one task, stepped together.

    Args:
        task: the data set.
        executor: scores programs; owned by the caller. Where several processes share the work, each has one.
        count: how many episodes run side by side.
        split_seeds: seeds of the 50/50 splits that give the reward.
        max_steps: steps of an episode; 1 switches reflection off, and the single step then ends the episode for good.
        bootstrap_at_limit: the last failed try of an episode leads to the state that would follow, whose value is
            bootstrapped. The paper gives a done signal there.
        failure_reward: reward of code that fails in any way.
        forbid_grid_search: treat code that contains `GridSearchCV(` as failed, as the released code does.
    """

    def __init__(
        self,
        task: Task,
        executor: SandboxPool,
        *,
        count: int,
        split_seeds: Sequence[int],
        max_steps: int = 5,
        bootstrap_at_limit: bool = False,
        failure_reward: float = -1.0,
        forbid_grid_search: bool = False,
    ):
        self.task, self.executor, self.count = task, executor, count
        self.split_seeds, self.max_steps = tuple(split_seeds), max_steps
        self.bootstrap_at_limit = bootstrap_at_limit
        self.failure_reward, self.forbid_grid_search = failure_reward, forbid_grid_search
        rows, features = task.x.shape
        self._shape = {"features": features, "rows": rows // 2}
        self._episodes_started = count
        self._episode = list(range(count))
        self._episode_step = [1] * count
        self.prompts = [self._first_prompt()] * count

    def _first_prompt(self) -> Prompt:
        return task_prompt(self.task.spec.description, **self._shape)

    def _banned(self, body: str) -> bool:
        return self.forbid_grid_search and "GridSearchCV(" in body

    @contextmanager
    def ahead(self) -> Iterator[Callable[[str], None]]:
        """Executes actions ahead of `step`: yields a function that takes a body as soon as it is written.

        `step`, called inside, waits for what is left to do. Whatever no `step` asked for is stopped at the end.
        """
        with self.executor.ahead(self.task.x, self.task.y, self.split_seeds) as start:
            yield lambda body: None if self._banned(body) else start(program(body))

    def _score(self, bodies: Sequence[str]) -> list[tuple[str, float | None, str, str]]:
        """(status, score, error text, error class) of each body; a forbidden call is not executed at all."""
        banned = [self._banned(body) for body in bodies]
        sources = [program(body) for body, ban in zip(bodies, banned, strict=True) if not ban]
        outcomes: list[Outcome] = self.executor.score_many(sources, self.task.x, self.task.y, self.split_seeds)
        remaining = iter(outcomes)
        results: list[tuple[str, float | None, str, str]] = []
        for ban in banned:
            if ban:
                message = "RuntimeError: GridSearchCV is not allowed, choose the parameters directly"
                results.append((str(Status.SNIPPET_ERROR), None, message, "RuntimeError"))
            else:
                o = next(remaining)
                if o.status == Status.INFRASTRUCTURE_FAULT:  # says nothing about the program, so it earns nothing
                    raise UserError(
                        f"the sandbox failed: {o.error_text}; `python -m etpo_core.sandbox doctor` says what is wrong, "
                        "the run goes on after its last update"
                    )
                score = o.score if o.status == Status.OK else None
                results.append((str(o.status), score, o.error_text, o.error_type or ""))
        return results

    def step(self, bodies: Sequence[str]) -> list[Step]:
        """Acts in every environment: executes one body each and moves on to the next states."""
        steps = []
        for i, (body, (status, score, error, error_class)) in enumerate(
            zip(bodies, distributed.merge(self._score(distributed.share(bodies))), strict=True)
        ):
            ran = score is not None
            at_limit = self._episode_step[i] >= self.max_steps
            # With a single step to an episode there is no state in which an error could be read.
            bootstraps = self.bootstrap_at_limit and self.max_steps > 1
            terminated = ran or at_limit and not bootstraps
            next_prompt = None
            if not terminated:
                next_prompt = reflection_prompt(self.task.spec.description, **self._shape, body=body, error=error)
            truncated = at_limit and not terminated
            steps.append(
                Step(
                    environment=i,
                    episode=self._episode[i],
                    episode_step=self._episode_step[i],
                    prompt=self.prompts[i],
                    body=body,
                    reward=self.failure_reward if score is None else score,
                    terminated=terminated,
                    truncated=truncated,
                    next_prompt=next_prompt,
                    status=status,
                    error="" if ran else error,
                    error_class="" if ran else error_class,
                    code_hash=hashlib.sha256(body.encode()).hexdigest()[:16],
                )
            )
            if next_prompt is None or truncated:
                self._episode[i], self._episode_step[i] = self._episodes_started, 1
                self._episodes_started += 1
                self.prompts[i] = self._first_prompt()
            else:
                self._episode_step[i] += 1
                self.prompts[i] = next_prompt
        return steps

    def get_state(self) -> dict:
        """Where every episode stands, for a checkpoint."""
        return {
            "episodes_started": self._episodes_started,
            "episode": list(self._episode),
            "episode_step": list(self._episode_step),
            "prompts": [asdict(p) for p in self.prompts],
        }

    def set_state(self, state: dict) -> None:
        """Restores what `get_state` returned."""
        self._episodes_started = state["episodes_started"]
        self._episode, self._episode_step = list(state["episode"]), list(state["episode_step"])
        self.prompts = [Prompt(**p) for p in state["prompts"]]
