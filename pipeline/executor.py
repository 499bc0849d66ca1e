"""Opens the executor as `params.yaml` describes it, for the stages that run programs."""

from etpo_core.sandbox import Limits, SandboxPool


def open_executor(sandbox) -> SandboxPool:
    """The pool of workers that the section `sandbox`, a mapping or `Settings`, asks for.

    Raises:
        UserError: this machine cannot confine programs, or a module of `preload` is not there.
    """
    limits = Limits(cpu_s=sandbox["cpu_seconds"], wall_s=sandbox["wall_seconds"], memory_mb=sandbox["memory_mb"])
    return SandboxPool(sandbox["workers"], limits, sandbox["allow_unsafe"], preload=sandbox["preload"])
