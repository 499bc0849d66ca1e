#!/usr/bin/env bash
# Question: how many threads does scipy.io.mmread use when OMP_NUM_THREADS=1 (and the like) are set?
# One would think: one.
# What happens: its reader has a pool of its own with a thread for each core; no environment variable limits it.
# threadpoolctl lists the pool with 0 threads (which means "all cores") and can limit it.
# Versions: scipy 1.17.1, threadpoolctl 3.8.0.
# Why it matters: many workers that each were told to use one thread start cores x workers threads on one machine.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet scipy==1.17.1 threadpoolctl==3.8.0
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
cat > check.py <<'PY'
"""Read a matrix of two million numbers while a second process counts the threads of this one (Linux)."""
import os
import subprocess
import sys

import scipy.io
import threadpoolctl

WATCH = """
import os, select, sys
print("ready", flush=True)
most = 0
while not select.select([0], [], [], 0)[0]:
    most = max(most, len(os.listdir(f"/proc/{sys.argv[1]}/task")))
print(most)
"""


def threads():
    """Return the largest number of threads of this process, beyond the main one, during one reading."""
    watcher = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    watcher.stdout.readline()
    scipy.io.mmread("matrix.mtx")
    return int(watcher.communicate("end")[0]) - 1


with open("matrix.mtx", "w") as file:
    file.write("%%MatrixMarket matrix array real general\n2000000 1\n" + "1.25\n" * 2_000_000)
cores = len(os.sched_getaffinity(0))
if cores < 2:
    sys.exit("this needs two cores")
free = threads()
pools = {pool["internal_api"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
with threadpoolctl.threadpool_limits(1):
    limited = threads()
print(f"{cores} cores, OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}: {free} threads beside the main one")
print(f"threadpoolctl: {pools}; under threadpool_limits(1): {limited} threads beside the main one")
if free < 2:
    sys.exit(f"CHANGED: mmread used {free} threads beside the main one, not one for each core")
if limited != 0 or pools.get("scipy_mmio") != 0:
    sys.exit("CHANGED: threadpoolctl sees or limits the pool in another way")
PY
env/bin/pip list 2>/dev/null | grep -E '^(scipy|threadpoolctl) '
env/bin/python check.py
