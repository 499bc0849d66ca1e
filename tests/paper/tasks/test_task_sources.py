"""Local files, the order of sources, damaged embedded tables and the `data` stage."""

import csv
import logging
import shutil
import sys

import numpy as np
import pytest
from task_helpers import HEALTH, KIDNEY, one_line

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.data.tasks import TASKS, load_task, prepare_task, sources, weka
from etpo_paper.data.tasks.sources import read_arff
from pipeline import data as stage


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """A copy of the embedded tables to damage."""
    monkeypatch.setattr(paths, "EMBEDDED", shutil.copytree(paths.EMBEDDED, tmp_path / "embedded"))
    return paths.EMBEDDED


def test_missing_embedded_file(embedded):
    (embedded / "pc1.arff").unlink()
    with pytest.raises(UserError) as caught:
        prepare_task("pc1")
    one_line(caught, "task pc1", embedded / "pc1.arff", "no such file", "restore")


@pytest.mark.parametrize(
    "name, file, size, part",
    [
        ("pc1", "pc1.arff", 40_000, "expected an ARFF file"),  # within a line
        ("pc1", "pc1.arff", 0, "expected an ARFF file"),
        ("pharyngitis", "cleveland.csv", 0, "expected a CSV file"),
        ("pharyngitis", "cleveland.csv", 9_000, "expected rows 297, found "),
    ],
)
def test_truncated_embedded_file(embedded, name, file, size, part):
    path = embedded / file
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError) as caught:
        prepare_task(name)
    one_line(caught, path, part, "restore the file")


def test_embedded_file_cut_at_a_line(embedded):
    path = embedded / "pc1.arff"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(UserError) as caught:
        prepare_task("pc1")
    one_line(caught, "expected 1109 rows, found 1108")


@pytest.mark.parametrize(
    "name, file", [("pc1", "pc1.arff"), ("airlines", "nycflights13.arff"), ("kidney-stone", "urine.csv")]
)
def test_changed_embedded_cell(embedded, name, file):
    path = embedded / file
    head, _, tail = path.read_text().rpartition("5")
    path.write_text(head + "6" + tail)
    with pytest.raises(UserError) as caught:
        prepare_task(name)
    one_line(caught, path, "expected sha256", "found", "restore")


def test_binary_embedded_file(embedded):
    for file, name in (("pc1.arff", "pc1"), ("urine.csv", "kidney-stone")):
        (embedded / file).write_bytes(bytes(range(256)) * 10)
        with pytest.raises(UserError) as caught:
            prepare_task(name)
        one_line(caught, file, "expected a")


def test_read_arff(tmp_path):
    path = tmp_path / "t.arff"
    path.write_text(
        "% comment\n@RELATION t\n@ATTRIBUTE 'a b' {'no way',yes}\n@attribute k {hit,miss}\n@ATTRIBUTE v(g) REAL\n"
        "@DATA\n'no way',miss,1.5\nyes,hit,?\n?,hit,-2\n"
    )
    x, y, columns = read_arff(path, "k")
    assert columns == ("a b", "v(g)")
    assert np.array_equal(x, [[0, 1.5], [1, np.nan], [np.nan, -2]], equal_nan=True)
    assert y.tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="no column z"):
        read_arff(path, "z")


def test_a_whole_number_column_keeps_its_fractions(tmp_path):
    path = tmp_path / "t.arff"
    path.write_text(
        "@relation t\n@attribute v INTEGER [0,9]\n@attribute w integer\n@attribute k {a}\n@data\n3.7,-2,a\n"
    )
    assert read_arff(path, "k")[0].tolist() == [[3.7, -2]]


def test_a_nominal_value_that_is_declared_twice_is_refused(tmp_path):
    path = tmp_path / "t.arff"
    path.write_text("@relation t\n@attribute v {red, 'a b', 'a b'}\n@attribute k {a,b}\n@data\nred,a\n")
    with pytest.raises(ValueError, match="column v declares the value a b twice"):
        read_arff(path, "k")


def test_a_class_that_sparse_rows_do_not_name_is_reported(tmp_path, caplog):
    path = tmp_path / "t.arff"
    rows = "{0 2, 2 b}\n{0 1}\n{1 ' 2 b,'}\n{}\n{2 b}\n1,x,a\n"
    path.write_text(f"@relation t\n@attribute v real\n@attribute w {{x,' 2 b,'}}\n@attribute k {{a,b}}\n@data\n{rows}")
    with caplog.at_level(logging.WARNING):
        x, y, _ = read_arff(path, "k")
    assert y.tolist() == [1, 0, 0, 0, 1, 0] and x.tolist() == [[2, 0], [1, 0], [0, 1], [0, 0], [0, 0], [1, 0]]
    assert caplog.messages == [f"{path}: 3 sparse rows do not name k, which is the first declared value then"]


