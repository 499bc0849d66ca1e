"""A CSV file as people have it, read as text: its encoding, its separator, its names."""

import csv
import difflib
import io
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from etpo_core.errors import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
HEAD = 200  # lines from which the separator is told
OTHER_FORMATS = {b"PK\x03\x04": "a workbook or an archive", b"PAR1": "Parquet", b"\x1f\x8b": "compressed"}


def read_text(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Reads a CSV file without an interpretation of its values.

    Returns:
        The table, each value as text and missing ones empty, and sentences about what was found.

    Raises:
        UserError: it is no such file.
    """
    text, notes = _decoded(path)
    if text.lower().startswith("sep="):  # a line for Excel
        text = text.partition("\n")[2]
    if not text.strip():
        raise UserError(f"{path} is empty; expected a line of column names and a line for each row")
    try:
        separator = max(SEPARATORS, key=lambda sign: _fit(text, sign))
        rows = _rows(text, separator)
        header = next(rows, [])
        longer = next(
            ((number, len(row)) for number, row in enumerate(rows, 2) if any(v.strip() for v in row[len(header) :])),
            None,
        )
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from None
    if len([name for name in header if name.strip()]) < 2:
        known = ", ".join(SEPARATORS.values())
        raise UserError(f"{path}: its first line does not hold two names; expected columns separated by {known}")
    if separator != ",":
        notes.append(f"Columns are separated by {SEPARATORS[separator]}.")
    if longer:
        raise UserError(
            f"{path}: row {longer[0]} has {longer[1]} values and the first line {len(header)} names; "
            "expected a name for each column, and quotes around a value that holds the separator"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # separators at the ends of lines
            frame = pd.read_csv(
                io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False, low_memory=False
            )
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} cannot be read as CSV: {str(error).strip().splitlines()[0]}") from None
    if frame.empty:
        raise UserError(f"{path} holds column names and no rows")
    for name, count in Counter(header).items():
        if count > 1 and name:
            copies = ", ".join(f"{name}.{number}" for number in range(1, count))
            notes.append(f"{count} columns are called {name!r}; after the first they are called {copies}.")
    return frame, notes


def find_column(frame: pd.DataFrame, name: str) -> str:
    """The column that a user means, with other capitals or spaces around it if there is no other.

    Raises:
        UserError: there is none, or more than one.
    """
    if name in frame.columns:
        return name
    alike = [c for c in frame.columns if c.strip().lower() == name.strip().lower()]
    if len(alike) == 1:
        return str(alike[0])
    names = [str(c) for c in frame.columns]
    close = difflib.get_close_matches(name, names, 3) or names[:10]
    more = "" if len(names) <= len(close) else f" ({len(names)} columns in all)"
    raise UserError(f"--target {name!r}: the table has no such column; it has {', '.join(map(repr, close))}{more}")


def _decoded(path: Path) -> tuple[str, list[str]]:
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a CSV file")
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a CSV file with a line of column names")
    content = path.read_bytes()
    for start, what in OTHER_FORMATS.items():
        if content.startswith(start):
            raise UserError(f"{path} is {what}; expected CSV: save it as a CSV file")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace").lstrip("\ufeff"), ["The file is UTF-16."]
    if b"\0" in content[:100_000]:
        raise UserError(f"{path} is no text; expected a CSV file")
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace"), ["The file is not UTF-8 and was read as Windows-1252."]


def _rows(text: str, separator: str) -> Iterator[list[str]]:
    """The lines of a table that are not empty, one at a time, because a table may be large."""
    return (row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(row))


def _fit(text: str, separator: str) -> tuple[float, int]:
    """How well a separator explains the first lines: the share of lines with as many values as the first, and that."""
    head = "".join(text[: HEAD * 1000].splitlines(keepends=True)[:HEAD])
    lengths = [len(row) for row in _rows(head, separator)]
    if not lengths or lengths[0] < 2:
        return 0.0, 0
    return round(sum(length >= lengths[0] for length in lengths) / len(lengths), 1), lengths[0]
