"""ARFF files as Weka reads them, in the plainer form that liac-arff reads.

Weka is liberal: it takes tabs for blanks, comments behind anything, the range of a number behind its type, weights of
attributes and of rows, a brace right behind a name, and values that only white space separates. `plain_lines` writes
all of these in the one form that liac-arff knows, line by line, and leaves alone what it does not recognise. Weights
are dropped, because the paper's tables have none. The type INTEGER becomes NUMERIC, which it is to Weka: liac-arff
would make 3 of a 3.7 in such a column.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_ATTRIBUTE = re.compile(
    rf"""\s*@attribute\s+
    (?P<name>{_QUOTED}|[^\s{{'"]+)\s*
    (?P<type>\{{(?:{_QUOTED}|[^}}'"])*\}}|[a-z]+)\s*
    (?:[\[(][^\])]*[\])])?\s*    # the range of a number, with its ends or without
    (?:\{{[\d.e+-]+\}})?\s*     # the weight of the attribute
    (?:%.*)?$""",
    re.IGNORECASE | re.VERBOSE,
)
_RELATION, _DATA = re.compile(r"\s*@relation\b", re.IGNORECASE), re.compile(r"\s*@data\b", re.IGNORECASE)
_ROW_WEIGHT = re.compile(r"[,\s]\s*\{\s*[\d.eE+-]+\s*\}$")
_BEFORE_COMMENT = re.compile(rf"""(?:{_QUOTED}|[^%'"])*(?=%)""")
_VALUE = rf"""(?:{_QUOTED}|[^\s,'"]+)"""
_SPARSE_CELL = re.compile(rf"""(\d+)\s+(?:{_QUOTED}|[^\s,'"}}]+)""")
_SPACED_ROW = re.compile(rf"{_VALUE}(?:\s+{_VALUE})*")


def encoding(path: Path) -> str:
    """The encoding of a file, by its byte-order mark; UTF-8 without one."""
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def plain_lines(lines: Iterable[str]) -> Iterator[str]:
    """The lines of an ARFF file, one for one, in the form that liac-arff reads."""
    rows = False
    for line in lines:
        if rows:
            yield _row(line.strip())
        elif attribute := _ATTRIBUTE.match(line):
            kind = attribute["type"]
            yield f"@attribute {attribute['name']} {'numeric' if kind.casefold() == 'integer' else kind}"
        elif _RELATION.match(line):
            yield "@relation table"  # nobody asks for its name
        elif _DATA.match(line):
            rows = True
            yield "@data"
        else:
            yield line.strip()


def unnamed(line: str, column: int) -> bool:
    """Whether a line of `plain_lines` is a sparse row that does not name a column.

    Such a value is 0 or, of a nominal column, the first one of its declaration.
    """
    return line.startswith("{") and str(column) not in _SPARSE_CELL.findall(line)


def _row(row: str) -> str:
    if "%" in row and (before := _BEFORE_COMMENT.match(row)):
        row = before[0].rstrip()
    if row.endswith("}"):
        row = _ROW_WEIGHT.sub("", row)
    if not row.startswith("{") and _SPACED_ROW.fullmatch(row):
        row = ",".join(re.findall(_VALUE, row))
    return row
