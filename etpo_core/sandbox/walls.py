"""Which walls hold on this machine, found by trying them, and what to do about those that do not.

There are three layers: the system-call filter, which alone keeps programs from files, sockets and processes;
Landlock, a second refusal by another part of the kernel; and bubblewrap's namespaces, in which there is nothing to
reach. Kernels, containers and distributions switch them off in many ways, and some pretend. So nothing is concluded
from versions or settings: a worker is started, does what the layer must refuse, and reports.
"""

import errno
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from etpo_core.errors import UserError
from etpo_core.sandbox import bubblewrap
from etpo_core.sandbox.filter import Unavailable, compile_filter
from etpo_core.sandbox.inside import wire
from etpo_core.sandbox.outcome import Tier
from etpo_core.sandbox.worker import Walls, Worker, ZygoteLost

_FLAGS = {"system-call filter": wire.SECCOMP, "Landlock": wire.LANDLOCK, "bubblewrap": wire.BUBBLEWRAP}
_NEEDS = {  # the layers of a tier
    Tier.A: wire.SECCOMP | wire.LANDLOCK | wire.BUBBLEWRAP,
    Tier.B: wire.SECCOMP | wire.LANDLOCK,
    Tier.C: wire.SECCOMP,
    Tier.D: 0,
}


@dataclass(frozen=True)
class Layer:
    """One wall as it was found.

    Attributes:
        name: of the wall.
        holds: whether it refused what it must.
        detail: what was found, in a few words.
        mend: what would make it hold; empty when it does.
    """

    name: str
    holds: bool
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Report:
    """All walls of this machine.

    Attributes:
        layers: from the first line to the third.
        program: the compiled system-call filter; empty: none.
    """

    layers: tuple[Layer, ...]
    program: bytes

    @property
    def flags(self) -> int:
        """The layers that hold, as a sum of flags of `wire`."""
        return sum(_FLAGS[layer.name] for layer in self.layers if layer.holds)

    @property
    def tier(self) -> Tier:
        """The best tier this machine can give."""
        return tier_of(self.flags)

    def walls(self, tier: Tier | None, allow_unsafe: bool, preload: tuple[str, ...]) -> Walls:
        """What workers of a tier put up; None: every layer that holds.

        Raises:
            UserError: the machine cannot give that tier, or only tier D and `allow_unsafe` is False.
        """
        flags = self.flags if tier is None else _NEEDS[tier]
        missing = [layer for layer in self.layers if flags & ~self.flags & _FLAGS[layer.name]]
        if missing:
            raise UserError(f"tier {tier} cannot be had here: {_sentence(missing[0])}")
        if not flags & wire.SECCOMP and not allow_unsafe:
            why = "tier D was asked for" if tier is Tier.D else _sentence(self.layers[0])
            raise UserError(
                f"programs cannot be confined: {why}; or pass allow_unsafe=True for code that you wrote yourself"
            )
        return Walls(
            program=self.program if flags & wire.SECCOMP else b"",
            landlock=bool(flags & wire.LANDLOCK),
            bubblewrap=bool(flags & wire.BUBBLEWRAP),
            preload=preload,
        )


def tier_of(flags: int) -> Tier:
    """The tier that layers, as a sum of flags of `wire`, make up."""
    return next(tier for tier, needs in _NEEDS.items() if flags & needs == needs)


def names_of(flags: int) -> tuple[str, ...]:
    """The layers' names."""
    return tuple(name for name, flag in _FLAGS.items() if flags & flag)


@cache
def probe() -> Report:
    """Tries all walls in a worker that loads no library; takes a fifth of a second, once a process."""
    program, reason = b"", ""
    try:
        program = compile_filter()
    except Unavailable as error:
        reason = str(error)
    if sys.platform != "linux":
        return Report(
            (
                Layer("system-call filter", False, reason, "use a Linux machine, virtual machine or container"),
                Layer("Landlock", False, "Linux only", "the same"),
                Layer("bubblewrap", False, "Linux only", "the same"),
            ),
            b"",
        )
    bare, abi = _try(Walls(program, landlock=True))
    namespaces = _try_bubblewrap(program)
    return Report((_filter_layer(program, reason, bare), _landlock_layer(bare, abi), namespaces), program)


def _try(walls: Walls) -> tuple[int, int]:
    worker = Worker(walls)
    try:
        return worker.wait_tried()
    finally:
        worker.close()


def _filter_layer(program: bytes, reason: str, flags: int) -> Layer:
    name = "system-call filter"
    if flags & wire.SECCOMP:
        return Layer(name, True, "refuses files, sockets, processes and signals")
    if program:
        return Layer(name, False, "the kernel does not enforce it here", "use a newer kernel or container runtime")
    what, _, mend = reason.partition("; ")
    return Layer(name, False, what, mend)


def _landlock_layer(flags: int, abi: int) -> Layer:
    if flags & wire.LANDLOCK:
        tcp = "files, TCP" if abi >= 4 else "files"
        scopes = " and outside processes" if abi >= 6 else ""
        return Layer("Landlock", True, f"refuses {tcp}{scopes} (ABI {abi})")
    if abi == -errno.EOPNOTSUPP:
        return Layer("Landlock", False, "the kernel has it, switched off", "boot with lsm=landlock,...")
    if abi < 0:
        what = f"the kernel has none, or the container hides it ({os.strerror(-abi)}; Linux {platform.release()})"
        return Layer("Landlock", False, what, "use Linux 5.13 or newer; in a container, a newer container runtime")
    return Layer("Landlock", False, f"ABI {abi} is there and does not refuse", "use a newer kernel")


def _try_bubblewrap(program: bytes) -> Layer:
    name = "bubblewrap"
    if bubblewrap.executable() is None:
        return Layer(name, False, "not installed", _install("bubblewrap"))
    try:
        flags, _ = _try(Walls(program, bubblewrap=True))
    except ZygoteLost as error:
        said = str(error).rpartition("did not start: ")[2].removeprefix("bwrap: ")
        return Layer(name, False, f"does not start ({said})", _allow_namespaces())
    if flags & wire.BUBBLEWRAP:
        return Layer(name, True, "no file, network, process or privilege of the host is there")
    return Layer(name, False, "starts, but something of the host can be reached from inside", "use a newer bubblewrap")


def _install(package: str) -> str:
    """The command that installs a system package on this distribution."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        lines = []
    release = dict(line.replace('"', "").split("=", 1) for line in lines if "=" in line)
    family = f"{release.get('ID', '')} {release.get('ID_LIKE', '')}".split()
    commands = {
        "debian": "apt install",
        "ubuntu": "apt install",
        "fedora": "dnf install",
        "rhel": "dnf install",
        "arch": "pacman -S",
        "alpine": "apk add",
        "suse": "zypper install",
    }
    command = next((commands[name] for name in family if name in commands), None)
    return f"{command} {package}" if command else f"install the system package {package}"


def _allow_namespaces() -> str:
    """What lets an ordinary user have namespaces, by the switch that forbids them here."""
    switches = {
        "kernel/apparmor_restrict_unprivileged_userns": (
            "1",
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give /usr/bin/bwrap an AppArmor profile "
            "with `userns,`",
        ),
        "kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
        "user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=15000"),
    }
    for name, (forbidding, command) in switches.items():
        try:
            if Path("/proc/sys", name).read_text().strip() == forbidding:
                return command
        except OSError:
            continue
    return (
        "allow user namespaces; in Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
        "--security-opt systempaths=unconfined"
    )


def _sentence(layer: Layer) -> str:
    return f"{layer.name}: {layer.detail}" + (f"; {layer.mend}" if layer.mend else "")
