"""Trains the agent on a table of one's own, with the loop and the agent of the paper's runs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from etpo_core.errors import UserError
from etpo_core.interfaces import Method
from etpo_paper.base import distributed
from etpo_paper.base.lock import sole_maker
from etpo_paper.base.provenance import device_name
from etpo_paper.base.settings import Settings, load_defaults, load_settings
from etpo_paper.environment.episodes import Episodes
from etpo_paper.environment.scikit_learn import episodes
from etpo_paper.methods import build_method
from etpo_paper.model import models
from etpo_paper.model.own import register
from etpo_paper.report.names import counted
from etpo_paper.training import live
from etpo_paper.training.agents import Common
from etpo_paper.training.begin import make_room, note
from etpo_paper.training.loop import train
from etpo_paper.training.policy import leave_policy
from etpo_paper.training.run import Data, finish, is_finished
from etpo_paper.use import folder
from etpo_paper.use.program import one_file
from etpo_paper.use.score import outcome_text, score_many, show, splits
from etpo_paper.use.table import OwnTable, read_table

SCALES = {"smollm2": "laptop", "tiny": "smoke", "codellama": "paper"}  # whose settings suit a model
SCALE_OF_OTHERS = "laptop"


def settings_for(asked: folder.Asked, programs: bool = True) -> Settings:
    """The settings of a run: those of the scale that suits the model, and the paper's environment.

    A model of the user's own is looked at and, if it is one of the hub, fetched. A line then says how it is used.

    Args:
        asked: what the user asked for.
        programs: see `register`.

    Raises:
        UserError: a name or number that is not possible, or a model that cannot be used.
    """
    ours = asked.model in SCALES
    settings = load_settings(SCALES[asked.model] if ours else SCALE_OF_OTHERS, asked.method)
    trained = [name for name in settings.methods if build_method(name, settings.methods[name]).trains]
    if asked.method not in trained:
        raise UserError(f"--method {asked.method} trains no model; choose one of: {', '.join(trained)}")
    if asked.steps < 1:
        raise UserError(f"--steps {asked.steps}: expected at least 1")
    if asked.seed < 0:
        raise UserError(f"--seed {asked.seed}: expected at least 0")
    changes: dict[str, Any] = {"environment": load_defaults().environment.plain()}
    training = {"env_steps": asked.steps}
    if ours and asked.lora_targets is not None:
        raise UserError(f"--lora-targets is for a model of your own; {asked.model} has adapters on all linear products")
    if not ours:
        training["max_new_tokens"] = load_settings("paper").training.max_new_tokens  # it may write at more length
        changes["model"] = register(asked.model, asked.lora_targets, SCALES, programs)
    return settings.replace(training=training, **changes)


def fit(asked: folder.Asked, place: Path) -> None:
    """Trains, goes on with a run that was stopped, or finds it finished; then prints what came of it."""
    settings, seeds = settings_for(asked), splits()
    path, run = Path(asked.table), asked.run(place)
    own = read_table(path, asked.target, (*seeds.reward, *seeds.held_out))
    folder.check(place, asked)
    show(own, path)
    method = build_method(run.method, settings.methods[run.method].plain())
    with sole_maker(run.folder), Common() as common:
        folder.write(place, asked, own)

        def environments() -> Episodes:
            executor, count = common.executor(settings.sandbox), settings.training.environments
            return episodes(own.task, executor, settings.environment, count, method.reflect)

        make(run, settings, method, own.task, environments, common)
        _finish(asked, run, own, settings, common)


def make(
    run: folder.OwnRun,
    settings: Settings,
    method: Method,
    data: Data,
    environments: Callable[[], Episodes],
    common: Common,
) -> None:
    """Makes a run up to its card, or finds it finished.

    Args:
        run: names it.
        settings: of its method.
        method: learns.
        data: what it is made on.
        environments: makes those that it acts in.
        common: its executor and model.
    """
    device, model_card = distributed.device(), models.model(settings.model)
    if is_finished(run, settings, models.card(settings.model), data):
        print(f"{run.place}: this run is finished and was kept")
        return
    acted_in = environments()
    agent = common.agent(run, settings, device, True, precision(common, settings), None)
    whose = make_room(run, settings, model_card, data)
    note(run, settings, model_card, data)
    prompt = acted_in.prompts[0].prefix
    bar = tqdm(total=settings.training.env_steps, unit="step", desc=f"{run.method} {run.task}")
    with bar, live.curves(run) as curves:
        for row in train(run, agent, agent.networks, method, acted_in, settings, whose):
            curves(row)
            bar.update(row["steps"] - bar.n)
            bar.set_postfix(
                reward=f"{row['mean_reward']:.3f}", best=f"{row['best_reward']:.3f}", runs=f"{row['share_runs']:.0%}"
            )
    leave_policy(run, settings, data, model_card, agent, prompt)
    gap = agent.networks.gap.card()
    finish(run, settings, data, model_card, device=device_name(device), decoder=agent.decoder_name, on_policy=gap)


def _finish(asked: folder.Asked, run: folder.OwnRun, own: OwnTable, settings: Settings, common: Common) -> None:
    """Writes the best program with its preprocessing, and prints it with its scores."""
    source = (run.folder / "best_code.py").read_text(encoding="utf-8")
    best, steps = run.place / folder.BEST, settings.training.env_steps
    if not source.strip():
        best.unlink(missing_ok=True)
        print(f"No program ran in {counted(steps, 'step')}; give more --steps, or another --model.")
    else:
        best.write_text(one_file(source, own), encoding="utf-8")
        executor, seeds = common.executor(settings.sandbox), splits()
        print(f"\nThe best program of {counted(steps, 'step')}:\n\n{source.strip()}\n")
        score = functools.partial(score_many, executor, [source], own.task)
        print(f"{len(seeds.reward)} splits that gave a reward: {outcome_text(score(seeds.reward)[0])}")
        print(f"{len(seeds.held_out)} held-out splits: {outcome_text(score(seeds.held_out)[0])}")
        print(f"The program with its preprocessing: {best}")
    print(f"The trained policy, a PEFT adapter of {asked.model}: {run.policy}")


def precision(common: Common, settings: Settings) -> str:
    """The precision of products on this machine, see `base.machine`."""
    wanted = settings.training.precision
    return common.choice(wanted).precision if distributed.device().type == "cpu" else wanted
