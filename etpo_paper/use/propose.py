"""Programs that a trained policy writes for its table, each scored."""

from pathlib import Path

import torch

from etpo_core.errors import UserError
from etpo_core.sandbox import Status
from etpo_paper.base import distributed
from etpo_paper.environment.prompts import Action, program
from etpo_paper.model.agent import Agent
from etpo_paper.report.names import counted
from etpo_paper.training.agents import Common
from etpo_paper.use.finished import finished
from etpo_paper.use.fit import precision
from etpo_paper.use.program import lines_above, one_file
from etpo_paper.use.score import outcome_text, score_many, splits


def propose(place: Path, count: int) -> None:
    """Has the policy of a finished run write programs, and prints each with its scores.

    Raises:
        UserError: see `finished`.
    """
    if count < 1:
        raise UserError(f"--count {count}: expected at least 1")
    _, run, settings, own, prompt = finished(place)
    training, seeds = settings.training, splits()
    with Common() as common:
        executor = common.executor(settings.sandbox)
        agent = common.agent(run, settings, distributed.device(), True, precision(common, settings), None)
        _load(agent, run.policy)
        generator = torch.Generator().manual_seed(run.seed)
        actions: list[Action] = []
        while len(actions) < count:
            side_by_side = min(training.environments, count - len(actions))
            longest = training.max_new_tokens
            actions += agent.act([prompt] * side_by_side, max_new_tokens=longest, generator=generator)
        sources = [program(action.body) for action in actions]
        reward = score_many(executor, sources, own.task, seeds.reward)
        ran = [source for source, outcome in zip(sources, reward, strict=True) if outcome.status is Status.OK]
        held_out = dict(zip(ran, score_many(executor, ran, own.task, seeds.held_out), strict=True)) if ran else {}
    proposals, known = place / "proposed", dict[str, int]()
    for number, (source, outcome) in enumerate(zip(sources, reward, strict=True), start=1):
        if source in known:
            print(f"program {number}: the same as program {known[source]}\n")
            continue
        known[source] = number
        body = actions[number - 1].body
        print(f"program {number}: {outcome_text(outcome, lines_above(source, body))}", end="")
        if source in held_out:
            file = proposals / f"program_{number}.py"
            file.parent.mkdir(exist_ok=True)
            file.write_text(one_file(source, own), encoding="utf-8")
            print(f", on held-out splits {outcome_text(held_out[source])}; {file}", end="")
        print(f"\n\n{body.rstrip()}\n")
    print(f"{counted(count, 'program')}, {len(known)} different; {sum(o.status is Status.OK for o in reward)} ran.")


def _load(agent: Agent, policy: Path) -> None:
    """Puts a trained adapter in the place of a fresh one."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    file = policy / "adapter_model.safetensors"
    if not file.is_file():
        raise UserError(f"{file} is missing; rename the folder of the run and run `etpo fit` again")
    set_peft_model_state_dict(agent.networks.model, load_file(file), adapter_name="policy")
    agent.refresh()
