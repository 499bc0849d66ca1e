"""Programs and limits that the executor's tests share."""

import pytest

from etpo_core.sandbox import Limits
from etpo_core.sandbox.filter import Unavailable, compile_filter

LIMITS = Limits(cpu_s=1.0, wall_s=30.0, memory_mb=512)
INNOCENT = """
from sklearn.naive_bayes import GaussianNB
def build_model(x_train, y_train):
    return GaussianNB().fit(x_train, y_train)
"""
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
