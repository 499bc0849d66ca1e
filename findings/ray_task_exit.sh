#!/usr/bin/env bash
# Question: what does Ray make of a task that calls `sys.exit`?
# One would think: the task has ended; with status 0 it returns None, with another one the caller gets an error.
# What happens: whatever the status, 0 as well, Ray takes it for a crash of its worker. The task is run again, three
# times by default, also with retry_exceptions=False, and then the caller gets a WorkerCrashedError in which neither the
# status nor the message stands. In a KeyboardInterrupt in the task it sees a cancelled task, which is not run again.
# Versions: ray 2.60.0.
# Why it matters: a command-line program that is called in a task (`main()` of anything that uses argparse) ends with
# sys.exit. What it did is done four times, and the one line that says what was wrong is lost.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet ray==2.60.0
cat > check.py <<'PY'
"""Run tasks that end in several ways, and count how often each was run."""
import os
import sys
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
LOG = Path("log").resolve()


@ray.remote(retry_exceptions=False)
def task(name, how):
    with LOG.open("a") as file:
        file.write(f"{name}\n")
    how()


def stop():
    raise KeyboardInterrupt


def fail():
    raise ValueError("wrong")


CASES = {  # name, what the task does, how often it is run, the type of the error
    "sys.exit(0)": (lambda: sys.exit(0), 4, "WorkerCrashedError"),
    "sys.exit('wrong')": (lambda: sys.exit("wrong"), 4, "WorkerCrashedError"),
    "KeyboardInterrupt": (stop, 1, "RayTaskError(TaskCancelledError)"),
    "ValueError": (fail, 1, "RayTaskError(ValueError)"),
    "return": (lambda: None, 1, None),
}
wrong = []
for name, (how, times, kind) in CASES.items():
    error = None
    try:
        ray.get(task.remote(name, how))
    except Exception as raised:
        error = raised
    seen = (LOG.read_text().splitlines().count(name), error and type(error).__name__)
    print(f"{name}: run {seen[0]} times, the caller gets {seen[1]}; 'wrong' in its message: {'wrong' in str(error)}")
    if seen != (times, kind) or ("wrong" in str(error)) != (name == "ValueError"):
        wrong.append(name)
if wrong:
    sys.exit("CHANGED: " + ", ".join(wrong))
PY
env/bin/pip list 2>/dev/null | grep -E '^ray '
env/bin/python check.py 2> errors | { grep -v '(raylet)' || true; } || { tail -n 5 errors; exit 1; }
