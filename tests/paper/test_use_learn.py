"""Training in an environment of one's own, with the toy model as a model of one's own."""

import json

import pytest
from test_use_runs import etpo, here  # noqa: F401  fixtures

from etpo_core.errors import UserError
from etpo_paper.environment.sql import Sql
from etpo_paper.model import loading, models
from etpo_paper.use.learn import learn

TABLES = "CREATE TABLE towns (name TEXT, people INTEGER); INSERT INTO towns VALUES ('Ulm', 126), ('Bonn', 330);"
SIZES = {"environments": 4, "max_new_tokens": 8, "model": "tiny", "steps": 12}


def queries():
    return Sql(TABLES, "Which towns have more than 200?", "SELECT name FROM towns WHERE people > 200", max_steps=2)


def test_a_run_in_an_environment_of_ones_own_leaves_what_every_run_leaves(etpo, here):  # noqa: F811
    run = learn(queries, here / "sql", name="sql-1", **SIZES)
    assert len((run.folder / "steps.csv").read_text().splitlines()) == 13
    card = json.loads(run.card.read_text())
    assert card["data"]["source"] == "environment sql-1" and card["status"] == "finished" and "on_policy" in card
    assert (run.policy / "adapter_config.json").is_file() and not run.state.exists()
    before = run.card.read_bytes()
    learn(queries, here / "sql", name="sql-1", **SIZES)
    assert run.card.read_bytes() == before


def test_a_run_under_another_name_begins_anew_and_loses_nothing(etpo, here, capsys):  # noqa: F811
    first = learn(queries, here / "named", name="sql-1", **SIZES)
    learn(queries, here / "named", name="sql-2", **SIZES)
    assert (first.folder.with_name("run.before-1") / "steps.csv").is_file()
    assert "begins anew" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", "a/b", ".x"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(UserError, match="expected the name of an environment"):
        learn(queries, "nowhere", name=name)


def test_a_model_of_ones_own_writes_texts_that_end_with_its_end_token_alone(etpo, here):  # noqa: F811
    models.model("tiny")
    learn(queries, here / "own", name="sql-1", **SIZES | {"model": str(loading.MODELS / "tiny")})
    (card,) = (loading.MODELS / "own").glob("*/card.json")
    assert json.loads(card.read_text())["stops"] is False
