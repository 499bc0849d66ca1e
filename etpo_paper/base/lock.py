"""One process at a time makes a thing: a lock beside it, which holds on shared file systems as well.

Two commands on one folder, on one machine or on several, would otherwise both make the same run or model, and a run's
files would hold every row twice. The lock is a file that names its holder (host and process) and whose time of change
the holder renews; it is gone when the work ends, however it ends but for a kill. What a killed process leaves does not
block for good: on the same host the process is looked up, and a lock of another host that nobody renewed for `LEASE`
seconds is taken over. The protocol is `filelock.SoftFileLease`, which needs nothing of the file system but that a file
can be created exclusively.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseCompromise, LeaseSettingsMismatch, SoftFileLease, Timeout

from etpo_core.errors import UserError

LEASE = 120.0  # seconds without a sign of life after which another host may take over; the holder gives one three times
PATIENCE = 10.0  # seconds beyond the lease for which a lock of another host is watched
HELD = 75  # exit status of a command that finds what it needs held by another process; EX_TEMPFAIL of sysexits.h


class HeldError(UserError):
    """Another process is making the thing."""


@contextmanager
def sole_maker(thing: Path, wait: bool = False) -> Iterator[None]:
    """Holds the lock of a folder or file that this process makes.

    Whoever loses it, because the machine stood still for longer than `LEASE` or someone deleted the lock, ends at once
    as if killed, and leaves the files to the new holder.

    Args:
        thing: what is made.
        wait: whether to wait until the other process is done, if there is one.

    Raises:
        HeldError: another process holds it.
        UserError: a folder has the name of the lock.
    """
    lock = lock_of(thing)
    lock.parent.mkdir(parents=True, exist_ok=True)
    if lock.is_dir():
        raise UserError(f"{lock} is a folder where the lock of {thing}, a file, belongs: rename or delete the folder")
    lease = SoftFileLease(lock, lease_duration=LEASE, on_compromise=_end)
    try:
        _acquire(lease, thing, wait)
    except (Timeout, LeaseSettingsMismatch):
        raise HeldError(
            f"{thing} is held by another process ({holder(thing)}); wait for it, or if that process is gone, "
            f"delete {lock}"
        ) from None
    try:
        yield
    finally:
        lease.release()


def lock_of(thing: Path) -> Path:
    """The file that says which process makes the thing now."""
    return thing.with_name(f"{thing.name}.lock")


def holder(thing: Path) -> str:
    """Who holds a thing, for a message: the host and the process."""
    owner = SoftFileLease(lock_of(thing), lease_duration=LEASE).owner
    # In a container the library puts its own mark behind the name of the host.
    return f"host {owner.hostname.split('?')[0]}, process {owner.pid}" if owner else "host and process unknown"


def _acquire(lease: SoftFileLease, thing: Path, wait: bool) -> None:
    try:
        lease.acquire(timeout=0)
    except Timeout:
        if wait:
            print(f"{thing}: waiting for another process ({holder(thing)}) to make it", file=sys.stderr)
            lease.acquire(poll_interval=0.2)
            return
        try:
            silent = time.time() - lock_of(thing).stat().st_mtime
        except FileNotFoundError:
            silent = 0.0  # released since
        if silent <= LEASE:
            raise
        # The clocks of two hosts may differ, so the library goes by what it sees happen here.
        print(f"{thing}: no sign of life from {holder(thing)}; waiting {LEASE:.0f} s for one", file=sys.stderr)
        lease.acquire(timeout=LEASE + PATIENCE, poll_interval=1)


def _end(loss: LeaseCompromise) -> None:
    reason = f"its lock {loss.lock_file} was lost ({loss.reason})"
    print(f"error: the work ends because {reason}; start it again and it goes on", file=sys.stderr, flush=True)
    os._exit(HELD)
