"""The executor of untrusted code: runs programs written by a language model and scores what they fit.

A program runs in a process of its own that can open no file and no socket, start no process, and knows no label of
the rows it is scored on; it answers with numbers, and the score is computed here. `docs/executor.md` says how, and
what is not guaranteed. The package stands alone: arrays and source code in, outcomes out.
"""

from etpo_core.sandbox.outcome import Limits, Outcome, Status, Tier
from etpo_core.sandbox.pool import SandboxPool
from etpo_core.sandbox.text import clean_message

__all__ = ["Limits", "Outcome", "SandboxPool", "Status", "Tier", "clean_message"]
