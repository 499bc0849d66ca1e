"""`etpo_core.errors`: what a user can put right is one line, a programming error keeps its traceback."""

import errno

import pytest

from etpo_core.errors import UserError, one_line_errors, unknown


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (UserError("no such thing; make it"), 2, "error: no such thing; make it"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device: free the disk"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 2, "error: No space left on device: free"),
        (PermissionError(errno.EACCES, "Permission denied", "results"), 2, "error: Permission denied (results): free"),
        (KeyboardInterrupt(), 130, "stopped: the same command goes on"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(capsys, raised, status, line):
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        raise raised
    shown = capsys.readouterr().err
    assert stopped.value.code == status
    assert shown.startswith(line) and shown.count("\n") == 1


MISSING = FileNotFoundError(errno.ENOENT, "No such file or directory", "steps.csv")


@pytest.mark.parametrize("bug", [ValueError("bug"), OSError(errno.EPIPE, "Broken pipe"), MISSING])
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)), one_line_errors():
        raise bug


def test_an_unknown_name_comes_with_the_known_ones():
    assert str(unknown("task", "abc", ["two", "one"])) == "unknown task 'abc'; choose one of: one, two"
