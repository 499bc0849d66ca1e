"""The second wall: bubblewrap starts the zygote in namespaces of its own, with a file tree that holds only libraries.

In there is no network, no process but the zygote's, no privilege, and no file besides the system's libraries, the
Python installation and those packages that are loaded. The data that packages ship - scikit-learn's tables with their
labels, and every package that is not needed - is not there at all. It costs milliseconds once a worker, and nothing
for each snippet.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

_LIBRARIES = ("numpy", "scipy", "scikit-learn")
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")


@cache
def executable() -> str | None:
    """Path of bubblewrap, or None."""
    return shutil.which("bwrap")


def command(preload: tuple[str, ...], inside: Path) -> list[str]:
    """What goes in front of the zygote's command line; `executable` must not be None.

    Args:
        preload: modules that are loaded besides numpy, scipy and scikit-learn.
        inside: folder of the zygote's program.
    """
    words = [executable(), "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--hostname", "sandbox", "--as-pid-1", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        # Root needs no user namespace for the others, and in one it would remain root to the kernel: its files could be
        # read, its threads not be counted. The zygote becomes an ordinary user once the libraries are loaded.
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
        if _can_forbid_namespaces():
            words += ["--disable-userns"]
    for place in _SYSTEM:
        if os.path.islink(place):
            words += ["--symlink", os.readlink(place), place]
        elif os.path.isdir(place):
            words += ["--ro-bind", place, place]
    for place in (
        "/etc/ld.so.cache",
        "/sys/kernel/mm/transparent_hugepage",
    ):  # malloc asks the latter before it uses any
        words += ["--ro-bind-try", place, place]
    for place in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)):
        words += ["--ro-bind", place, place]
    if sys.prefix != sys.base_prefix:  # a virtual environment: what makes it one, without its packages
        for name in ("pyvenv.cfg", "bin"):
            words += ["--ro-bind", f"{sys.prefix}/{name}", f"{sys.prefix}/{name}"]
    sites, packages = _packages(preload)
    for site in sites:
        words += ["--tmpfs", site]
    for place in packages:
        words += ["--ro-bind", place, place]
    for site in sites:
        labels = f"{site}/sklearn/datasets/data"
        if os.path.isdir(labels):
            words += ["--tmpfs", labels]
            words += ["--ro-bind-try", f"{labels}/__init__.py", f"{labels}/__init__.py", "--remount-ro", labels]
        words += ["--remount-ro", site]
    words += ["--ro-bind", str(inside), str(inside), "--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    return [*words, "--remount-ro", "/", "--chdir", "/"]


@cache
def _can_forbid_namespaces() -> bool:
    """Whether this bubblewrap knows --disable-userns (0.8 and newer)."""
    usage = subprocess.run([executable(), "--help"], capture_output=True, text=True)
    return "--disable-userns" in usage.stdout + usage.stderr


def _packages(preload: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Folders of installed packages, and the files and folders in them that loading needs."""
    sites = [entry for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    prefixes = dict.fromkeys((sys.prefix, sys.base_prefix))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    sites += [f"{prefix}/lib/{version}/site-packages" for prefix in prefixes]
    sites += ["/usr/lib/python3/dist-packages", "/usr/local/lib/python3/dist-packages"]
    inside = (sys.prefix, sys.base_prefix, *_SYSTEM)
    sites = [site for site in dict.fromkeys(sites) if os.path.isdir(site) and site.startswith(inside)]
    places: set[str] = set()
    for found in _needed(preload):
        root = os.path.normpath(str(found.locate_file("")))
        if found.files is None:  # installed without a list of its files: everything beside it is let in
            places.update(f"{root}/{name}" for name in os.listdir(root))
            continue
        tops = {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}
        places.update(f"{root}/{top}" for top in tops)
    return sites, sorted(place for place in places if os.path.exists(place))


def _needed(preload: tuple[str, ...]) -> list[Distribution]:
    """The installed distributions that the preloaded modules come from, with all that these require."""
    waiting = list(_LIBRARIES)
    for module in preload:
        top = module.partition(".")[0]
        try:
            waiting.append(distribution(top).name)
        except PackageNotFoundError:  # a package whose name is not its module's; to look it up is slow
            waiting += packages_distributions().get(top, [])
    found: dict[str, Distribution] = {}
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # required on other systems only
        for requirement in found[name].requires or ():
            if "extra ==" not in requirement:
                waiting.append(re.match(r"[\w.-]+", requirement).group())
    return list(found.values())
