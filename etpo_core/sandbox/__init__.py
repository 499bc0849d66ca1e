"""The executor: runs programs that a language model wrote and scores the classifiers that they fit.

Each program runs in a process of its own that can open no file and no socket, can start no process, and never holds the
labels of the rows on which it is scored. The process answers with class probabilities; the score is computed here, in
the host. `docs/executor.md` explains how this works and what is not guaranteed. The package takes arrays and source
code and returns outcomes. What it exports here is all that the rest of the repository needs of it.
"""

from etpo_core.sandbox.outcome import Limits, Outcome, Status, Tier
from etpo_core.sandbox.pool import SandboxPool
from etpo_core.sandbox.text import clean_message

__all__ = ["Limits", "Outcome", "SandboxPool", "Status", "Tier", "clean_message"]
