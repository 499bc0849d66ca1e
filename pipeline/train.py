"""Stage `train`: one run, named by scale, method, task and seed.

    python -m pipeline.train --scale laptop --method etpo --task diabetes --seed 0

writes results/laptop/etpo/diabetes/seed0/ (`etpo_paper.training.run_files` says what). After an interruption the same
command goes on after the last whole update. One process makes a run at a time: where another is at it, the command says
so and exits with status 75. With `torchrun --nproc-per-node 2 -m pipeline.train ...` two processes
share the work of a run (see `etpo_paper.base.distributed`).
"""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
from tqdm import tqdm

from etpo_core.errors import UserError
from etpo_core.interfaces import Method
from etpo_core.sandbox import Outcome, SandboxPool
from etpo_paper.base import distributed
from etpo_paper.base.lock import HELD, HeldError, sole_maker
from etpo_paper.base.provenance import commit, device_name, write_json
from etpo_paper.base.settings import Settings
from etpo_paper.data.tasks import Task, check_task
from etpo_paper.environment.scikit_learn import episodes
from etpo_paper.methods import build_method
from etpo_paper.model import models
from etpo_paper.training import live
from etpo_paper.training.agents import Asks, Common
from etpo_paper.training.begin import make_room, note
from etpo_paper.training.loop import train
from etpo_paper.training.policy import leave_policy
from etpo_paper.training.run import Run, finish, is_finished, write_card
from etpo_paper.training.run_files import HOST, RunFiles
from pipeline import data, entry
from pipeline.resolve import resolve

NO_KEY = "OPENAI_API_KEY is not set"
KEPT = "finished with the same settings, kept"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    parser = entry.parser(__doc__, scale="laptop")
    parser.add_argument("--method", required=True, help="one of the section methods, e.g. etpo")
    parser.add_argument("--task", required=True, help="one of the fourteen tables, e.g. diabetes")
    parser.add_argument("--seed", type=int, required=True, help="of the first weights and of sampling")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors(), distributed.joined():
        if arguments.seed < 0:
            raise UserError(f"--seed: got {arguments.seed}, expected at least 0")
        check_task(arguments.task)
        settings = resolve(arguments.scale, arguments.method)
        try:
            run_stage(Run(arguments.scale, arguments.method, arguments.task, arguments.seed), settings)
        except HeldError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(HELD)


class Patient:
    """An executor whose caller lets the other runs of a group go on while its programs are executed.

    Args:
        pool: the executor.
        ask: see `base.lockstep`.
    """

    def __init__(self, pool: SandboxPool, ask: Asks):
        self._pool, self._ask = pool, ask
        self.tier, self.layers, self.ahead = pool.tier, pool.layers, pool.ahead

    def score_many(self, *arguments: Any) -> list[Outcome]:
        """See `SandboxPool.score_many`."""
        with ThreadPoolExecutor(1) as thread:
            return self._ask(thread.submit(self._pool.score_many, *arguments))


def run_stage(run: Run, settings: Settings, common: Common | None = None, ask: Asks | None = None) -> None:
    """Makes the run, or says why it is not needed or not possible, and writes its card.

    Args:
        run: names it.
        settings: of its scale and method.
        common: what it shares with other runs of this process; None for a run alone.
        ask: of the group that it belongs to, see `base.lockstep`; takes a trunk with a part, or a future.
    """
    method = build_method(run.method, settings.methods[run.method].plain())
    distributed.check_share(settings.training.environments)
    task = distributed.from_first(lambda: data.table(run.task))
    model_card = _model_card(settings, getattr(method, "model", None))

    def kept() -> bool:
        found = settings.runs.keep_finished and is_finished(run, settings, model_card, task)
        if found:
            print(f"{run.folder}: {KEPT}")
        return found

    if distributed.from_first(kept):
        return
    with ExitStack() as stack:
        distributed.from_first(lambda: stack.enter_context(sole_maker(run.folder)))
        if not distributed.from_first(kept):  # another process may have finished it in between
            if common is None:
                common = stack.enter_context(Common())
            _make(run, settings, method, task, model_card, common, ask)


