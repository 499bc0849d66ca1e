"""Programs as files: forms in which one is read, and the best one with its preprocessing, which runs alone."""

import subprocess
import sys

import pandas as pd
import pytest

from etpo_core.errors import UserError
from etpo_paper.environment.prompts import program
from etpo_paper.use.program import MARK, one_file, read_program
from etpo_paper.use.table import read_table

BODY = """\
    from sklearn.linear_model import LogisticRegression
    model = LogisticRegression().fit(x_train, y_train)
"""
ALONE = """
import sys, numpy as np, pandas as pd
from best_program import fit
frame = pd.read_csv("t.csv", sep=";", decimal=",")
model = fit(frame)
assert list(model.classes_) == ["No", "yes"]
assert (model.predict(frame) == frame["kept"].str.replace("NO", "No")).mean() == 1.0
new = frame.drop(columns="kept").head(4).astype(object)
new.loc[0, "city"] = "Atlantis"
new.loc[1, :] = None
new.loc[2, "since"] = "no date"
new["more"] = 1
table = model.predict_proba(new)
assert table.shape == (4, 2) and np.isfinite(table).all() and np.allclose(table.sum(axis=1), 1)
assert model.predict_proba(new.iloc[:0]).shape == (0, 2)
try:
    model.predict_proba(new.drop(columns="city"))
except ValueError as error:
    assert "city" in str(error)
else:
    raise AssertionError("a missing column is told")
assert not any(name.startswith("etpo") for name in sys.modules)
print(repr(model.encoder.transform(frame).sum()))
"""


@pytest.fixture
def csv(tmp_path):
    rows = range(60)
    table = pd.DataFrame(
        {
            "city": [("Bonn", "Ulm", "")[i % 3] for i in rows],
            "income": [f"{1000 + i * i % 31},5" for i in rows],
            "since": [f"2020-{1 + i % 12:02d}-11" for i in rows],
            "note": [f"a long remark about number {i}" for i in rows],
            "points": [str(i % 2 * 10 + i % 3) for i in rows],
            "kept": [("yes", "No", "yes", "NO")[i % 4] for i in rows],
        }
    )
    path = tmp_path / "t.csv"
    path.write_text(table.to_csv(index=False, sep=";"))
    return path


def test_the_best_program_runs_without_this_package_on_rows_it_has_not_seen(csv, tmp_path):
    own = read_table(csv, "kept")
    (tmp_path / "best_program.py").write_text(one_file(program(BODY), own))
    (tmp_path / "alone.py").write_text(ALONE)
    done = subprocess.run([sys.executable, "alone.py"], cwd=tmp_path, capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr
    # Frames as pandas reads them give the numbers that training saw.
    assert float(done.stdout.partition("(")[2].rstrip(")\n")) == pytest.approx(own.task.x.sum(), rel=1e-12)


def test_a_program_is_read_in_each_of_its_forms(csv, tmp_path):
    path, module = tmp_path / "p.py", "import numpy as np\n\n\ndef build_model(x_train, y_train):\n    return 1\n"
    path.write_text(BODY)
    assert read_program(path) == (program(BODY), 4)
    path.write_text(module)
    assert read_program(path) == (module, 0)
    path.write_text(one_file(module, read_table(csv, "kept")))
    source, _ = read_program(path)
    assert MARK not in source and "PLAN" not in source and source.rstrip().endswith("return 1")


@pytest.mark.parametrize("text, line", [(None, "no such file"), ("x = 1\n", "defines no function build_model")])
def test_what_is_no_program_is_one_line(tmp_path, text, line):
    if text:
        (tmp_path / "p.py").write_text(text)
    with pytest.raises(UserError, match=line):
        read_program(tmp_path / "p.py")
