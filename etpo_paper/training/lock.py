"""One process at a time makes a run: a lock beside the run's folder, which holds on shared file systems as well.

Two commands on one results folder, on one machine or on several, would otherwise both write the same rows. The lock is
a file `seed{n}.lock` that names its holder (host and process) and whose time of change the holder renews; it is gone
when the run ends, however it ends but for a kill. What a killed process leaves does not block for good: on the same
host the process is looked up, and a lock of another host that nobody renewed for `LEASE` seconds is taken over. The
protocol is `filelock.SoftFileLease`, which needs nothing of the file system but that a file can be created exclusively.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import LeaseCompromise, LeaseSettingsMismatch, SoftFileLease, Timeout

from etpo_core.errors import UserError
from etpo_paper.training.run import Run

LEASE = 120.0  # seconds without a sign of life after which another host may take over; the holder gives one three times
PATIENCE = 10.0  # seconds beyond the lease for which a lock of another host is watched
HELD = 75  # exit status of a command that finds what it needs held by another process; EX_TEMPFAIL of sysexits.h


class RunHeldError(UserError):
    """Another process is making the run."""


@contextmanager
def sole_maker(run: Run) -> Iterator[None]:
    """Holds the lock of a run.

    Whoever loses it, because the machine stood still for longer than `LEASE` or someone deleted the file, ends at once
    as if killed, and leaves the files to the new holder.

    Raises:
        RunHeldError: another process holds it.
    """
    run.lock.parent.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(run.lock, lease_duration=LEASE, on_compromise=_end)
    try:
        _acquire(lease, run)
    except (Timeout, LeaseSettingsMismatch):
        raise RunHeldError(
            f"{run.folder} is held by another process ({holder(run)}); wait for it, or if that process is gone, "
            f"delete {run.lock}"
        ) from None
    try:
        yield
    finally:
        lease.release()


def holder(run: Run) -> str:
    """Who holds a run, for a message: the host and the process."""
    owner = SoftFileLease(run.lock, lease_duration=LEASE).owner
    # In a container the library puts its own mark behind the name of the host.
    return f"host {owner.hostname.split('?')[0]}, process {owner.pid}" if owner else "host and process unknown"


def _acquire(lease: SoftFileLease, run: Run) -> None:
    try:
        lease.acquire(timeout=0)
    except Timeout:
        try:
            silent = time.time() - run.lock.stat().st_mtime
        except FileNotFoundError:
            silent = 0.0  # released since
        if silent <= LEASE:
            raise
        # The clocks of two hosts may differ, so the library goes by what it sees happen here.
        print(f"{run.folder}: no sign of life from {holder(run)}; waiting {LEASE:.0f} s for one", file=sys.stderr)
        lease.acquire(timeout=LEASE + PATIENCE, poll_interval=1)


def _end(loss: LeaseCompromise) -> None:
    reason = f"its lock {loss.lock_file} was lost ({loss.reason})"
    print(f"error: the run ends because {reason}; start it again and it goes on", file=sys.stderr, flush=True)
    os._exit(HELD)