def _make(
    run: Run,
    settings: Settings,
    method: Method,
    task: Task,
    model_card: dict[str, Any],
    common: Common,
    ask: Asks | None,
) -> None:
    device, first = distributed.device(), distributed.rank() == 0

    chosen, chat = None, getattr(method, "model", None)
    if chat is not None:
        from etpo_paper.model.chat import ChatAgent  # needs the openai client, which the other methods do not

        agent = ChatAgent.from_environment(chat, **settings.chat.plain())
        if agent is None and not first:
            return
        if agent is None and run.state.exists():
            raise UserError(f"{NO_KEY}; {run.folder} was begun with it: set it, and the run goes on")
        if agent is None:
            make_room(run, settings, model_card, task)
            RunFiles(run.folder, None).close()
            (run.folder / "best_code.py").write_text("")
            write_card(run, settings, task, model_card, status="not run", reason=NO_KEY)
            print(f"{run.folder}: not run, {NO_KEY}")
            return
    else:
        model_card = distributed.from_first(lambda: models.model(settings.model))
        chosen = common.choice(settings.training.precision) if device.type == "cpu" else None
        precision = distributed.from_first(lambda: chosen.precision if chosen else settings.training.precision)
        agent = common.agent(run, settings, device, method.trains, precision, ask)
    started = time.time()
    whose = distributed.from_first(lambda: make_room(run, settings, model_card, task))
    if first:
        note(run, settings, model_card, task)
    executor: Any = common.executor(settings.sandbox)
    if ask is not None:
        executor = Patient(executor, ask)
    title = f"{run.method} {run.task} {run.seed}"
    bar = tqdm(total=settings.training.env_steps, unit="step", desc=title, disable=not first or common.has_bar)
    with bar, live.curves(run, first) as curves:
        networks = agent.networks if method.trains else None
        environments = episodes(task, executor, settings.environment, settings.training.environments, method.reflect)
        prompt = environments.prompts[0].prefix
        for row in train(run, agent, networks, method, environments, settings, whose, first):
            curves(row)
            common.shows(run, row, row["steps"] - bar.n)
            bar.n = row["steps"]
            bar.set_postfix(
                reward=f"{row['mean_reward']:.3f}",
                best=f"{row['best_reward']:.3f}",
                runs=f"{row['share_runs']:.0%}",
                kl=f"{row.get('kl_per_action', 0.0):.2f}",
                tok_s="?" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:.0f}",
            )
    walls = {"tier": str(executor.tier), "walls": list(executor.layers)}
    if not first:
        return
    more: dict[str, Any] = {"on_policy": agent.networks.gap.card() if method.trains else None}
    if chat is not None:
        try:
            agent.check_answers()
        except UserError:
            run.state.unlink(missing_ok=True)  # there is nothing to go on from
            raise
        more["chat"] = {"endpoint": agent.endpoint, "refused": agent.refused, **agent.counts}
        if agent.counts["empty"]:
            print(f"{run.folder}: some answers were empty ({agent.empty_answers()})")
    if method.trains:
        leave_policy(run, settings, task, model_card, agent, prompt)
    trunk = None if chat is not None else agent.networks.trunk
    rows = None if trunk is None else trunk.rows
    host = {
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "executor": walls,
        "machine": chosen and chosen.plain(),
        "rows": rows and rows._asdict(),
        "seconds_since_last_start": round(time.time() - started, 1),
    }
    write_json(run.folder / HOST, host)
    decoder = getattr(agent, "decoder_name", None)
    finish(run, settings, task, model_card, device=device_name(device), decoder=decoder, **more)
    if method.trains and ask is None:
        print(f"{run.policy}: the trained policy, an adapter of peft, with a card that says how to load it")


def finished(run: Run, settings: Settings) -> bool:
    """Whether results/ holds the run, see `is_finished`."""
    chat = settings.methods[run.method].get("model")
    return is_finished(run, settings, _model_card(settings, chat), data.table(run.task))


def _model_card(settings: Settings, chat: str | None) -> dict[str, Any]:
    if chat is None:
        return models.card(settings.model)
    return {"name": chat, "source": "OpenAI-compatible endpoint", "sha256": None, "stand_in": None}


if __name__ == "__main__":
    main()
