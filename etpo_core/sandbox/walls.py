"""Which walls hold on this machine, and what would help where one does not.

There are three: the system-call filter, which alone keeps programs from files, sockets and processes; Landlock, with
which another part of the kernel refuses much of the same again; and the namespaces of bubblewrap, in which there is
nothing to reach. Kernels, containers and distributions switch them off in many ways, and some only pretend to have
them. So nothing is concluded from versions or settings: a worker is started, does what each wall must refuse, and
reports whether it was refused.
"""

import errno
import os
import platform
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from etpo_core.errors import UserError
from etpo_core.sandbox import bubblewrap
from etpo_core.sandbox.filter import Unavailable, compile_filter
from etpo_core.sandbox.inside import wire
from etpo_core.sandbox.outcome import Tier
from etpo_core.sandbox.worker import Walls, Worker, ZygoteLost

_FILTER, _LANDLOCK, _BUBBLEWRAP = "system-call filter", "Landlock", "bubblewrap"
_FLAGS = {_FILTER: wire.SECCOMP, _LANDLOCK: wire.LANDLOCK, _BUBBLEWRAP: wire.BUBBLEWRAP}
_NEEDS = {  # the walls of each tier, the best tier first
    Tier.A: wire.SECCOMP | wire.LANDLOCK | wire.BUBBLEWRAP,
    Tier.B: wire.SECCOMP | wire.LANDLOCK,
    Tier.C: wire.SECCOMP,
    Tier.D: 0,
}
_NAMESPACE_SWITCHES = {  # of the kernel: the value that forbids namespaces, and the cure
    "kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give /usr/bin/bwrap an AppArmor profile with "
        "`userns,`",
    ),
    "kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
    "user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=15000"),
}


@dataclass(frozen=True)
class Layer:
    """One wall, as it was found.

    Attributes:
        name: its name.
        holds: whether it refused what it must refuse.
        detail: what was found, in a few words.
        mend: what would make it hold; empty if it holds.
    """

    name: str
    holds: bool
    detail: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" + (f"; {self.mend}" if self.mend else "")


@dataclass(frozen=True)
class Report:
    """All walls of this machine.

    Attributes:
        layers: the walls, from the first to the third.
        filter_code: the compiled system-call filter; empty if there is none.
    """

    layers: tuple[Layer, ...]
    filter_code: bytes

    @property
    def flags(self) -> int:
        """The walls that hold, as a sum of flags of `wire`."""
        return sum(_FLAGS[layer.name] for layer in self.layers if layer.holds)

    @property
    def tier(self) -> Tier:
        """The best tier that this machine can give."""
        return tier_of(self.flags)

    def walls(self, tier: Tier | None, allow_unsafe: bool, preload: tuple[str, ...]) -> Walls:
        """Returns what the workers of a tier put up, or with None as the tier, all walls that hold.

        Raises:
            UserError: the machine cannot give that tier, or can give only tier D and `allow_unsafe` is False.
        """
        flags = self.flags if tier is None else _NEEDS[tier]
        missing = [layer for layer in self.layers if flags & ~self.flags & _FLAGS[layer.name]]
        if missing:
            raise UserError(f"tier {tier} cannot be had here: {missing[0]}")
        if not flags & wire.SECCOMP and not allow_unsafe:
            why = "tier D was asked for" if tier is Tier.D else self.layers[0]
            raise UserError(f"programs cannot be confined: {why}; or pass allow_unsafe=True for code of your own")
        return Walls(flags, self.filter_code if flags & wire.SECCOMP else b"", preload)


def tier_of(flags: int) -> Tier:
    """The best tier that the walls in a sum of flags of `wire` make up."""
    return next(tier for tier, needs in _NEEDS.items() if flags & needs == needs)


def names_of(flags: int) -> tuple[str, ...]:
    """The names of the walls in a sum of flags of `wire`."""
    return tuple(name for name, flag in _FLAGS.items() if flags & flag)


@cache
def probe() -> Report:
    """Tries all walls in workers that load no library; takes a fifth of a second, once for each process."""
    filter_code, reason = b"", ""
    try:
        filter_code = compile_filter()
    except Unavailable as error:
        reason = str(error)
    if sys.platform != "linux":
        first = _filter_layer(b"", reason, 0)
        others = [Layer(name, False, "it exists on Linux only", first.mend) for name in (_LANDLOCK, _BUBBLEWRAP)]
        return Report((first, *others), b"")
    flags, abi = _try(Walls(wire.LANDLOCK | (wire.SECCOMP if filter_code else 0), filter_code))
    layers = _filter_layer(filter_code, reason, flags), _landlock_layer(flags, abi), _bubblewrap_layer()
    return Report(layers, filter_code)


def _try(walls: Walls) -> tuple[int, int]:
    with closing(Worker(walls)) as worker:
        return worker.wait_tried()


def _filter_layer(filter_code: bytes, reason: str, flags: int) -> Layer:
    if flags & wire.SECCOMP:
        return Layer(_FILTER, True, "refuses files, sockets, processes and signals")
    if filter_code:
        return Layer(_FILTER, False, "the kernel does not enforce it here", "use a newer kernel or container runtime")
    detail, _, mend = reason.partition("; ")
    return Layer(_FILTER, False, detail, mend)


def _landlock_layer(flags: int, abi: int) -> Layer:
    if flags & wire.LANDLOCK:
        ports = ", TCP and UDP" if abi >= 10 else ", TCP" if abi >= 4 else ""
        scopes = " and outside processes" if abi >= 6 else ""
        return Layer(_LANDLOCK, True, f"refuses files{ports}{scopes} (ABI {abi})")
    if abi == -errno.EOPNOTSUPP:
        return Layer(_LANDLOCK, False, "the kernel has it, but it is switched off", "boot with lsm=landlock,...")
    if abi < 0:
        detail = f"the kernel has none, or the container hides it ({os.strerror(-abi)}; Linux {platform.release()})"
        return Layer(_LANDLOCK, False, detail, "use Linux 5.13 or newer; in a container, a newer container runtime")
    return Layer(_LANDLOCK, False, f"ABI {abi} is there and does not refuse", "use a newer kernel")


def _bubblewrap_layer() -> Layer:
    if bubblewrap.executable() is None:
        return Layer(_BUBBLEWRAP, False, "not installed", "install it, e.g. `apt install bubblewrap`")
    try:
        flags, _ = _try(Walls(wire.BUBBLEWRAP))
    except ZygoteLost as error:
        return Layer(_BUBBLEWRAP, False, str(error), _allow_namespaces())
    if flags & wire.BUBBLEWRAP:
        return Layer(_BUBBLEWRAP, True, "no file, network, process or privilege of the host is there")
    detail = "it starts, but something of the host can be reached from inside"
    return Layer(_BUBBLEWRAP, False, detail, "use a newer bubblewrap")


def _allow_namespaces() -> str:
    """What would allow an ordinary user to have namespaces, by the switch of the kernel that forbids them here."""
    for name, (forbidding, cure) in _NAMESPACE_SWITCHES.items():
        with suppress(OSError):
            if Path("/proc/sys", name).read_text().strip() == forbidding:
                return cure
    options = (f"--security-opt {name}=unconfined" for name in ("seccomp", "apparmor", "systempaths"))
    return f"allow user namespaces; in Docker: {' '.join(options)}"
