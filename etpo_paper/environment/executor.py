"""Opens the executor as the settings describe it, for whatever runs programs."""

from etpo_core.sandbox import Limits, SandboxPool
from etpo_paper.base.settings import Sandbox


def open_executor(sandbox: Sandbox) -> SandboxPool:
    """The pool of workers that the section `sandbox` asks for.

    Raises:
        UserError: this machine cannot confine programs, or a module of `preload` is not installed.
    """
    limits = Limits(cpu_s=sandbox.cpu_seconds, wall_s=sandbox.wall_seconds, memory_mb=sandbox.memory_mb)
    return SandboxPool(sandbox.workers, limits, sandbox.allow_unsafe, preload=sandbox.preload)
