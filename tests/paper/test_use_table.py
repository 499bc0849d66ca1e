"""Tables as people have them: what becomes of each column, and which line tells that a table cannot be used."""

import numpy as np
import pandas as pd
import pytest

from etpo_core.errors import UserError
from etpo_paper.use.columns import Encoder, numbers, text_of
from etpo_paper.use.read import read_text
from etpo_paper.use.table import read_table

ROWS = 60


@pytest.fixture
def frame():
    """Columns as people have them, as text; every other row is of class yes."""
    count = range(ROWS)
    words = ["late", "payment", "called", "twice", "happy", "customer"]
    return pd.DataFrame(
        {
            "id": [str(1000 + i) for i in count],
            "code": [f"c{i:05d}x" for i in count],
            "amount": [f"{i % 7}.{i % 10}00,{i % 10}5" for i in count],
            "since": [f"{1 + i % 28:02d}.{1 + i % 12:02d}.2020" for i in count],
            "member": [("true", "FALSE", "")[i % 3] for i in count],
            "size": ["S" if i % 3 else "L" for i in count],
            "note": [f"{words[i % 6]} {words[i % 5]} {words[i % 4]} number {i}" for i in count],
            "empty": [""] * ROWS,
            "same": ["x"] * ROWS,
            "score": [("n/a" if i == 3 else str(i % 11 + 0.5)) for i in count],
            "kept": [("yes", "No")[i % 2] for i in count],
        }
    )


@pytest.fixture
def table(frame, tmp_path):
    """A function that writes the frame as CSV, changed by the test, and reads it."""

    def made(target="kept", sep=",", encoding="utf-8", **columns):
        path = tmp_path / "my_customers.csv"
        path.write_text(frame.assign(**columns).to_csv(index=False, sep=sep), encoding=encoding)
        return read_table(path, target, [0, 1])

    return made


def test_each_column_becomes_what_its_values_are(table):
    own = table()
    assert {entry["name"]: entry["kind"] for entry in own.plan} == {
        "amount": "number", "since": "date", "member": "category", "size": "category", "note": "words",
        "score": "number",
    }  # fmt: skip
    assert own.labels == ["No", "yes"] and own.task.y[:4].tolist() == [1, 0, 1, 0]
    # amount, score; three of the date; member with a gap, size; the most frequent words.
    assert own.task.features == 2 + 3 + 3 + 1 + 20 and np.isfinite(own.task.x).all()
    assert own.task.spec.description == "My customers"
    notes = "\n".join(own.notes)
    for said in (
        "id: left out, because it numbers the rows",
        "code: left out, because nearly every row has a value of its own",
        "amount: numbers with a decimal comma",
        "since: dates written %d.%m.%Y",
        "empty: left out, because it has no values",
        "same: left out, because all its values are the same",
        "score: missing values become the median (1 missing)",
    ):
        assert said in notes


def test_numbers_dates_and_gaps_have_the_right_values(table, tmp_path):
    own = table()
    read = pd.read_csv(tmp_path / "my_customers.csv")  # with numbers and truth values of their own types
    x = Encoder(own.plan).fit_transform(read)
    assert np.array_equal(x, own.task.x)  # made again, it is the same
    assert x[3, 0] == 3300.35 and x[11, 0] == 4100.15  # 3.300,35 and 4.100,15
    assert x[0, 1] == pd.Timestamp("2020-01-01").value / 86400e9 and x[1, 2] == 2 and x[0, 3] == 2  # a Wednesday
    assert x[3, 4] == np.median([i % 11 + 0.5 for i in range(ROWS) if i != 3])


@pytest.mark.parametrize("sep, encoding", [(";", "utf-8-sig"), ("\t", "utf-16"), ("|", "cp1252")])
def test_other_separators_and_encodings_give_the_same_table(table, sep, encoding):
    accents = {"size": ["é" if i % 3 else "ß" for i in range(ROWS)]}
    plain, other = table(**accents), table(sep=sep, encoding=encoding, **accents)
    assert other.plan == plain.plan and other.task.sha256 == plain.task.sha256


