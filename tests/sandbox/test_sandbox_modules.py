"""What a program may import, and what libraries import late, is there although no file can be opened any more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from programs import INNOCENT, body, needs_wall
from sklearn.utils import all_estimators

from etpo_core.sandbox import worker as worker_module

FRAMES = {  # of pandas; what each needs is imported when it is called first
    "fit a frame": "return LogisticRegression().fit(frame, y)",
    "fit a series": "return LogisticRegression().fit(x, pd.Series(y))",
    "scale a frame": "return LogisticRegression().fit(StandardScaler().fit_transform(frame), y)",
    "frames out": "return make_pipeline(StandardScaler(), GaussianNB()).set_output(transform='pandas').fit(x, y)",
    "columns by name": "return Named().fit(x, y)",
    "show": "print(frame.head(), repr(frame), frame.to_string(), frame.to_html(), frame.to_csv())",
    "describe": "frame.describe(), frame.corr(), frame.groupby('label').describe(), frame.value_counts()",
    "shape": "frame.stack(), frame.pivot_table(index='label'), pd.crosstab(y, y), pd.get_dummies(frame), frame.melt()",
    "convert": "frame.to_dict(), frame.to_dict('records'), frame.to_json(), frame.to_records(), frame.to_numpy()",
    "sparse": "pd.DataFrame.sparse.from_spmatrix(__import__('scipy.sparse').sparse.eye(3)).sparse.to_coo()",
    "times": "pd.date_range('2024', periods=3, tz='UTC').strftime('%c'), pd.to_timedelta('1D')",
}
PROGRAM = """
import numpy as np, pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
class Named:
    def fit(self, x, y):
        by_name = ColumnTransformer([("scaled", StandardScaler(), ["a", "b"])], remainder="passthrough")
        self.model = make_pipeline(by_name, LogisticRegression()).fit(pd.DataFrame(x, columns=list("abcd")), y)
        return self
    def predict_proba(self, x):
        return self.model.predict_proba(pd.DataFrame(x, columns=list("abcd")))
def build_model(x, y):
    frame = pd.DataFrame(x, columns=list("abcd")).assign(label=y)[[*"abcd", "label"]]
    frame = frame.drop(columns="label") if "FIT" else frame
    DO
    return LogisticRegression().fit(x, y)
"""
MODULES = """
import configparser, optparse, unittest.mock, xml.etree.ElementTree, xml.dom.minidom, cProfile, pstats, doctest, tomllib
import asyncio, email.message, ssl, zoneinfo, graphlib, sched, shelve, tarfile, zipfile, lzma, bz2, gzip, codeop
import numpy.lib.recfunctions, numpy.matlib, scipy.fftpack, scipy.optimize.elementwise, scipy.odr, scipy.datasets
from sklearn.naive_bayes import GaussianNB
def build_model(x, y):
    return GaussianNB().fit(x, y)
"""


@needs_wall
@pytest.mark.parametrize("what", FRAMES)
def test_pandas_works_behind_the_walls(pandas_pool, table, what):
    fits = FRAMES[what].startswith("return")
    program = PROGRAM.replace("DO", FRAMES[what]).replace('"FIT"', str(fits))
    outcome = pandas_pool.score(program, *table, [0])
    assert outcome.score is not None and outcome.score > 0.7, outcome


@needs_wall
def test_modules_that_programs_import_are_there(pool, table):
    outcome = pool.score(MODULES, *table, [0])
    assert outcome.score is not None, outcome


@needs_wall
def test_a_star_import_that_is_an_error_elsewhere_is_none_here(pool, table):
    """A program that has one earns its score here; copied from here it needs the import of experimental names first."""
    star = "from sklearn.model_selection import *"
    elsewhere = subprocess.run([sys.executable, "-c", star], capture_output=True, text=True)
    assert "ImportError: HalvingGridSearchCV is experimental" in elsewhere.stderr
    assert pool.score(f"{star}\n{INNOCENT}", *table, [0]).score is not None


LOOKING = {  # at files or at the machine, which a program cannot
    "threads": "import threadpoolctl\nwith threadpoolctl.threadpool_limits(1): threadpoolctl.threadpool_info()",
    "versions": "import sklearn; sklearn.show_versions()",
    "estimators": "from sklearn.utils import all_estimators; assert NAMES <= {name for name, _ in all_estimators()}",
    "cores": "import joblib, os; assert joblib.cpu_count() == os.cpu_count() == 2",
}


@needs_wall
@pytest.mark.parametrize("what", LOOKING)
def test_what_looks_at_files_or_at_the_machine_finds_what_was_there_before_the_walls(pool, table, what):
    names = {name for name, _ in all_estimators()}  # without the experimental ones
    outcome = pool.score(body(LOOKING[what].replace("NAMES", str(names))), *table, [0])
    assert outcome.score is not None, outcome


@pytest.mark.nightly  # it reads the code of two thousand modules
def test_no_package_imports_anything_late():
    inside = Path(worker_module._INSIDE)
    command = [sys.executable, "-P", "-s", str(Path(__file__).with_name("late_imports.py")), str(inside), "pandas"]
    done = subprocess.run(command, env=worker_module._environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
