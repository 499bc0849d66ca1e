"""Trains a language model in an environment of one's own.

    from etpo_paper.use.learn import learn

    run = learn(MyEnvironment, "runs/mine", name="mine-1", model="smollm2", steps=500)

`MyEnvironment` has `reset` and `step`, see `etpo_paper.environment.episodes`.
"""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etpo_core.errors import UserError
from etpo_paper.base.lock import sole_maker
from etpo_paper.environment.episodes import Environment, Episodes
from etpo_paper.methods import build_method
from etpo_paper.training.agents import Common
from etpo_paper.use.fit import make, settings_for
from etpo_paper.use.folder import Asked, OwnRun


@dataclass(frozen=True)
class Named:
    """An environment as the data of a run, known by its name alone."""

    name: str
    stand_in: None = None

    @property
    def source(self) -> str:
        """See `Data.source`."""
        return f"environment {self.name}"

    @property
    def sha256(self) -> str:
        """See `Data.sha256`."""
        return hashlib.sha256(self.source.encode()).hexdigest()


def learn(
    environment: Callable[[], Environment],
    place: Path | str,
    *,
    name: str,
    method: str = "etpo",
    model: str = "smollm2",
    steps: int = 500,
    seed: int = 0,
    **training: Any,
) -> OwnRun:
    """Trains a language model in an environment, goes on with a run that was stopped, or finds it finished.

    Args:
        environment: makes an environment; called once for each episode that runs at the same time.
        place: the folder of the run. `run/steps.csv`, `run/updates.csv`, `run/samples.jsonl` and `run/run_card.json`
            are as of every run, `run/best_code.py` is the best action, `run/checkpoint/policy` the trained adapter.
        name: of the environment and its version. A stopped run goes on only under the same name, so give another when
            you change the environment.
        method: a section of methods in params.yaml that trains, e.g. etpo or ppo_kl.
        model: what `etpo fit --model` takes.
        steps: actions in all environments together.
        seed: of first weights, of sampling and of the episodes.
        training: settings of the section `training` of params.yaml to replace, e.g. max_new_tokens=32.

    Returns:
        The run, whose `folder` and `policy` say where its files are.

    Raises:
        UserError: a name, a number or an environment's answer is not possible.
    """
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"name {name!r}: expected the name of an environment, such as queries-1")
    settings = settings_for(Asked(name, "", method, steps, model, seed), programs=False).replace(training=training)
    run = OwnRun("own", method, name, seed, Path(place))
    learner, data = build_method(method, settings.methods[method].plain()), Named(name)

    def environments() -> Episodes:
        return Episodes([environment() for _ in range(settings.training.environments)], seed)

    with sole_maker(run.folder), Common() as common:
        try:
            make(run, settings, learner, data, environments, common)
        except KeyboardInterrupt:
            print(f"\n{place}: stopped; the same call goes on after its last whole update", file=sys.stderr)
            raise
    return run
