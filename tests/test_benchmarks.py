"""The benchmark scripts run, at sizes that say nothing about speed."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.head import exponent

ROOT = Path(__file__).parents[1]


def test_head_prints_and_saves_its_tables(tmp_path):
    command = [sys.executable, "-m", "benchmarks.head", "--small", "--csv", str(tmp_path / "head.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "of_products" in done.stdout and "exponent" in done.stdout
    with (tmp_path / "head.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows if row["workload"] == "dueling"] == ["products", "narrow", "eager", "naive"]
    assert all(float(row["ms_median"]) > 0 and float(row["extra_mib"]) >= 0 for row in rows)
    with (tmp_path / "head_growth.csv").open() as file:
        assert {row["over"] for row in csv.DictReader(file)} == {"positions", "vocabulary"}


def test_the_exponent_of_a_power_is_found():
    assert exponent([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
