#!/usr/bin/env bash
# Question: do Ray's tasks compete for the processor like the program that hands them out?
# One would think: yes, they are ordinary processes of the same user.
# What happens: Ray gives its workers niceness 15, and what they start inherits it. Beside any program of usual priority
# that wants the same core they get a few percent of it. Only the environment of the node's start decides
# (RAY_worker_niceness=0); without privileges a worker cannot take it back.
# Versions: ray 2.60.0.
# Why it matters: on a machine with anything else to do the same work on Ray takes many times longer than without it,
# and a comparison of both measures the niceness.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet ray==2.60.0
cat > check.py <<'PY'
"""Compare the niceness of this process, of a task and of what the task starts, and their shares of one core."""
import os
import subprocess
import sys
import time

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")


def work(begin, core):
    """CPU seconds that this process gets of five on one core."""
    os.sched_setaffinity(0, {core})
    time.sleep(max(0, begin - time.time()))
    used = time.process_time()
    while time.time() < begin + 5:
        pass
    return time.process_time() - used


@ray.remote
def task(begin, core):
    child = subprocess.run(["nice"], capture_output=True, text=True).stdout
    return os.nice(0), int(child), work(begin, core)


core = min(os.sched_getaffinity(0))
ray.get(task.remote(0, core))  # the worker is there
begin = time.time() + 2
answer = task.remote(begin, core)
own = work(begin, core)
task_niceness, child_niceness, got = ray.get(answer)
print(f"niceness: here {os.nice(0)}, in a task {task_niceness}, in what it starts {child_niceness}")
print(f"of five seconds of one core: here {own:.1f}, in the task {got:.1f}")
wanted = 15 if "RAY_worker_niceness" not in os.environ else int(os.environ["RAY_worker_niceness"])
if (task_niceness, child_niceness) != (wanted, wanted) or (wanted == 15 and got > own / 4):
    sys.exit("CHANGED")
PY
env/bin/pip list 2>/dev/null | grep -E '^ray '
for niceness in '' 0; do
    echo "RAY_worker_niceness=$niceness"
    if [ -n "$niceness" ]; then export RAY_worker_niceness=$niceness; fi
    env/bin/python check.py 2> errors || { tail -n 5 errors; exit 1; }
done
