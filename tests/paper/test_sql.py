"""The environment of SQL queries."""

import sqlite3

import pytest

from etpo_paper.environment.sql import Sql, agreement

TABLES = """
CREATE TABLE towns (name TEXT, people INTEGER);
INSERT INTO towns VALUES ('Ulm', 126), ('Bonn', 330), ('Kiel', 247);
"""


@pytest.fixture
def towns():
    environment = Sql(TABLES, "Which towns have more than 200 people?", "SELECT name FROM towns WHERE people > 200")
    assert environment.reset(seed=1) == (
        "-- towns (name TEXT, people INTEGER)\n-- Which towns have more than 200 people?\nSELECT",
        {},
    )
    return environment


@pytest.mark.parametrize(
    ("action", "reward"),
    [
        (" name FROM towns WHERE people > 200", 1.0),
        (" name FROM towns WHERE name LIKE '%n' OR name LIKE 'K%' ORDER BY people", 1.0),
        (" name FROM towns", 0.8),  # 2 of 3 rows are right: 2 * 2 / (3 + 2)
        (" people FROM towns", 0.0),
        (" name FROM towns WHERE people > 999", 0.0),
    ],
)
def test_a_query_that_runs_earns_how_well_its_rows_agree(towns, action, reward):
    following, earned, terminated, truncated, _ = towns.step(action)
    assert (earned, terminated, truncated) == (pytest.approx(reward), True, False)


def test_a_failure_costs_one_and_is_shown_until_the_last_try(towns):
    following, reward, terminated, truncated, told = towns.step(" name\nFROM people")
    assert (reward, terminated, truncated, told["error_class"]) == (-1.0, False, False, "OperationalError")
    assert following.endswith("people?\n-- SELECT name\n--FROM people\n-- fails: no such table: people\nSELECT")
    state = towns.get_state()
    assert [towns.step(" x")[2] for _ in range(2)] == [False, True]
    towns.set_state(state)
    assert not towns.step(" x")[2]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (" 1; DROP TABLE towns", "one statement at a time"),
        (" load_extension('x')", "not authorized"),
        (" zeroblob(200000)", "too big"),
        (" name FROM towns, towns, towns, towns, towns, towns, towns, towns", "ambiguous column"),
        (" 1 FROM towns a, towns b, towns c, towns d, towns e, towns f, towns g", "more than 1000 rows"),
        (" count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT 1 FROM n)", "interrupted"),
    ],
)
def test_a_query_reads_the_tables_and_does_nothing_else(towns, action, message):
    assert message in towns.step(action)[4]["error"]
    assert towns.step(" name FROM towns WHERE people > 200")[1] == 1.0


def test_statements_that_change_something_are_refused(towns):
    for statement in ("DELETE FROM towns", "ATTACH ':memory:' AS other", "PRAGMA user_version = 3"):
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            towns._database.execute(statement)


def test_agreement_is_that_of_multisets():
    assert agreement([], []) == 1.0 and agreement([], [(1,)]) == 0.0
    assert agreement([(1,), (1,)], [(1,)]) == pytest.approx(2 / 3)
