"""How a test that runs as root starts a command as an ordinary user."""

import shutil
import sys
from pathlib import Path

NOBODY = 65534
CHECKOUT = Path(__file__).resolve().parents[2]


def reachable(path):
    """Whether everybody may enter all folders above a path."""
    return all(parent.stat().st_mode & 0o001 for parent in Path(path).parents)


def command_as_nobody():
    """The beginning of a command line that runs a command as an ordinary user, and why there is none if it is None.

    Folders that an ordinary user may not enter are opened by bubblewrap where they hold Python or the checkout.
    """
    if not shutil.which("setpriv"):
        return None, "setpriv is missing"
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    needed = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix, CHECKOUT)]
    hidden = [path for path in needed if not reachable(path)]
    if not hidden:
        return drop, ""
    if not shutil.which("bwrap"):
        return None, f"{hidden[0]} is in a closed folder, and bubblewrap is missing to open it"
    wrap = ["bwrap", "--dev-bind", "/", "/"]
    for path in hidden:  # an open folder in place of the topmost closed one, with only what is needed in it
        closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001]
        if str(closed[0]) not in wrap:
            wrap += ["--perms", "0755", "--tmpfs", str(closed[0])]
        for parent in reversed(path.parents):
            if closed[0] in parent.parents and str(parent) not in wrap:
                wrap += ["--perms", "0755", "--dir", str(parent)]
        wrap += ["--bind", str(path), str(path)]
    return [*wrap, "--", *drop], ""
