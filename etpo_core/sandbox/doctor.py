"""The doctor: tries every wall of this machine, runs a few programs behind them, and says what could be improved.

Nothing in its report is concluded from a version number. A wall holds if it was seen to refuse what it must
(`walls.probe`), the self-test runs honest, hostile and endless programs and compares their outcomes with the expected
ones, and the cost is the median of executions that were just timed.
"""

import platform
import statistics
from dataclasses import asdict
from typing import Any

import numpy as np

from etpo_core.sandbox.outcome import Limits, Status, Tier
from etpo_core.sandbox.pool import SandboxPool
from etpo_core.sandbox.walls import names_of, probe

_EXECUTIONS = 20
_CONSTANT = """
import numpy as np
class Model:
    classes_ = np.array([0, 1])
    def predict_proba(self, x):
        return np.tile([0.5, 0.5], (len(x), 1))
def build_model(x_train, y_train):
    {}
    return Model()
"""
_HONEST = """
from sklearn.naive_bayes import GaussianNB
def build_model(x_train, y_train):
    return GaussianNB().fit(x_train, y_train)
"""
_PATCHED = "import sklearn.metrics as m; m.roc_auc_score = lambda *a: 1.0"
_SELF_TEST = (  # a name, a program, the status it must end with, the score it must have (None for any)
    ("an honest model", _HONEST, Status.OK, None),
    ("reads a file", _CONSTANT.format("open('/etc/passwd').read()"), Status.SNIPPET_ERROR, None),
    ("opens a socket", _CONSTANT.format("import socket; socket.socket()"), Status.SNIPPET_ERROR, None),
    ("starts a process", _CONSTANT.format("import os; os.fork()"), Status.SNIPPET_ERROR, None),
    ("loops forever", _CONSTANT.format("while True: pass"), Status.TIMEOUT, None),
    ("takes all memory", _CONSTANT.format("np.ones(10**11)"), Status.OUT_OF_MEMORY, None),
    ("patches the metric", _CONSTANT.format(_PATCHED), Status.OK, 0.5),
    ("the honest model again", _HONEST + "#", Status.OK, None),
)


def examine() -> dict[str, Any]:
    """Returns the report as plain values; `healthy` is whether programs can be confined and the self-test passed."""
    found = probe()
    tests, cost = ([], None) if found.tier is Tier.D else _try_out()
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}",
        "layers": [asdict(layer) for layer in found.layers],
        "tier": str(found.tier),
        "meaning": ", ".join(names_of(found.flags)) or "no wall holds; programs are refused without allow_unsafe",
        "self_test": tests,
        "cost": cost,
        "healthy": bool(tests) and all(test["holds"] for test in tests),
    }


def _try_out() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Runs the self-test, and measures a program that does nothing: medians by the clock, and of its process's CPU."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = rng.normal(size=(200, 4)) + y[:, None]
    with SandboxPool(1, Limits(cpu_s=1, wall_s=20)) as pool:
        outcomes = [pool.score(program, x, y, [0]) for _, program, _, _ in _SELF_TEST]
        idle = [pool.score(_CONSTANT.format(f"# {number}"), x, y, [0]) for number in range(_EXECUTIONS)]
    tests: list[dict[str, Any]] = []
    for (name, _, status, score), outcome in zip(_SELF_TEST, outcomes, strict=True):
        holds = outcome.status is status and score in (None, outcome.score)
        expected, got = _brief(status, score), _brief(outcome.status, outcome.score)
        tests.append({"name": name, "expected": expected, "got": got, "holds": holds})
    tests[-1]["holds"] &= outcomes[0].score == outcomes[-1].score
    wall_ms = 1000 * statistics.median(outcome.wall_s for outcome in idle)
    cpu_ms = 1000 * statistics.median(outcome.cpu_s for outcome in idle)
    return tests, {"executions": _EXECUTIONS, "wall_ms": round(wall_ms, 1), "child_cpu_ms": round(cpu_ms, 1)}


def _brief(status: Status, score: float | None) -> str:
    return f"{status}{'' if score is None else f' {score}'}"


def as_text(report: dict[str, Any]) -> str:
    """Formats the report for a person."""
    lines = [report["system"], ""]
    for layer in report["layers"]:
        lines.append(f"[{'holds' if layer['holds'] else '  -  '}] {layer['name']}: {layer['detail']}")
        if layer["mend"]:
            lines.append(f"        to mend: {layer['mend']}")
    lines += ["", f"tier {report['tier']}: {report['meaning']}"]
    if report["self_test"]:
        lines += ["", "self-test"]
    for test in report["self_test"]:
        wrong = "" if test["holds"] else f"  EXPECTED {test['expected']}"
        lines.append(f"  {test['name']:24} {test['got']}{wrong}")
    if cost := report["cost"]:
        lines += ["", f"{cost['wall_ms']} ms an execution of a program that does nothing"]
        lines[-1] += f" ({cost['child_cpu_ms']} ms CPU of its process; median of {cost['executions']})"
    return "\n".join(lines)
