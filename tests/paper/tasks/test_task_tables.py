"""All fourteen tasks from the embedded source, on disk and back, and what a damaged table says."""

import dataclasses
import hashlib
import json
import shutil
import time

import numpy as np
import pytest
from task_helpers import one_line

from etpo_core.errors import UserError
from etpo_core.sandbox.scoring import make_split
from etpo_paper.base import paths
from etpo_paper.base.settings import load_defaults
from etpo_paper.data.tasks import TASKS, load_task, prepare_task, save_task
from etpo_paper.data.tasks.table import canonical, fingerprint, make_task


@pytest.fixture(scope="module")
def prepared():
    return {name: prepare_task(name) for name in TASKS}


@pytest.fixture(scope="module")
def folder(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    for task in prepared.values():
        save_task(task, folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    """A folder of prepared tables to damage."""
    return shutil.copytree(folder, tmp_path / "tables")


@pytest.mark.parametrize("name", TASKS)
def test_embedded_task(prepared, name):
    task, spec = prepared[name], TASKS[name]
    known = spec.stand_in or spec
    assert task.x.shape == (known.rows, known.features) == (task.rows, task.features)
    assert task.x.dtype == np.float64 and task.y.dtype == np.int64
    assert np.isfinite(task.x).all()
    assert set(task.y) == set(range(len(known.class_counts)))
    assert task.class_counts == known.class_counts
    assert len(task.columns) == task.features
    assert task.source == "embedded"
    assert (task.stand_in is None) == (spec.stand_in is None)
    assert task.rows <= 2000


@pytest.mark.parametrize("name", TASKS)
def test_no_half_of_a_split_lacks_a_class(prepared, name):
    """So no reward depends on what a class that is absent from a half is worth, which the paper does not say."""
    task, settings = prepared[name], load_defaults()
    for seed in (*settings.environment.split_seeds, *settings.evaluation.held_out_seeds):
        split = make_split(task.x, task.y, seed)
        assert set(split.y_train) == set(split.y_test) == set(task.y)


@pytest.mark.parametrize("name", TASKS)
def test_disk_round_trip_is_exact(prepared, folder, name):
    task, back = prepared[name], load_task(name, folder)
    assert back.x.tobytes() == task.x.tobytes() and back.y.tobytes() == task.y.tobytes()
    assert back.x.flags.c_contiguous and back.x.dtype == np.float64 and back.y.dtype == np.int64
    for field in ("spec", "columns", "source", "stand_in", "sha256"):
        assert getattr(back, field) == getattr(task, field)


def test_files_are_byte_stable(folder, copy):
    for name in TASKS:
        save_task(load_task(name, folder), copy)
        for suffix in (".csv", ".json"):
            assert (copy / f"{name}{suffix}").read_bytes() == (folder / f"{name}{suffix}").read_bytes()


def test_fingerprint_is_that_of_the_file_below_its_header(folder):
    _, _, body = (folder / "pc1.csv").read_bytes().partition(b"\n")
    assert hashlib.sha256(body).hexdigest() == TASKS["pc1"].sha256


def test_canonical_text():
    x = np.array([[1.0, 0.1, -0.0], [1e20, -2.5, 123456789.0]])
    assert canonical(x, np.array([0, 1])) == b"1,0.1,0,0\n1e+20,-2.5,123456789,1\n"
    assert fingerprint(x, np.array([0, 1])) != fingerprint(x[::-1], np.array([0, 1]))


def test_note_names_source_and_stand_in(folder):
    note = json.loads((folder / "airlines.json").read_text())
    assert note["stand_in"].startswith("stand-in for OpenML 1169")
    assert note["licence"] == "CC0" and note["rows"] == 2000 and sum(note["class_counts"]) == 2000
    assert json.loads((folder / "cmc.json").read_text())["stand_in"] is None


def test_loading_is_fast(folder):
    load_task("jungle-chess", folder)
    best = min(_seconds(folder) for _ in range(5))
    assert best < 0.05


def _seconds(folder):
    start = time.perf_counter()
    load_task("jungle-chess", folder)
    return time.perf_counter() - start


def test_default_folder(folder, monkeypatch):
    monkeypatch.setattr(paths, "TABLES", folder)
    assert load_task("cmc").rows == 1473


def test_unknown_task(folder):
    with pytest.raises(UserError) as caught:
        load_task("iris", folder)
    one_line(caught, "unknown task 'iris'", "balance-scale")


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_missing_file(copy, suffix):
    (copy / f"cmc{suffix}").unlink()
    with pytest.raises(UserError) as caught:
        load_task("cmc", copy)
    one_line(caught, f"cmc{suffix}", "python -m pipeline.data")


def change(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def test_changed_cell(copy):
    change(copy / "cmc.csv", b"\n2", b"\n3")
    with pytest.raises(UserError) as caught:
        load_task("cmc", copy)
    one_line(caught, "cmc.csv", f"expected sha256 {TASKS['cmc'].sha256}, found ", "python -m pipeline.data")


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_truncated_table(copy, size):
    path = copy / "cmc.csv"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError) as caught:
        load_task("cmc", copy)
    one_line(caught, "cmc.csv", "sha256", "python -m pipeline.data")


def resign(folder, name):
    """Makes the note fit the damaged table, so that only the registry can tell."""
    path = folder / f"{name}.json"
    note = json.loads(path.read_text())
    _, _, body = (folder / f"{name}.csv").read_bytes().partition(b"\n")
    note["sha256"] = hashlib.sha256(body).hexdigest()
    path.write_text(json.dumps(note))


def test_changed_cell_with_a_matching_note(copy):
    change(copy / "cmc.csv", b"\n2", b"\n3")
    resign(copy, "cmc")
    with pytest.raises(UserError) as caught:
        load_task("cmc", copy)
    one_line(caught, "expected sha256", "cmc.csv")


def test_lost_row_with_a_matching_note(copy):
    path = copy / "cmc.csv"
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:-2]) + b"\n")
    resign(copy, "cmc")
    with pytest.raises(UserError) as caught:
        load_task("cmc", copy)
    one_line(caught, "expected rows 1473, found 1472")


