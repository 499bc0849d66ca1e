"""Cleans the error texts of programs, because they are put into prompts, logs and terminals."""

import re
import sys
import unicodedata
from pathlib import Path

MAX_CHARACTERS = 500
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


def _places() -> list[str]:
    """The folders of this machine that a message must not name, longest first."""
    package = Path(__file__).resolve().parent
    library = [entry for entry in sys.path if entry]
    found = [sys.prefix, sys.base_prefix, sys.exec_prefix, package, package.parents[1], Path.home(), *library]
    texts = {str(place).rstrip("/") for place in found}
    return sorted((text for text in texts if len(text) > 1), key=len, reverse=True)


_PLACES = re.compile("|".join(re.escape(place) for place in _places()) + r"(?=/|\b)")


def clean_name(raw: bytes) -> str:
    """The name of an exception's type: at most 80 characters, each of which may stand in an identifier."""
    return re.sub(r"[^\w.]", "", raw.decode("utf-8", "replace"))[:80] or "Exception"


def clean_message(raw: bytes) -> str:
    """Returns a message, UTF-8, as one line of at most 500 characters.

    Control, direction and private-use characters become blanks, and each run of blanks becomes a single one. The
    folders of this machine become "...". Memory addresses differ between runs and become "0x...".
    """
    text = raw.decode("utf-8", "replace")
    kept = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    kept = _ADDRESS.sub("0x...", _PLACES.sub("...", kept))
    kept = " ".join(kept.split())
    return kept if len(kept) <= MAX_CHARACTERS else kept[: MAX_CHARACTERS - 3] + "..."
