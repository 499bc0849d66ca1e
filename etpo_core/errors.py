"""How mistakes of a user are reported: in one line.

Whatever a user can cause and put right (an unknown task, a missing file, a server that is down) is raised as
`UserError` with a message of one line that names the thing, what was expected and what to do. Command-line programs
run under `one_line_errors`, which prints that line and exits with status 2. Programming errors keep their traceback.
"""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake that the user can put right; its message is one complete line."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns `UserError` and a full or unwritable disk into one line on stderr and exit status 2, Ctrl-C into 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopped: the same command goes on from what was finished", file=sys.stderr)
        sys.exit(130)  # the status that shells give to a command stopped by Ctrl-C
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror}{where}: free the disk or make the folder writable", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error):  # libraries in other languages raise errors of their own
            raise
        print(f"error: {os.strerror(errno.ENOSPC)}: free the disk", file=sys.stderr)
        sys.exit(2)


# ENOENT is left out on purpose: advice about the disk would not help whoever meets a missing file.
DISK_ERRNOS = {getattr(errno, n) for n in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "ENOTDIR", "EEXIST")}


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a list; it says which names there are."""
    return UserError(f"unknown {kind} {str(name)!r}; choose one of: {', '.join(sorted(known))}")
