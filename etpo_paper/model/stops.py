"""Where a program ends that a model writes without an end token.

A model that was not trained for this task may write a whole body of `build_model` and go on: with another function,
with an explanation, with the same lines once more. `end_of_body` and `end_of_answer` find where the program ends in the
text written so far. The action then ends with the token that has shown it. Like an end token, that token belongs to the
action and to its losses; the text from the end on, of which a token may hold some letters, is no part of the program.
Whether an action has ended depends on its own tokens alone.
"""

import codeop
import re
import warnings

_HEAD = re.compile(r"def build_model\b")
_RETURN = re.compile(r"return\b")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})[^`\n]*")


def end_of_body(text: str) -> int | None:
    """Where a body of a function ends, by the first of two signs.

    - A line that begins in column 0, with whatever but white space, below a first line that is indented.
    - A `return` as deep as the first line: its statement is the last one.

    Neither counts inside of brackets or of a string that goes on over several lines, nor behind a backslash. Of a
    module, whose first line begins in column 0, the body of `build_model` counts.

    Args:
        text: what was written so far, from the first line of the body on.

    Returns:
        How many characters belong to the program; None while it may go on.
    """
    depth, returns, start = None, False, 0
    while start < len(text):
        stop = text.find("\n", start)
        line = text[start:] if stop < 0 else text[start:stop]
        if line.strip():
            if depth is None:
                depth = line[: len(line) - len(line.lstrip())]
            if not depth and _HEAD.match(line):
                depth = None  # that of the next line
            elif depth and not line[0].isspace() and _complete(text[:start], depth):
                return start
            if depth is not None and line.startswith(depth) and _RETURN.match(line, len(depth)):
                # A statement in its place must be possible: there may be none yet below the head of a function.
                returns = returns or _complete(f"{text[:start]}{depth}0\n", depth)
        if stop < 0:
            break
        start = stop + 1
        if returns and _complete(text[:start], depth or ""):
            return start
    return None


def end_of_answer(text: str) -> int | None:
    """Where the answer of a chat model ends: with the fence that closes its first block of code.

    An answer without a fence is taken for a body (`end_of_body`).

    Args:
        text: what was written so far.

    Returns:
        How many characters belong to the answer; None while it may go on.
    """
    opening, filled, start = "", False, 0
    for line in text.split("\n")[:-1]:  # the last one may go on
        start += len(line) + 1
        fence = _FENCE.fullmatch(line)
        if not opening:
            opening = fence[1] if fence else ""
        elif fence and filled and re.fullmatch(rf"{opening}{opening[0]}*", line.strip()):
            return start
        else:
            filled = filled or bool(line.strip())
    return None if opening else end_of_body(text)


def _complete(text: str, depth: str) -> bool:
    """Whether no bracket and no string is open behind some lines of a body; what is no Python is complete."""
    if text.endswith("\\\n"):
        return False
    head = f"def f():\n{depth}0\n" if depth else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the model's strings
            return codeop.compile_command(head + text, symbol="exec") is not None
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return True
