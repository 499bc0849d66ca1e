"""The third wall: bubblewrap starts the zygote in namespaces of its own, in which there is nothing to reach.

Inside there is no network, no process but the zygote and its children, no privilege, and no file besides the libraries
of the system, the Python installation and those packages that are loaded. Packages that are not needed are not there,
and neither are the data sets, with their labels, that scikit-learn ships. This costs some milliseconds for each worker
and nothing for each program.
"""

import os
import re
import shutil
import sys
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

_LIBRARIES = ("numpy", "scipy", "scikit-learn")  # the distributions that are always loaded
_SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin")


@cache
def executable() -> str | None:
    """The path of bubblewrap's executable, or None if it is not installed."""
    return shutil.which("bwrap")


def command(preload: tuple[str, ...], inside: Path) -> list[str]:
    """Returns the beginning of a command line that starts the zygote inside bubblewrap.

    Args:
        preload: modules that are loaded besides numpy, scipy and scikit-learn.
        inside: the folder of the zygote's program.
    """
    words = [executable() or "bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    words += ["--unshare-cgroup-try", "--hostname", "sandbox", "--as-pid-1", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        # Root can make the other namespaces without a user namespace. In a user namespace the kernel would still treat
        # the zygote as root: it could read root's files, and its threads would not be counted. Instead, the zygote
        # becomes an ordinary user once the libraries are loaded.
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    for place in _SYSTEM:
        if os.path.islink(place):
            words += ["--symlink", os.readlink(place), place]
        elif os.path.isdir(place):
            words += ["--ro-bind", place, place]
    for place in ("/etc/ld.so.cache", "/sys/kernel/mm/transparent_hugepage"):  # malloc reads the latter
        words += ["--ro-bind-try", place, place]
    for place in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)):
        words += ["--ro-bind", place, place]
    if sys.prefix != sys.base_prefix:  # a virtual environment is bound without its packages
        for name in ("pyvenv.cfg", "bin"):
            words += ["--ro-bind", f"{sys.prefix}/{name}", f"{sys.prefix}/{name}"]
    sites, packages = _packages(preload)
    for site in sites:
        words += ["--tmpfs", site]
    for place in (*packages, str(inside)):  # where this package is installed, the latter lies in a site too
        words += ["--ro-bind", place, place]
    for site in sites:
        labels = f"{site}/sklearn/datasets/data"
        if os.path.isdir(labels):
            words += ["--tmpfs", labels]
            words += ["--ro-bind-try", f"{labels}/__init__.py", f"{labels}/__init__.py", "--remount-ro", labels]
        words += ["--remount-ro", site]
    words += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    return [*words, "--remount-ro", "/", "--chdir", "/"]


def _packages(preload: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Returns the folders of installed packages, and what of their content the loaded modules need."""
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
        if found.files is None:  # it was installed without a list of its files: bind all in its folder
            places.update(f"{root}/{name}" for name in os.listdir(root))
            continue
        tops = {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}
        places.update(f"{root}/{top}" for top in tops)
    return sites, sorted(place for place in places if os.path.exists(place))


def _needed(preload: tuple[str, ...]) -> list[Distribution]:
    """The installed distributions that hold the loaded modules, and all distributions that they require."""
    waiting = list(_LIBRARIES)
    for module in preload:
        top = module.partition(".")[0]
        try:
            waiting.append(distribution(top).name)
        except PackageNotFoundError:  # its name is not that of its module; this look-up is slow
            waiting += packages_distributions().get(top, [])
    found: dict[str, Distribution] = {}
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # it is required on other systems only
        required = (text for text in found[name].requires or () if "extra ==" not in text)
        waiting += [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in required]
    return list(found.values())
