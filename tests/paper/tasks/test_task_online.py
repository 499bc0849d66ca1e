"""The online source against servers on loopback that speak the real protocols. Nothing here reaches outside."""

import dataclasses
import hashlib
import os

import pytest
from task_helpers import HEALTH, KIDNEY, one_line

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.data.tasks import TASKS, prepare_task
from etpo_paper.data.tasks.generators import GENERATORS


def online(name):
    return prepare_task(name, ("online",))


def arff(name):
    """The raw table of an exactly embedded task, as OpenML would serve it."""
    spec = TASKS[name]
    if spec.embedded:
        return (paths.EMBEDDED / spec.embedded).read_text()
    x, y, columns = GENERATORS[name]()
    head = [f"@attribute '{column}' numeric" for column in columns]
    head.append(f"@attribute {spec.target} {{{','.join(map(str, range(spec.classes)))}}}")
    rows = [",".join(map(str, map(int, row))) + f",{label}" for row, label in zip(x, y, strict=True)]
    return "\n".join(["@relation t", *head, "@data", *rows]) + "\n"


EXACT = [n for n, s in TASKS.items() if s.stand_in is None]


@pytest.mark.parametrize("name", EXACT)
def test_openml_table_is_the_embedded_one(openml_server, name):
    spec = TASKS[name]
    openml_server.datasets[spec.identifier] = arff(name)
    task = online(name)
    assert (task.source, task.stand_in, task.sha256) == ("online", None, spec.sha256)
    assert openml_server.requests == [f"/api/v1/xml/data/{spec.identifier}", f"/download/{spec.identifier}"]


def test_openml_spelled_out_labels_give_the_same_codes(openml_server):
    text = arff("credit-g").replace("A14,", "'no checking',").replace("A14}", "'no checking'}")
    text = text.replace("A11", "'<0'").replace("A410", "other")
    openml_server.datasets[31] = text
    assert online("credit-g").sha256 == TASKS["credit-g"].sha256


def test_openml_second_time_comes_from_the_cache(openml_server):
    openml_server.datasets[11] = arff("balance-scale")
    online("balance-scale")
    openml_server.close()
    assert online("balance-scale").sha256 == TASKS["balance-scale"].sha256


def test_openml_unknown_number(openml_server):
    with pytest.raises(UserError) as caught:
        online("cmc")
    one_line(caught, "task cmc", "OpenML did not give 23", "Unknown dataset", "source embedded or local")


def test_openml_server_down(openml_server):
    openml_server.close()
    with pytest.raises(UserError) as caught:
        online("cmc")
    one_line(caught, "OpenML did not give 23", "ConnectionError", "check the network")


def test_openml_checksum(openml_server):
    openml_server.datasets[23] = arff("cmc")
    openml_server.md5[23] = "0" * 32
    with pytest.raises(UserError) as caught:
        online("cmc")
    one_line(caught, "OpenML did not give 23", "Checksum")


@pytest.mark.parametrize(
    "edit, part",
    [
        (lambda text: text[: len(text) // 2 + 1], "expected an ARFF file"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "expected 1473 rows, found 1472"),
        (lambda text: text.replace("\n24,2,", "\n25,2,", 1), "expected sha256"),
        (lambda text: text.replace("Contraceptive_method_used", "method"), "no column Contraceptive_method_used"),
        (lambda text: "<html>busy</html>", "expected an ARFF file"),
    ],
    ids=["cut in a line", "cut at a line", "changed cell", "other target", "not ARFF"],
)
def test_openml_wrong_file(openml_server, edit, part):
    openml_server.datasets[23] = edit(arff("cmc"))
    with pytest.raises(UserError) as caught:
        online("cmc")
    one_line(caught, "task cmc", part, "delete that cached file and try again")


def test_openml_settings_are_put_back(openml_server, monkeypatch):
    import openml

    monkeypatch.delenv("OPENML_SKIP_PARQUET", raising=False)
    openml.config.set_retry_policy("robot", 7)
    with pytest.raises(UserError):
        online("cmc")
    assert (openml.config.retry_policy, openml.config.connection_n_retries) == ("robot", 7)
    assert "OPENML_SKIP_PARQUET" not in os.environ
    openml.config.set_retry_policy("human")


def test_kaggle_competition(kaggle_server, small_kaggle):
    kaggle_server.files["playground-series-s3e12"] = ("train.csv", KIDNEY)
    task = online("kidney-stone")
    assert task.x[:, 0].tolist() == [1.5, 1.25, 1.75, 1, 2] and task.y.tolist() == [0, 1, 0, 1, 0]
    assert task.source == "online" and task.stand_in is None
    assert kaggle_server.requests == ["DownloadDataFiles"]


def test_kaggle_dataset(kaggle_server, small_kaggle):
    spec = TASKS["health-insurance"]
    kaggle_server.files[spec.identifier] = (spec.files[0], HEALTH)
    task = online("health-insurance")
    assert task.x.tolist() == [[1, 2], [0, 3], [2, 1], [1, 2], [0, 0]]
    assert kaggle_server.requests == ["GetDataset", "DownloadDataset"]


def test_kaggle_wrong_content(kaggle_server, small_kaggle, monkeypatch):
    expected = hashlib.sha256(b"the paper's").hexdigest()
    monkeypatch.setitem(TASKS, "kidney-stone", dataclasses.replace(TASKS["kidney-stone"], sha256=expected))
    kaggle_server.files["playground-series-s3e12"] = ("train.csv", KIDNEY)
    with pytest.raises(UserError) as caught:
        online("kidney-stone")
    one_line(caught, "train.csv", f"expected sha256 {expected}, found ", "delete that cached file")


def test_kaggle_truncated_table(kaggle_server):
    kaggle_server.files["playground-series-s3e12"] = ("train.csv", KIDNEY)
    with pytest.raises(UserError) as caught:
        online("kidney-stone")
    one_line(caught, "train.csv", "expected 414 rows, found 6")


def test_kaggle_other_file_name(kaggle_server):
    kaggle_server.files["playground-series-s3e12"] = ("sample.csv", KIDNEY)
    with pytest.raises(UserError) as caught:
        online("kidney-stone")
    one_line(caught, "expected the file train.csv", "Kaggle playground-series-s3e12")


@pytest.mark.parametrize("name", ["kidney-stone", "pharyngitis"])
def test_kaggle_unknown_handle(kaggle_server, name):
    with pytest.raises(UserError) as caught:
        online(name)
    one_line(caught, f"Kaggle did not give {TASKS[name].identifier}", "404", "or use source local")


def test_kaggle_refuses(kaggle_server):
    kaggle_server.status = 403
    with pytest.raises(UserError) as caught:
        online("spaceship-titanic")
    one_line(caught, "Kaggle did not give spaceship-titanic", "accept the rules on Kaggle")


def test_kaggle_without_account(kaggle_home, monkeypatch):
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(UserError) as caught:
        online("kidney-stone")
    one_line(caught, "Kaggle did not give playground-series-s3e12", "set KAGGLE_USERNAME and KAGGLE_KEY")


def test_kaggle_server_down(kaggle_server):
    kaggle_server.close()
    with pytest.raises(UserError) as caught:
        online("pharyngitis")
    one_line(caught, "Kaggle did not give yoshifumimiya/pharyngitis", "ConnectionError", "check the network")
