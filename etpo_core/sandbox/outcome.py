"""What is asked of the executor and what it answers: limits, statuses, outcomes."""

from dataclasses import dataclass
from enum import StrEnum

from etpo_core.errors import UserError
from etpo_core.sandbox.text import MAX_CHARACTERS


class Status(StrEnum):
    """How the execution of a snippet ended."""

    OK = "ok"
    SNIPPET_ERROR = "snippet_error"  # it raised, or broke the contract of build_model
    NO_RESULT = "no_result"  # its process ended without an answer
    BAD_OUTPUT = "bad_output"  # it answered, but not with usable probabilities
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASH = "crash"  # its process died of a signal
    POLICY_VIOLATION = "policy_violation"  # the kernel ended it for a forbidden kind of call
    INFRASTRUCTURE_FAULT = "infrastructure_fault"  # ours, not the snippet's: nothing was learnt about it


class Tier(StrEnum):
    """What holds a snippet in; each tier has all that the later ones have."""

    A = "A"  # and namespaces: no process, network or file of the host is there at all
    B = "B"  # and Landlock: the kernel refuses files, TCP and outside processes a second time
    C = "C"  # system-call filter without file opens, resource limits, separate process
    D = "D"  # resource limits and separate process: no security


@dataclass(frozen=True)
class Limits:
    """Limits of one fit-and-predict, i.e. of one child process.

    Attributes:
        cpu_s: CPU seconds, the limit that decides; it does not depend on what else the machine does.
        wall_s: seconds by the clock, there for code that sleeps: leave it well above cpu_s.
        memory_mb: MiB on top of what the loaded libraries occupy.
        source_bytes: longest program accepted, in bytes of UTF-8.
    """

    cpu_s: float = 10.0
    wall_s: float = 35.0
    memory_mb: int = 1024
    source_bytes: int = 65536

    def __post_init__(self) -> None:
        """Raises UserError for a limit that is not positive."""
        for name in ("cpu_s", "wall_s", "memory_mb", "source_bytes"):
            value = getattr(self, name)
            if not value > 0:
                raise UserError(f"executor limit {name} is {value!r}; give a number above 0")


@dataclass(frozen=True)
class Outcome:
    """What one program scored, or how it failed.

    Attributes:
        status: how it ended; `score` is a number exactly when it is OK.
        score: mean ROC AUC over the splits, rounded to 6 decimals; None on failure.
        scores: ROC AUC of each split in the order of the split seeds; empty on failure.
        error_type: e.g. "ValueError"; None when OK.
        message: one line of at most 500 characters; None when OK.
        line: line of the program (from 1) where it failed, where there is one.
        cpu_s: CPU seconds of all its processes together.
        wall_s: seconds by the clock, all splits together.
        tier: what held it in.
    """

    status: Status
    score: float | None = None
    scores: tuple[float, ...] = ()
    error_type: str | None = None
    message: str | None = None
    line: int | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    tier: Tier = Tier.D

    @property
    def error_text(self) -> str:
        """The failure in one line of at most 500 characters, e.g. "NameError: name 'X' is not defined (line 3)".

        Empty when OK.
        """
        if self.status is Status.OK:
            return ""
        where = f" (line {self.line})" if self.line is not None else ""
        what = f"{self.error_type}: {self.message}" if self.message else f"{self.error_type}"
        room = MAX_CHARACTERS - len(where)
        return (what if len(what) <= room else what[: room - 3] + "...") + where
