#!/usr/bin/env bash
# Question: what does the holder of a SoftFileLease notice when it was stopped for longer than the lease lasts and
# another process has taken the lease?
# One would think: is_locked turns False, or leaving the `with` block raises an error.
# What happens: in both processes is_locked is True at the same time, and the first leaves its block without an
# error. The loss stands only in the attribute `compromise` (or is told to an on_compromise function).
# Versions: filelock 4.2.11.
# Why it matters: a laptop that slept or a job that was suspended comes back, asks is_locked, and writes to what
# now belongs to another; whoever uses a lease must look at `compromise` before each write.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet filelock==4.2.11
cat > holder.py <<'PY'
"""Hold the lease; at a line from the first process, say what this one believes, and leave the block."""
import time

from filelock import SoftFileLease

lease = SoftFileLease("job.lock", lease_duration=1)
with lease:
    print("held", flush=True)
    input()
    deadline = time.monotonic() + 5
    while lease.compromise is None and time.monotonic() < deadline:
        time.sleep(0.05)
    print(lease.is_locked, getattr(lease.compromise, "reason", None), flush=True)
print("left without an error", flush=True)
PY
cat > check.py <<'PY'
"""Stop a holder as a job control would, take its lease, let it go on, and compare what both believe."""
import signal
import subprocess
import sys

from filelock import SoftFileLease

holder = subprocess.Popen(
    [sys.executable, "holder.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
holder.stdout.readline()
holder.send_signal(signal.SIGSTOP)
lease = SoftFileLease("job.lock", lease_duration=1, timeout=30)
with lease:
    holder.send_signal(signal.SIGCONT)
    seen = holder.communicate("go\n", timeout=30)[0].splitlines()
    print(f"second process: is_locked {lease.is_locked}, compromise {lease.compromise}")
    second = lease.is_locked and lease.compromise is None
print(f"first process, stopped for longer than its lease: is_locked and compromise: {seen[0]}; then: {seen[1:]}")
if not second or seen != ["True owner-changed", "left without an error"] or holder.returncode != 0:
    sys.exit(f"CHANGED: the first process says {seen} and ends with {holder.returncode}")
PY
env/bin/pip list 2>/dev/null | grep -E '^filelock '
env/bin/python check.py
