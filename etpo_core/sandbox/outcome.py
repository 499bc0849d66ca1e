"""The plain types in which the executor is asked and answers: limits, tiers, statuses and outcomes."""

import math
from dataclasses import dataclass
from enum import StrEnum

from etpo_core.errors import UserError
from etpo_core.sandbox.text import MAX_CHARACTERS


class Status(StrEnum):
    """How the execution of a program ended."""

    OK = "ok"
    SNIPPET_ERROR = "snippet_error"  # the program raised an error, or build_model broke its contract
    NO_RESULT = "no_result"  # its process ended without an answer
    BAD_OUTPUT = "bad_output"  # it answered, but not with usable probabilities
    LABEL_DEPENDENT = "label_dependent"  # it failed, and its error says something about the labels of the training rows
    TIMEOUT = "timeout"  # it used up its CPU time or its time by the clock
    OUT_OF_MEMORY = "out_of_memory"
    CRASH = "crash"  # its process was ended by a signal
    POLICY_VIOLATION = "policy_violation"  # the kernel ended its process for a forbidden kind of system call
    INFRASTRUCTURE_FAULT = "infrastructure_fault"  # the executor failed, which says nothing about the program


class Tier(StrEnum):
    """How well a program is confined. Each tier has everything that the tiers below it have."""

    A = "A"  # also namespaces: no process, network or file of the host exists for the program
    B = "B"  # also Landlock: the kernel refuses files, TCP and signals to other processes a second time
    C = "C"  # a system-call filter that lets no file be opened
    D = "D"  # a separate process with resource limits: this is no security


@dataclass(frozen=True)
class Limits:
    """Limits of one fit and prediction, that is, of one child process.

    Attributes:
        cpu_s: CPU seconds. This limit should decide, because it does not depend on what else the machine does.
        wall_s: seconds by the clock, for programs that sleep. Leave it well above cpu_s.
        memory_mb: MiB on top of what the loaded libraries occupy.
        source_bytes: length of the longest program that is accepted, in bytes of UTF-8.
    """

    cpu_s: float = 10.0
    wall_s: float = 35.0
    memory_mb: int = 1024
    source_bytes: int = 65536

    def __post_init__(self) -> None:
        """Raises UserError for a limit that is not a positive number."""
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise UserError(f"executor limit {name} is {value!r}; give a number above 0")


@dataclass(frozen=True)
class Outcome:
    """The score of one program, or how it failed.

    Attributes:
        status: how the execution ended. `score` is a number if the status is OK, and None otherwise.
        score: mean ROC AUC over the splits, rounded to 6 decimals.
        scores: ROC AUC of each split, in the order of the split seeds; empty on failure.
        error_type: name of the exception's type, for example "ValueError"; None if the status is OK.
        message: one line of at most 500 characters; None if the status is OK.
        line: the line of the program (from 1) where it failed; None if it is not known.
        cpu_s: CPU seconds of all its processes together.
        wall_s: seconds by the clock, all splits together.
        tier: how well it was confined.
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
        """The failure in one line of at most 500 characters, or an empty string if the status is OK.

        For example "NameError: name 'X' is not defined (line 3)".
        """
        if self.status is Status.OK:
            return ""
        where = f" (line {self.line})" if self.line is not None else ""
        what = f"{self.error_type}: {self.message}" if self.message else f"{self.error_type}"
        room = MAX_CHARACTERS - len(where)
        return (what if len(what) <= room else what[: room - 3] + "...") + where
