"""One run: a method, a task and a seed, from the first action to the run card.

`train` is a generator: it collects a batch, lets the method learn from it, writes the raw results of that batch and
yields them, so that progress bars and plots live with the caller. After each update a checkpoint holds everything
that decides what comes next - adapters, optimisers, generator states, episodes, the length of each file - and a run
that was killed goes on as if it had not been: rows written after the last checkpoint are cut off and made again.
Several processes can share a run (`distributed`): all call `train` and get the same rows, the first one writes.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from etpo_core.interfaces import Method, Networks, Transition
from etpo_paper.base import distributed
from etpo_paper.base.settings import Settings
from etpo_paper.environment.episodes import Episodes, Step
from etpo_paper.environment.prompts import Action
from etpo_paper.environment.rollout import Actor, collect
from etpo_paper.training.checkpoint import read_checkpoint, write_checkpoint
from etpo_paper.training.run import Run
from etpo_paper.training.run_files import RunFiles


def train(
    run: Run,
    actor: Actor,
    networks: Networks | None,
    method: Method,
    environments: Episodes,
    settings: Settings,
    fingerprint: str,
    writes: bool = True,
) -> Iterator[dict[str, Any]]:
    """Runs a method in some environments, or goes on with a run that was stopped.

    Args:
        run: names the run and its folder.
        actor: writes the actions.
        networks: what the method trains, and what the actor acts with; None for a method that does not train.
        method: learns from them.
        environments: where it acts, at the beginning of their first episodes.
        settings: of the scale.
        fingerprint: names what the run depends on; a checkpoint with another fingerprint is not gone on from.
        writes: whether this process writes the files; one of those that share a run does.

    Yields:
        The row of `updates.csv` after each update, with `best_reward` and the columns of `clock.csv` beside it. When
        the generator is exhausted, all files of the run but its card are complete; its checkpoint is left until that is
        written.
    """
    training = settings.training
    distributed.check_share(environments.count)
    generator = torch.Generator().manual_seed(run.seed)
    if networks is not None:
        method.start(networks, distributed)
    kept = training.samples_per_update
    state = distributed.from_first(lambda: read_checkpoint(run.state, fingerprint))
    update, steps, best = 0, 0, None
    if state is not None:
        update, steps, best = state["update"], state["steps"], state["best"]
        generator.set_state(state["generator"])
        environments.set_state(state["environments"])
        actor.set_state(state["actor"])
        method.set_state(state["method"])
    files = RunFiles(run.folder, None if state is None else state["lengths"]) if writes else None
    try:
        while steps < training.env_steps:
            started = time.perf_counter()
            # The last batch takes what is left of the budget, to the next whole step of all environments.
            left = -(-(training.env_steps - steps) // environments.count)
            transitions, records = collect(
                actor,
                environments,
                min(training.steps_per_update, left),
                max_new_tokens=training.max_new_tokens,
                generator=generator,
                temperature=training.temperature,
                top_k=training.top_k,
            )
            # Environments step together; what lies beyond the budget is neither learnt from nor reported.
            transitions, records = transitions[: training.env_steps - steps], records[: training.env_steps - steps]
            set_rates(method.optimisers, 1 - (1 - training.final_rate) * (steps / training.env_steps))
            # Of a last batch with fewer transitions than processes, some would have none to learn from.
            with distributed.whole_work_if_fewer(len(transitions)):
                logged, credit = method.update(transitions)
            if method.trains:
                actor.refresh()
            seconds = time.perf_counter() - started
            rows = [_step_row(steps + i, update, *record) for i, record in enumerate(records, start=1)]
            best = _better(best, records, environments.as_file)
            steps += len(records)
            row = {"update": update, "steps": steps, **_summary(rows), **logged, "seconds": seconds}
            row["tokens_per_second"] = None if row["tokens"] is None else row["tokens"] / seconds
            update += 1
            if files is not None:
                samples = [_sample(r, *record) for r, record in zip(rows[:kept], records[:kept], strict=True)]
                if credit:
                    _add_credit(samples, transitions[:kept], actor, credit[:kept])
                files.write(rows, row, samples)
                content = {
                    "update": update,
                    "steps": steps,
                    "best": best,
                    "generator": generator.get_state(),
                    "environments": environments.get_state(),
                    "actor": actor.get_state(),
                    "method": method.get_state(),
                    "lengths": files.lengths(),
                }
                write_checkpoint(run.state, fingerprint, content)
            yield {**row, "best_reward": best["reward"] if best else settings.environment.failure_reward}
    finally:
        if files is not None:
            files.close()
    if writes:
        (run.folder / "best_code.py").write_text(best["program"] if best else "", encoding="utf-8")


def set_rates(optimisers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Sets all learning rates to a share of what they were at first; the first ones are kept in the state."""
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["lr"] = share * group.setdefault("initial_lr", group["lr"])


def _step_row(number: int, update: int, step: Step, action: Action) -> dict[str, Any]:
    return {
        "step": number,
        "update": update,
        "environment": step.environment,
        "episode": step.episode,
        "episode_step": step.episode_step,
        "reward": float(step.reward),
        "done": int(step.terminated),
        "status": step.status,
        "error_class": step.error_class,
        "code_hash": step.code_hash,
        "tokens": action.token_count,
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rewards, tokens = [row["reward"] for row in rows], [row["tokens"] for row in rows]
    return {
        "mean_reward": sum(rewards) / len(rewards),
        "max_reward": max(rewards),
        "share_runs": sum(row["status"] == "ok" for row in rows) / len(rows),
        "tokens": None if None in tokens else sum(tokens),
    }


def _sample(row: dict[str, Any], step: Step, action: Action) -> dict[str, Any]:
    return {
        "update": row["update"],
        "step": row["step"],
        "reward": float(f"{row['reward']:.6g}"),
        "status": row["status"],
        "error": step.error,
        "code": action.body,
    }


def _add_credit(
    samples: list[dict[str, Any]], transitions: list[Transition], actor: Actor, credit: list[list[float]]
) -> None:
    """Puts the text of each token and what the method held of it beside the code, for the pictures of credit."""
    for sample, t, values in zip(samples, transitions, credit, strict=True):
        sample["pieces"] = actor.pieces(t.action)
        sample["credit"] = [float(f"{c:.3g}") for c in values]


def _better(
    best: dict[str, Any] | None, records: list[tuple[Step, Action]], as_file: Callable[[str], str]
) -> dict[str, Any] | None:
    """The best action so far; the earliest among equals."""
    for step, action in records:
        if step.status == "ok" and (best is None or step.reward > best["reward"]):
            best = {"reward": step.reward, "program": as_file(action.body)}
    return best