def of_rows(edit):
    """An edit of the rows of an ARFF text, from one of a single row."""

    def edited(text):
        head, mark, rows = text.partition("@data\n")
        return head + mark + "".join(f"{edit(row)}\n" for row in rows.splitlines())

    return edited


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace(" numeric", " real [0,900]"),
        lambda text: text.replace(" numeric", " INTEGER [0, 900] % between {0} and 900", 1),
        lambda text: text.replace(" numeric", " real (0,900]", 1).replace(" numeric", " numeric [0,900)", 1),
        lambda text: text.replace(" numeric", " numeric {0.5}"),
        lambda text: text.replace("}\n", "} % the class, not a {type}\n", 1),
        lambda text: text.replace("class {", "class{"),
        lambda text: text.replace("class {", "'class'{"),
        lambda text: text.replace("class {", "Class {"),
        lambda text: text.replace("class {", "'class ' {"),
        lambda text: text.replace("{tested_negative,tested_positive}", "{ 'tested_negative' ,\t\"tested_positive\" }"),
        lambda text: text.replace("tested_negative", "'tested\\'s % {negative}, x'"),
        lambda text: text.replace(" ", "\t").replace("@", "\t@").replace("@data", "@DATA \t% rows"),
        lambda text: text.replace("@relation diabetes", "@relation pima-weka.filters{a, b} % of Weka"),
        of_rows(lambda row: f"{row}, {{1.5}}"),
        of_rows(lambda row: f"{row},{{2}} % a weight"),
        of_rows(lambda row: f"{row} % don't, \"or"),
        of_rows(lambda row: f"{row}, {{2}}% 'quoted' and \"quoted\" % again"),
        of_rows(lambda row: row.replace(",", "\t")),
        of_rows(lambda row: row.replace("tested", "'tested").replace("tive", "tive'").replace(",", " \t")),
        of_rows(lambda row: "{" + ", ".join(f"{i} {cell}" for i, cell in enumerate(row.split(","))) + "}, {2}"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n").encode("utf-16"),
        lambda text: f"% Universit\xe9\n{text}".encode("latin-1"),
    ],
)
def test_arff_as_weka_has_it(tmp_path, edit):
    text = (paths.EMBEDDED / "diabetes.arff").read_text()
    text = edit(text)
    (tmp_path / "diabetes.arff").write_bytes(text if isinstance(text, bytes) else text.encode())
    task = prepare_task("diabetes", ("local",), tmp_path)
    assert task.sha256 == TASKS["diabetes"].sha256
    assert task.columns == ("preg", "plas", "pres", "skin", "insu", "mass", "pedi", "age")


def test_of_two_columns_that_differ_in_case_the_exact_one_is_the_target(tmp_path):
    path = tmp_path / "t.arff"
    path.write_text("@relation t\n@attribute Class {a,b}\n@attribute class {a,b}\n@data\na,b\nb,b\n")
    assert read_arff(path, "class")[1].tolist() == [1, 1]
    with pytest.raises(ValueError, match="no column CLASS"):
        read_arff(path, "CLASS")


def test_local_openml_file(tmp_path):
    for place in ("credit-g.arff", "credit-g/dataset_31_credit-g.arff", "31/31.arff"):
        folder = tmp_path / place.replace("/", "_")
        (folder / place).parent.mkdir(parents=True)
        shutil.copy(paths.EMBEDDED / "credit-g.arff", folder / place)
        task = prepare_task("credit-g", ("local",), folder)
        assert (task.source, task.stand_in, task.sha256) == ("local", None, TASKS["credit-g"].sha256)


@pytest.mark.parametrize("place", ["kidney-stone/train.csv", "playground-series-s3e12/train.csv", "kidney_stone.csv"])
def test_local_competition_file(small_kaggle, tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(KIDNEY)
    task = prepare_task("kidney-stone", ("local",), tmp_path)
    assert task.x[:, 0].tolist() == [1.5, 1.25, 1.75, 1, 2] and task.y.tolist() == [0, 1, 0, 1, 0]
    assert task.stand_in is None and task.columns == ("gravity",)


def test_local_dataset_file(small_kaggle, tmp_path):
    (tmp_path / "Health Insurance Lead Prediction Raw Data.csv").write_text(HEALTH)
    task = prepare_task("health-insurance", ("local",), str(tmp_path))
    assert task.x.tolist() == [[1, 2], [0, 3], [2, 1], [1, 2], [0, 0]]  # C10 < C3 < C5; 9 < 32 < 36 < 75
    assert task.y.tolist() == [0, 0, 1, 1, 0]


def test_bare_train_csv_is_not_guessed_at(small_kaggle, tmp_path):
    (tmp_path / "train.csv").write_text(KIDNEY)
    with pytest.raises(UserError) as caught:
        prepare_task("kidney-stone", ("local",), tmp_path)
    one_line(caught, tmp_path, "expected kidney-stone/train.csv", "Kaggle playground-series-s3e12")


@pytest.mark.parametrize(
    "text, part",
    [
        (KIDNEY.replace("5,2,0\n", ""), "expected 6 rows, found 5"),
        (KIDNEY.replace("target", "result"), "no column target"),
        (KIDNEY.replace("id,", "key,"), "expected the columns of Kaggle playground-series-s3e12"),
        (KIDNEY.replace("1.75", "heavy"), "expected the columns of Kaggle playground-series-s3e12"),
        (KIDNEY.replace("4,1,1", "4,1,0"), "expected class counts (3, 2), found (4, 1)"),
        ("", "expected a CSV file"),
    ],
)
def test_bad_local_file(small_kaggle, tmp_path, text, part):
    path = tmp_path / "kidney_stone.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        prepare_task("kidney-stone", ("local",), tmp_path)
    one_line(caught, path, part, "download the file again")


def test_wrong_local_table_of_the_right_shape(tmp_path):
    spec = TASKS["kidney-stone"]
    with open(tmp_path / "kidney_stone.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", *"abcdef", "target"])
        rows.writerows([i, *range(6), int(i >= spec.class_counts[0])] for i in range(spec.raw_rows))
    with pytest.raises(UserError) as caught:
        prepare_task("kidney-stone", ("local",), tmp_path)
    one_line(caught, f"expected sha256 {spec.sha256}, found ")


