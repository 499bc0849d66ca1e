"""Programs, limits and pools that the executor's tests share."""

import os
import warnings

import pytest

from etpo_core.errors import UserError
from etpo_core.sandbox import Limits, SandboxPool, Tier
from etpo_core.sandbox.filter import Unavailable, compile_filter

LIMITS = Limits(cpu_s=1.0, wall_s=30.0, memory_mb=512)
INNOCENT = """
from sklearn.naive_bayes import GaussianNB
def build_model(x_train, y_train):
    return GaussianNB().fit(x_train, y_train)
"""
# Tiers with a wall at which the corpus runs. Tier B has a process of its own beside the others (test_elsewhere.py).
TIERS = tuple(os.environ.get("CORPUS", "AC"))
REQUIRED = os.environ.get("ETPO_SANDBOX_REQUIRE", "")  # the best tier that this machine must give, e.g. "A"
try:
    compile_filter()
    WALL = True
except Unavailable:
    WALL = False
needs_wall = pytest.mark.skipif(not WALL, reason="no system-call filter on this machine")


def body(text: str) -> str:
    """A program whose build_model first runs `text` and then behaves."""
    lines = "".join(f"    {line}\n" for line in text.strip("\n").splitlines())
    return (
        "import numpy as np\nfrom sklearn.naive_bayes import GaussianNB\n"
        f"def build_model(x_train, y_train):\n{lines}    return GaussianNB().fit(x_train, y_train)\n"
    )


def open_tier(tier: str) -> SandboxPool:
    """A pool of one worker that holds programs in by exactly this tier.

    A tier that the machine cannot give skips the test, unless ETPO_SANDBOX_REQUIRE says that it must: a wall that
    silently went missing would otherwise pass for ever.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return SandboxPool(1, LIMITS, tier=Tier(tier), allow_unsafe=tier == "D")
    except UserError as error:
        if REQUIRED and REQUIRED <= tier:
            pytest.fail(f"tier {tier} is required here, and missing: {error}")
        pytest.skip(str(error))
