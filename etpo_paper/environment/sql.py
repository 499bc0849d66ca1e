"""A second environment: writing the SQL that answers a question about tables in SQLite.

The state is the schema of the tables and the question, as comments, with the word SELECT; the action is the rest of the
query. A query that runs earns how well its rows agree with those of the right answer (the F1 score of the two multisets
of rows, so that 1 is right), and ends the episode. A query that fails earns -1, and the next state shows it with its
error. The whole of it is `reset` and `step`: what any environment of one's own needs.
"""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any

MAX_ERROR_CHARACTERS = 120
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


class Sql:
    """One episode after another of answering one question, see `episodes.Environment`.

    A query may read the tables and nothing else: no file, no second database, no setting. It ends with an error after
    `max_operations` of SQLite's virtual machine or when a value grows beyond 100,000 bytes.

    Args:
        tables: an SQL script that makes the tables.
        question: what is asked.
        answer: a query that answers it.
        max_steps: tries of an episode; the last one ends it.
        max_operations: see above.
        max_rows: rows after which a query is too long an answer.

    Raises:
        sqlite3.Error: `tables` or `answer` is not SQL.
    """

    def __init__(
        self,
        tables: str,
        question: str,
        answer: str,
        max_steps: int = 3,
        max_operations: int = 1_000_000,
        max_rows: int = 1000,
    ):
        self._max_steps, self._max_operations, self._max_rows, self._tries = max_steps, max_operations, max_rows, 0
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.executescript(tables)
        schema = [row[0] for row in self._database.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")]
        lines = [" ".join(str(made).removeprefix("CREATE TABLE ").split()) for made in schema]
        self._first = "".join(f"-- {line}\n" for line in [*lines, question]) + "SELECT"
        self._right = self._rows(answer)
        self._database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
        self._database.set_authorizer(lambda kind, *_: sqlite3.SQLITE_OK if kind in _READS else sqlite3.SQLITE_DENY)

    def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:
        """See `Environment.reset`; nothing in an episode is random."""
        self._tries = 0
        return self._first, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """See `Environment.step`."""
        self._tries += 1
        try:
            found = self._rows("SELECT" + action)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            message = " ".join(str(error).split())[:MAX_ERROR_CHARACTERS]
            comment = "".join(f"--{line}\n" for line in f" SELECT{action}".splitlines())
            following = self._first.removesuffix("SELECT") + f"{comment}-- fails: {message}\nSELECT"
            told = {"status": "failed", "error": message, "error_class": type(error).__name__}
            return following, -1.0, self._tries >= self._max_steps, False, told
        return "", agreement(found, self._right), True, False, {}

    def get_state(self) -> dict[str, Any]:
        """Where the episode stands."""
        return {"tries": self._tries}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned."""
        self._tries = state["tries"]

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        left = iter(range(self._max_operations // 1000))
        self._database.set_progress_handler(lambda: next(left, None) is None, 1000)
        rows = self._database.execute(query).fetchmany(self._max_rows + 1)
        if len(rows) > self._max_rows:
            raise ValueError(f"more than {self._max_rows} rows")
        return rows


def agreement(found: Sequence[tuple[Any, ...]], right: Sequence[tuple[Any, ...]]) -> float:
    """The F1 score of two multisets of rows: 1 if they are equal, 0 if they have no row in common; order is ignored."""
    if not found and not right:
        return 1.0
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right))
