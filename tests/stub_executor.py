"""An executor for tests that are not about executing."""

import hashlib
from contextlib import contextmanager

from etpo_core.sandbox import Outcome, Status


class StubExecutor:
    """Scores a program by its text alone: those with an even hash run. May stand in for `SandboxPool`."""

    tier, layers = "test", ()

    def __init__(self, *arguments, **options):
        self.seen, self.started = [], []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    @contextmanager
    def ahead(self, x, y, split_seeds, seed=0):
        yield self.started.append

    def score_many(self, sources, x, y, split_seeds, seed=0):
        self.seen += sources
        outcomes = []
        for source in sources:
            number = hashlib.sha256(source.encode()).digest()[0]
            if number % 2:
                failed = Status.SNIPPET_ERROR
                outcomes.append(Outcome(failed, error_type="NameError", message="name 'z' is not defined", line=5))
            else:
                outcomes.append(Outcome(Status.OK, score=number / 256, scores=(number / 256,)))
        return outcomes
