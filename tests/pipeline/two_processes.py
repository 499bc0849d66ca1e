"""What two processes that share a run do: `python two_processes.py FOLDER SCALE...`.

They are started as torchrun starts them, by environment variables, but forked, so that everything is imported once. In
each of them the stage `train` runs from its command line. Only the executor is a stub, which scores a program by its
text, and the adapters are moved away from the start, where some gradients are nothing but rounding.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from stages import nothing_is_timed
from stub_executor import StubExecutor

from etpo_core.errors import UserError
from etpo_paper.base import distributed, paths
from etpo_paper.environment import executor as opened
from pipeline import train

TASK = "kidney-stone"


def run(scale, results):
    """Runs the stage in this process, with the method that the scale is for.

    Returns:
        What the agent holds before and after it, each as one vector, and how many programs were executed here.
    """
    agents, before, executor, load = [], [], StubExecutor(), train.Common.agent

    def load_moved(*arguments, **options):
        agents.append(load(*arguments, **options))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in agents[0].networks.model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
        before.append(vector(agents[0].get_state()))
        return agents[0]

    with pytest.MonkeyPatch.context() as patch, nothing_is_timed():
        patch.setattr(train.Common, "agent", load_moved)
        patch.setattr(opened, "SandboxPool", lambda *_, **__: executor)
        patch.setattr(paths, "RESULTS", results)
        start(scale)
    # What a process wrote is what it executes, begun as it was written.
    assert sorted(executor.started) == sorted(executor.seen)
    return before[0], vector(agents[0].get_state()), len(executor.seen)


def start(scale):
    """The stage from its command line."""
    train.main(["--scale", scale, "--method", scale.partition("-")[0], "--task", TASK, "--seed", "0"])


def vector(state):
    """All floating-point tensors of a nested state, as one vector."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone().flatten() if state.is_floating_point() else torch.empty(0)
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return torch.cat([torch.empty(0), *map(vector, parts)])


# What the processes do, one stage after another ----------------------------------------------------------------------


def lose(folder, rank):
    """The second process is killed after the first update."""

    def kill():
        while not list((folder / "lost").rglob("state.pt")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    if rank == 1:
        threading.Thread(target=kill, daemon=True).start()
    run("etpo", folder / "lost")


def fail(folder, rank):
    """The second process makes a mistake."""

    def full(*_, **__):
        raise UserError("the second one's disk is full")

    opened.SandboxPool = full if rank == 1 else lambda *_, **__: StubExecutor()
    with nothing_is_timed():
        start("etpo-failed")


def misshare(folder, rank):
    """Three environments are asked for; both processes find that."""
    start("etpo-odd")


def deal(folder, rank):
    """What is dealt to the processes is put together again in its order."""
    with distributed.joined():
        for length in (0, 1, 2, 7):
            whole = list(range(length))
            assert distributed.merge(list(distributed.share(whole))) == whole


def resume(folder, rank):
    """The run that `lose` broke off goes on."""
    torch.save(run("etpo", folder / "lost"), folder / f"resume{rank}.pt")


def play(folder, rank, scale):
    """A whole run."""
    torch.save(run(scale, folder / "two"), folder / f"{scale}{rank}.pt")


def do(stage, folder, rank, port, name, *more):
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    with (folder / f"{name}{rank}.err").open("w") as errors:
        os.dup2(errors.fileno(), 2)
    stage(folder, rank, *more)


def main(folder, scales):
    """Forks two processes for every stage."""
    stages = [(stage, stage.__name__) for stage in (lose, fail, misshare, deal, resume)]
    for stage, name, *more in [*stages, *((play, scale, scale) for scale in scales)]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        fork = multiprocessing.get_context("fork").Process
        both = [fork(target=do, args=(stage, folder, rank, port, name, *more)) for rank in range(2)]
        for process in both:
            process.start()
        for rank, process in enumerate(both):
            process.join()
            (folder / f"{name}{rank}.status").write_text(str(process.exitcode))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