def test_names_that_are_there_twice_are_told_apart(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,a,y\n" + "".join(f"{i * i % 7},{i % 5},{i % 2}\n" for i in range(40)))
    own = read_table(path, "Y ", [0])  # with other capitals and a space
    assert [entry["name"] for entry in own.plan] == ["a", "a.1"] and "2 columns are called 'a'" in own.notes[0]
    assert own.labels == [0, 1] and own.target == "y"


def test_rare_classes_and_rows_without_a_class_are_left_out(table):
    kept = ["maybe", "", "", *[("yes", "No", "YES")[i % 3] for i in range(3, ROWS)]]
    own = table(kept=kept)
    assert own.task.rows == ROWS - 3 and own.labels == ["No", "yes"]
    notes = "\n".join(own.notes)
    assert "2 rows without a value left out" in notes and "Class maybe of kept: 1 row left out" in notes
    assert "differ in capitals alone" in notes


def test_many_columns_alike_share_a_sentence_and_categories_a_budget(tmp_path):
    rng = np.random.default_rng(0)
    letters = pd.DataFrame(rng.choice(list("abcdefgh"), (50, 300)), columns=[f"c{i}" for i in range(300)])
    path = tmp_path / "wide.csv"
    letters.assign(y=np.arange(50) % 2).to_csv(path, index=False)
    own = read_table(path, "y")
    assert [note for note in own.notes if note.startswith("300 columns (c0, c1, c2, ...)")] == own.notes
    assert own.task.features == 300  # the most frequent letter of each column, and all others


def test_many_rows_are_drawn_from(tmp_path):
    path = tmp_path / "long.csv"
    pd.DataFrame({"a": np.arange(5000) % 17, "y": np.arange(5000) % 2}).to_csv(path, index=False)
    assert read_table(path, "y").task.rows == 2000


@pytest.mark.parametrize(
    "text, line",
    [
        ("", "is empty"),
        ("a,b\n", "no rows"),
        ("a\n1\n2\n", "not hold two names"),
        (",,\n,,\n", "not hold two names"),
        ("a,y\n" + "x" * 200_000 + ",1\n", "cannot be read as CSV: field larger"),
        ('a,y\n"x,1\n2,2\n', "cannot be read as CSV"),
        ("a,b,y\n1,2,0\n1,2,3,4\n", "row 3 has 4 values and the first line 3 names"),
        ("a,y\n" + "1,0\n2,1\n" * 5, "10 rows; expected at least 20"),
        ("a,y\n" + "1,0\n2,0\n" * 20, "expected at least two classes"),
        ("a,y\n" + "".join(f"{i},{i / 7}\n" for i in range(40)), "has 40 different numbers"),
        ("a,y\n" + "5,0\n5,1\n" * 20, "no column is left"),
        ("a,z\n" + "1,0\n2,1\n" * 20, "no such column; it has 'a', 'z'"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(tmp_path, text, line):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=line) as told:
        read_table(path, "y")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("content, what", [(b"PK\x03\x04x", "workbook"), (b"a,b\n\0\0", "no text")])
def test_other_files_are_named(tmp_path, content, what):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=what):
        read_text(tmp_path / "t.csv")


def test_values_are_the_same_however_they_were_read():
    assert [text_of(v) for v in (1.0, "1.0", 1, True, "TRUE", " a  b ", float("nan"), None, "N/A", pd.NaT)] == [
        "1", "1", "1", "True", "True", "a b", "", "", "", "",
    ]  # fmt: skip
    assert numbers(pd.Series(["1.234,5", "-0,25", "7", "x"]), ",").tolist()[:3] == [1234.5, -0.25, 7.0]
    assert numbers(pd.Series(["$1,234.5", "45 %"])).tolist() == [1234.5, 45.0]
    assert numbers(pd.Series(["12 kg", "3kg", 5]), unit="kg").tolist() == [12, 3, 5]


def test_units_times_and_marks_are_understood(table):
    rows = range(ROWS)
    own = table(
        size=[f"{i % 13} kg" for i in rows],
        since=[f"{i % 24:02d}:30" for i in rows],
        note=["" if i % 3 else "x" for i in rows],
        amount=[f"{i % 9 + 1},{i % 7 + 1}00 €" for i in rows],
    )
    entries = {entry["name"]: entry for entry in own.plan}
    assert entries["size"]["unit"] == "kg" and entries["since"]["format"] == "%H:%M"
    assert entries["note"]["kind"] == "category" and entries["amount"]["decimal"] == "."
    assert "size: numbers of the unit kg." in own.notes and "note: 1 where it is 'x'; " in "\n".join(own.notes)
    assert own.task.x[14, 0] == 6100.0 and own.task.x[14, 2] == 1.0  # 6,100 and 14 % 13 kg