def test_next_source_is_tried_and_the_failure_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        task = prepare_task("cmc", ("local", "embedded"), tmp_path)
    assert task.source == "embedded"
    assert "taken from source embedded, because local: " in caplog.text and "cmc.arff" in caplog.text


@pytest.mark.parametrize(("package", "name"), [("openml", "cmc"), ("kagglehub", "kidney-stone")])
@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "import configparser\nconfigparser.ConfigParser().read_string('[a]\\napikey abc')",
            "ParsingError: Source contains parsing errors",
        ),
        ("open('/proc/nowhere/config', 'w')", "FileNotFoundError: "),
        ("raise ImportError", "ImportError: no reason given"),
    ],
)
def test_next_source_is_tried_where_a_package_cannot_be_imported(
    tmp_path, monkeypatch, caplog, package, name, text, part
):
    (tmp_path / f"{package}.py").write_text(text)
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert prepare_task(name, ("online", "embedded")).source == "embedded"
    (record,) = caplog.records
    line = record.getMessage()
    assert f"because online: the package {package} cannot be imported ({part}" in line and "\n" not in line
    assert "mend its settings in your home folder" in line


def test_next_source_is_tried_where_a_disk_fails(tmp_path, monkeypatch, caplog):
    def denied(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setitem(sources.SOURCES, "local", denied)
    with caplog.at_level(logging.WARNING):
        assert prepare_task("cmc", ("local", "embedded"), tmp_path).source == "embedded"
    assert f"because local: [Errno 13] Permission denied: '{tmp_path}'" in caplog.text


def test_all_sources_fail_in_one_line(embedded, tmp_path):
    (embedded / "cmc.arff").unlink()
    with pytest.raises(UserError) as caught:
        prepare_task("cmc", ("embedded", "local"), tmp_path / "nowhere")
    one_line(caught, "task cmc: no source gave its table", "embedded: ", " | local: ", "no such folder")


def test_bad_arguments(tmp_path):
    for given, part in (
        (("iris",), "unknown task 'iris'"),
        (("cmc", ("web",)), "unknown data source 'web'"),
        (("cmc", ()), "no data source given"),
        (("cmc", ("local",)), "set `local_folder`"),
    ):
        with pytest.raises(UserError) as caught:
            prepare_task(*given)
        one_line(caught, part)


def test_stage_writes_all_tables(tmp_path, capsys):
    stage.main(["--sources", "embedded", "--out", str(tmp_path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{n}.{s}" for n in TASKS for s in ("csv", "json"))
    assert load_task("eucalyptus", tmp_path).stand_in
    assert "14 tables in" in (out := capsys.readouterr().out) and "6 are stand-ins" in out


def test_stage_one_task_and_errors(tmp_path, capsys):
    stage.main(["--sources", "embedded", "--task", "cmc", "--out", str(tmp_path)])
    assert {p.name for p in tmp_path.iterdir()} == {"cmc.csv", "cmc.json"}
    with pytest.raises(SystemExit) as stopped:
        stage.main(["--sources", "local", "--local-folder", str(tmp_path / "no"), "--task", "cmc"])
    assert stopped.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "task cmc: no source gave its table" in errors[0]


@pytest.mark.parametrize(
    ("row", "plain"),
    [
        ("'a, b' 1 \"100 %\" % don't", "'a, b',1,\"100 %\""),
        ("1,'50 % of it',neg % don't", "1,'50 % of it',neg"),
        ("1,'it\\'s',neg% x", "1,'it\\'s',neg"),
        ("% don't", ""),
        ("'a b'", "'a b'"),
        ("1, 'a b', 2", "1, 'a b', 2"),
        ("{1 'a b', 3 x}", "{1 'a b', 3 x}"),
        ("1 o'clock 2 % x", "1 o'clock 2 % x"),  # a quote that does not end is for the parser to refuse
    ],
)
def test_a_row_as_weka_has_it(row, plain):
    assert list(weka.plain_lines(["@data", row])) == ["@data", plain]
