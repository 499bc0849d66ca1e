"""Tables: three formats, cells as a reader sees them, and the same bytes for the same table."""

import pandas as pd
import pytest

from etpo_paper.base import paths
from etpo_paper.report import tables
from etpo_paper.report.tables import Table


@pytest.fixture(autouse=True)
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    return tmp_path / "figures"


def test_a_table_in_three_formats(figures):
    frame = pd.DataFrame({"task": ["a_b†", "c|d"], "score": [0.123456789, float("nan")], "n": [1, 2]})
    table = Table(frame, caption="5 % of & all", notes=["† note"], digits=2)
    text = tables.save_table(table, "smoke", "test", "t")
    place = figures / "smoke" / "test"
    assert (place / "t.csv").read_text() == "task,score,n\na_b†,0.123457,1\nc|d,,2\n"
    assert text == (place / "t.md").read_text()
    assert text.splitlines() == [
        "5 % of & all", "", "| task | score | n |", "|--------|---------|-----|", "| a_b† | 0.12 | 1 |",
        "| c\\|d | – | 2 |", "", "† note",
    ]  # fmt: skip
    assert (place / "t.tex").read_text().splitlines() == [
        r"\begin{table}", r"\centering", r"\caption{5 \% of \& all}", r"\label{tab:test-t}", r"\begin{tabular}{lll}",
        r"\hline", r" task & score & n \\", r"\hline", r" a\_b$^\dagger$ & 0.12 & 1 \\", r" c|d & -- & 2 \\", r"\hline",
        r"\end{tabular}", r"\par\footnotesize $^\dagger$ note", r"\end{table}",
    ]  # fmt: skip


def test_bold_and_code_cells():
    table = Table(pd.DataFrame({"cell": ["**0.9** ± 0.1", "x = {1}\ny = 2"]}))
    assert "| **0.9** ± 0.1 |" in tables.markdown(table)
    assert "| x = {1}<br>y = 2 |" in tables.markdown(table)
    assert r" \textbf{0.9} $\pm$ 0.1 \\" in tables.latex(table)
    assert r" x = \{1\}; y = 2 \\" in tables.latex(table)


def test_text_that_looks_like_a_number_is_not_touched():
    frame = pd.DataFrame({"text": ["0.10", "007", "46e1"], "score": [0.10, 7.0, 1e-7], "whole": [10, 7, 1]})
    shown = tables.markdown(Table(frame, digits={"score": 1})).splitlines()[2:]
    assert shown == ["| 0.10 | 0.1 | 10 |", "| 007 | 7.0 | 7 |", "| 46e1 | 0.0 | 1 |"]


def test_what_is_shown_may_differ_from_the_numbers(figures):
    table = Table(pd.DataFrame({"x": [0.5]}), shown=pd.DataFrame({"X": ["half"]}))
    assert "| half |" in tables.save_table(table, "smoke", "test", "t")
    assert (figures / "smoke" / "test" / "t.csv").read_text() == "x\n0.500000\n"


def test_cells_of_intervals_and_numbers():
    frame = pd.DataFrame({"a": [0.5, 0.25, None], "a_low": [0.4, None, None], "a_high": [0.6, None, None]})
    assert tables.interval_cells(frame, "a") == ["0.500 [0.400, 0.600]", "0.250", "–"]
    assert [tables.number_cell(value, ".1f") for value in (0.25, float("nan"), None)] == ["0.2", "–", "–"]