def test_text_in_the_table(copy):
    change(copy / "cmc.csv", b"\n2", b"\nx")
    resign(copy, "cmc")
    with pytest.raises(UserError) as caught:
        load_task("cmc", copy)
    one_line(caught, "expected a table of numbers")


@pytest.mark.parametrize("old, new", [(b"target", b"class"), (b"Wifes_age,", b"")])
def test_bad_header(copy, old, new):
    change(copy / "cmc.csv", old, new)
    with pytest.raises(UserError) as caught:
        load_task("cmc", copy)
    one_line(caught, "expected 9 column names and `target`")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_bad_note(copy, text):
    (copy / "cmc.json").write_text(text)
    with pytest.raises(UserError) as caught:
        load_task("cmc", copy)
    one_line(caught, "cmc.json", "JSON note")


def test_stand_in_cannot_pass_as_the_papers_table(copy):
    path = copy / "kidney-stone.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stand_in": None}))
    with pytest.raises(UserError) as caught:
        load_task("kidney-stone", copy)
    one_line(caught, "expected rows 414, found 77")


def test_undeclared_stand_in(copy):
    path = copy / "cmc.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stand_in": "another table"}))
    with pytest.raises(UserError) as caught:
        load_task("cmc", copy)
    one_line(caught, "not the one declared for cmc")


def test_make_task_without_known_fingerprint_checks_the_rest():
    spec = dataclasses.replace(TASKS["airlines"], rows=4, features=1)
    x, y = np.arange(4.0)[:, None], np.array([0, 1, 0, 1])

    def make(x, y):
        return make_task(spec, x, y, ("a",), "online", None, "FILE", "CURE")

    assert make(x, y).stand_in is None
    for bad_x, bad_y, part in (
        (x[:3], y[:3], "expected rows 4, found 3"),
        (np.hstack([x, x]), y, "expected feature columns 1, found 2"),
        (x, np.zeros(4, int), "expected 2 classes, found 1"),
        (x * np.nan, y, "expected only finite numbers"),
        (x[:0], y[:0], "at least one row"),
    ):
        with pytest.raises(UserError) as caught:
            make(bad_x, bad_y)
        one_line(caught, "FILE", part, "CURE")
