"""The doctor: tries every wall of this machine, runs a few programs behind them, and says what to mend.

Everything in the report was done and seen, not read off a version number: the walls are those that refused what they
must (`walls.probe`), the self-test runs honest, hostile and endless programs and compares what came of them, and the
cost is the median of executions just made.
"""

import platform
import statistics
import time
from dataclasses import asdict

import numpy as np

from etpo_core.sandbox.outcome import Limits, Outcome, Status, Tier
from etpo_core.sandbox.pool import SandboxPool
from etpo_core.sandbox.walls import probe

_MEANING = {
    Tier.A: "system-call filter, Landlock and namespaces: three walls",
    Tier.B: "system-call filter and Landlock: two walls",
    Tier.C: "system-call filter without file opens: one wall",
    Tier.D: "no wall: programs are refused unless allow_unsafe is set",
}
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
_SELF_TEST = (  # what it does, the program, how it must end, the score it must have
    ("an honest model", _HONEST, Status.OK, None),
    ("reads a file", _CONSTANT.format("open('/etc/passwd').read()"), Status.SNIPPET_ERROR, None),
    ("opens a socket", _CONSTANT.format("import socket; socket.socket()"), Status.SNIPPET_ERROR, None),
    ("starts a process", _CONSTANT.format("import os; os.fork()"), Status.SNIPPET_ERROR, None),
    ("loops for ever", _CONSTANT.format("while True: pass"), Status.TIMEOUT, None),
    ("takes all memory", _CONSTANT.format("np.ones(10**11)"), Status.OUT_OF_MEMORY, None),
    (
        "patches the metric",
        _CONSTANT.format("import sklearn.metrics as m; m.roc_auc_score = lambda *a: 1.0"),
        Status.OK,
        0.5,
    ),
    ("the honest model again", _HONEST + "#", Status.OK, None),
)


def examine() -> dict:
    """The report as plain values; `healthy` says whether programs can be confined and the self-test went well."""
    found = probe()
    report = {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}",
        "layers": [asdict(layer) for layer in found.layers],
        "tier": str(found.tier),
        "meaning": _MEANING[found.tier],
        "self_test": [],
        "cost": None,
        "healthy": False,
    }
    if found.tier is Tier.D:
        return report
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = rng.normal(size=(200, 4)) + y[:, None]
    with SandboxPool(1, Limits(cpu_s=1, wall_s=20)) as pool:
        outcomes = [pool.score(program, x, y, [0]) for _, program, _, _ in _SELF_TEST]
        for (name, _, status, score), outcome in zip(_SELF_TEST, outcomes, strict=True):
            expected = f"{status}{'' if score is None else f' {score}'}"
            holds = outcome.status is status and (score is None or outcome.score == score)
            report["self_test"].append({"name": name, "expected": expected, "got": _brief(outcome), "holds": holds})
        same = outcomes[0].score == outcomes[-1].score
        report["self_test"][-1]["holds"] &= same
        report["cost"] = _cost(pool, x, y)
    report["healthy"] = all(test["holds"] for test in report["self_test"])
    return report


def _brief(outcome: Outcome) -> str:
    return f"{outcome.status}{'' if outcome.score is None else f' {outcome.score}'}"


def _cost(pool: SandboxPool, x: np.ndarray, y: np.ndarray) -> dict:
    """Medians of executions of a program that does nothing: milliseconds by the clock, and of its process's CPU."""
    program = _CONSTANT.format("pass")
    walls, cpus = [], []
    for number in range(_EXECUTIONS):
        started = time.perf_counter()
        outcome = pool.score(f"{program}# {number}", x, y, [0])
        walls.append(time.perf_counter() - started)
        cpus.append(outcome.cpu_s)
    return {
        "executions": _EXECUTIONS,
        "wall_ms": round(statistics.median(walls) * 1000, 1),
        "child_cpu_ms": round(statistics.median(cpus) * 1000, 1),
    }


def as_text(report: dict) -> str:
    """The report for a person."""
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
    if report["cost"]:
        cost = report["cost"]
        lines += [
            "",
            f"{cost['wall_ms']} ms an execution of a program that does nothing "
            f"({cost['child_cpu_ms']} ms CPU of its process; median of {cost['executions']})",
        ]
    return "\n".join(lines)
