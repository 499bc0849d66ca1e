"""The scripts that measure and draw growth, and the one for a GPU, at sizes that say nothing about speed."""

import csv
import hashlib
import shutil

import pytest
import torch

from benchmarks import codellama, growth, plots
from benchmarks.plots import TABLES
from etpo_paper.base import paths


@pytest.fixture
def figures(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "FIGURES", tmp_path / "figures")
    return tmp_path / "figures" / "benchmarks"


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_committed_tables_are_drawn_to_the_same_bytes(figures, tmp_path):
    tables = {table.removesuffix("_growth.csv") for table, *_ in plots.FIGURES.values() if (TABLES / table).exists()}
    assert "head" in tables
    first = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in plots.main([])}
    assert first.keys() == {f"{name}.{end}" for name in tables for end in ("png", "pdf")}
    (tmp_path / "tables").mkdir()
    shutil.copy(TABLES / "head_growth.csv", tmp_path / "tables")
    again = plots.main(["--tables", str(tmp_path / "tables")])  # one of them is enough
    assert len(again) == 2 and all(hashlib.sha256(f.read_bytes()).hexdigest() == first[f.name] for f in again)


def test_a_missing_table_is_named_in_one_line_and_the_rest_is_drawn(figures, tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    shutil.copy(TABLES / "head_growth.csv", tmp_path / "tables")
    written = plots.main(["--tables", str(tmp_path / "tables")])
    assert [file.name for file in written] == ["head.png", "head.pdf"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "rollout_growth.csv" in lines[1] and "benchmarks.update" in lines[2]


def test_a_curve_stands_beside_slope_1_through_its_last_point():
    plots.plotting.use_style()
    figure, axes = plots.plt.subplots()
    plots.curve(axes, "measured", [1, 2, 4], [1.0, 4.0, 16.0])
    beside, measured = axes.get_lines()
    assert list(beside.get_ydata()) == [4.0, 16.0] and "2.00" in measured.get_label()
    plots.plt.close(figure)


def test_growth_of_a_rollout_is_saved(tmp_path):
    growth.main(["--small", "--rounds", "1", "--csv", str(tmp_path / "rollout.csv")])
    rows = read(tmp_path / "rollout.csv")
    assert [(row["sequences"], row["length"]) for row in rows if row["over"] == "length"] == [
        ("2", "1"), ("2", "2"), ("2", "4"), ("2", "8"),
    ]  # fmt: skip
    assert all(float(row["cpu_s"]) > 0 and float(row["limit_s"]) >= 0 for row in rows)


def test_codellama_runs_small(tmp_path):
    codellama.main(["--small", "--csv", str(tmp_path / "codellama.csv")])
    rows = {(row["part"], row["phase"]): row for row in read(tmp_path / "codellama.csv")}
    assert {part for part, _ in rows} == {"model", "update", "rollout", "head"}
    for key in (("update", "update"), ("rollout", "rollout"), ("head", "dueling, bfloat16")):
        assert float(rows[key]["times_limit"]) > 0 and float(rows[key]["peak_gib"]) > 0
    whole = float(rows["update", "update"]["seconds"])
    assert 0 < sum(float(row["seconds"]) for key, row in rows.items() if key[0] == "update") - whole <= whole


def test_codellama_writes_nothing_without_a_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert codellama.main(["--csv", str(tmp_path / "codellama.csv")]) == []
    assert capsys.readouterr().out == codellama.NO_GPU + "\n" and not list(tmp_path.iterdir())


def test_what_does_not_fit_is_reported_and_the_rest_is_measured(monkeypatch):
    def too_large(self, actions):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(codellama.Bench, "learn", too_large)
    rows = codellama.main(["--small"])
    assert [row["seconds"] for row in rows if row["part"] == "update"] == ["out of memory"]
    assert {row["part"] for row in rows} == {"model", "update", "rollout", "head"}


def test_the_peak_of_a_phase_counts_for_all_that_are_open(monkeypatch):
    peaks = iter([1.0, 2.0, 7.0, 3.0])
    monkeypatch.setattr(codellama, "resident_mib", lambda field: next(peaks) * 1024 if field == "VmHWM" else 512.0)
    meter = codellama.PhaseMeter("cpu")
    with meter.phase("whole"):  # the peak before it, 1, is nobody's
        with meter.phase("part"):
            pass
    assert (meter.spent["whole"].peak, meter.spent["part"].peak) == (7.0, 7.0) and meter.spent["part"].held == 0.5
