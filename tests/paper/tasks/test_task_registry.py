"""The registry agrees with itself and with the files that it names."""

import hashlib
import re

import pytest

from etpo_paper.base import paths
from etpo_paper.data.tasks import TASKS
from etpo_paper.data.tasks.generators import GENERATORS
from etpo_paper.data.tasks.registry import parse_task

PAPER = [
    ("balance-scale", 125, 4, 3),
    ("breast-w", 69, 9, 2),
    ("cmc", 1473, 9, 3),
    ("credit-g", 1000, 20, 2),
    ("diabetes", 768, 8, 2),
    ("tic-tac-toe", 95, 9, 2),
    ("eucalyptus", 641, 19, 5),
    ("pc1", 1109, 21, 2),
    ("airlines", 2000, 7, 2),
    ("jungle-chess", 2000, 6, 3),
    ("kidney-stone", 414, 6, 2),
    ("spaceship-titanic", 2000, 12, 2),
    ("pharyngitis", 512, 18, 2),
    ("health-insurance", 2000, 12, 2),
]
OPENML_IDS = [11, 15, 23, 31, 37, 50, 188, 1068, 1169, 41027]


def test_tasks_are_the_papers_in_its_order():
    assert [(s.name, s.rows, s.features, s.classes) for s in TASKS.values()] == PAPER
    assert [s.identifier for s in TASKS.values() if s.kind == "openml"] == OPENML_IDS
    assert all(name == spec.name for name, spec in TASKS.items())


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
def test_counts_and_fingerprints_fit(spec):
    for known in (spec, spec.stand_in):
        if known is None or known.class_counts is None:
            continue
        assert sum(known.class_counts) == known.rows
        assert re.fullmatch("[0-9a-f]{64}", known.sha256)
    if spec.class_counts:
        assert len(spec.class_counts) == spec.classes
    assert spec.rows <= spec.raw_rows
    assert spec.description and spec.licence and spec.files


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASKS)
def test_every_task_has_exactly_one_embedded_form(spec):
    forms = [spec.name in GENERATORS, spec.embedded is not None, spec.stand_in is not None]
    assert sum(forms) == 1
    file = spec.embedded or (spec.stand_in and spec.stand_in.file)
    assert file is None or (paths.EMBEDDED / file).is_file()


ENTRY = {
    "description": "Toy",
    "origin": {"kind": "openml", "identifier": 7, "target": "class", "raw_rows": 6},
    "table": {"rows": 5, "features": 2, "class_counts": [3, 2]},
    "licence": "CC0",
    "stand_in": {
        "title": "toy", "origin": "a package", "file": "toy.arff", "target": "y", "sha256": "0", "licence": "MIT",
        "table": {"rows": 4, "features": 2, "class_counts": [1, 3]},
    },
}  # fmt: skip


def test_an_entry_becomes_a_task():
    spec = parse_task("toy", ENTRY)
    assert (spec.origin, spec.target, spec.rows, spec.class_counts, spec.classes) == ("OpenML 7", "class", 5, (3, 2), 2)
    assert spec.files == ("toy.arff", "dataset_7_toy.arff", "7.arff")
    assert spec.stand_in.text(spec) == "stand-in for OpenML 7: toy (a package, MIT), 4 rows, 2 features, 2 classes"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"licens": "CC0"}, "unexpected keyword argument 'licens'"),
        ({"origin": {}}, "missing"),
        ({"table": ENTRY["table"] | {"rows": 6}}, "do not sum to 6 rows"),
        ({"table": ENTRY["table"] | {"classes": 3}}, "has not 3 entries"),
        ({"stand_in": ENTRY["stand_in"] | {"table": {"rows": 4, "features": 2, "class_counts": [3]}}}, "sum to 4 rows"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=f"tasks.yaml, task toy: .*{message}"):
        parse_task("toy", ENTRY | change)


def test_six_tasks_have_a_stand_in_that_names_itself():
    named = {name for name, spec in TASKS.items() if spec.stand_in}
    kaggle = {name for name, spec in TASKS.items() if spec.kind != "openml"}
    assert named == kaggle | {"eucalyptus", "airlines"}
    for name in named:
        spec = TASKS[name]
        text = spec.stand_in.text(spec)
        assert text.startswith(f"stand-in for {spec.origin}: ") and spec.stand_in.licence in text
        assert "\n" not in text


def test_fingerprints_differ():
    sums = [k.sha256 for s in TASKS.values() for k in (s, s.stand_in) if k and k.sha256]
    assert len(sums) == len(set(sums)) == 19


def test_notice_describes_each_embedded_file():
    notice = (paths.EMBEDDED / "NOTICE.md").read_text()
    tables = [p for p in paths.EMBEDDED.iterdir() if p.suffix in (".arff", ".csv")]
    assert len(tables) == 11
    for path in tables:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (line,) = [line for line in notice.splitlines() if line.startswith(f"| {path.name} |")]
        assert f"`{digest[:16]}`" in line
        assert path.stat().st_size < 400_000
