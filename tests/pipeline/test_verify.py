"""`make verify` on a small made-up root: it holds what is true and says where a lie stands."""

import json
import shutil

import fixtures_results as fixtures
import pandas as pd
import pytest
import yaml

from etpo_core.errors import UserError
from etpo_paper.report import claims
from pipeline import verify

STEPS = "results/smoke/etpo/kidney-stone/seed0/steps.csv"
TEXT = "The result.\n\nETPO's first run ends\nwith {:.3f} here.\n"


@pytest.fixture
def root(tmp_path, at):
    """A root with synthetic results, one page that states a number of them, and the claim about it."""
    root = fixtures.make_root(tmp_path / "root")
    fixtures.make_results(root)
    at(root)
    claims.forget()
    entry = {
        "id": "one",
        "file": "page.md",
        "text": "first run ends with {} here",
        "found": [["last_fifth", "smoke", "etpo", "kidney-stone", 0]],
        "command": "python -m pipeline.matrix --scale smoke",
    }
    (root / "claims.yaml").write_text(yaml.safe_dump([entry]))
    (root / "page.md").write_text(TEXT.format(claims.last_fifth("smoke", "etpo", "kidney-stone", 0)))
    yield root
    claims.forget()


def lines(root):
    claims.forget()
    return claims.check(claims.load(root)[0], root)


def test_true_claim_is_held(root):
    assert lines(root) == []


def test_changed_digit_is_located(root):
    value = claims.last_fifth("smoke", "etpo", "kidney-stone", 0)
    (root / "page.md").write_text(TEXT.format(value + 0.001))
    (line,) = lines(root)
    assert f"NOT HELD: stated {value + 0.001:.3f}, found {value:.5f}, page.md:4" in line


def test_changed_row_of_a_raw_file_is_located(root):
    steps = pd.read_csv(root / STEPS, dtype=object, keep_default_na=False)
    steps.loc[steps.index[-1], "reward"] = "0.123"
    steps.to_csv(root / STEPS, index=False)
    (line,) = lines(root)
    assert "NOT HELD" in line and "page.md:4" in line


GOOD = {"id": "one", "file": "page.md", "text": "ends with {} here", "command": ""}
CALL = ["last_fifth", "smoke", "etpo", "kidney-stone", 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- [", "claims.yaml is not valid YAML: .* line 1, column 4.*; correct it there"),
        ("", "claims.yaml: expected a list of claims with the fields command, file, found, id, text"),
        (
            [GOOD | {"found": [CALL], "tims": 2}],
            "unknown field 'tims' in claim one of claims.yaml; did you mean 'times'",
        ),
        ([GOOD | {"found": ["last_fifth"]}], "claim one: got 'last_fifth', expected a list: a function and its argum"),
        ([GOOD | {"found": [["last_fith"]]}], "unknown function 'last_fith' in claim one of .*mean 'last_fifth'"),
        ([GOOD | {"found": [["iqm", "smoke"]]}], r"one: got \['iqm', 'smoke'\], expected 2 arguments: scale, method"),
    ],
)
def test_a_mistake_in_claims_yaml_is_one_line(root, text, message):
    (root / "claims.yaml").write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    with pytest.raises(UserError, match=message) as caught:
        claims.load(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "paeg.md"}, "one: NOT HELD: paeg.md is missing; restore it with git or correct claims.yaml"),
        ({"found": [["ends", "smoke", "ppo_kl", "iqn"]]}, "unknown column 'iqn'; choose one of: "),
        ({"found": [["ends", "smok", "ppo_kl", "iqm"]]}, "no raw results in "),
    ],
)
def test_what_a_claim_names_but_is_not_there_is_told(root, change, message):
    entry = yaml.safe_load((root / "claims.yaml").read_text())[0]
    (root / "claims.yaml").write_text(yaml.safe_dump([entry | change]))
    (line,) = lines(root)
    assert message in line and "\n" not in line


def test_fragment_that_is_gone_is_told(root):
    (root / "page.md").write_text("Nothing.\n")
    assert lines(root) == ["one: NOT HELD: its text occurs 0 times instead of once in page.md"]


def test_missing_raw_file_is_one_line_that_says_what_to_do(root):
    (root / STEPS).unlink()
    (line,) = lines(root)
    assert "steps.csv is missing" in line and "run again" in line and "\n" not in line


def test_claim_of_a_notebook_and_of_its_index_is_checked_against_a_committed_table(root):
    table = root / "figures" / "smoke" / "one" / "table.csv"
    table.parent.mkdir(parents=True)
    table.write_text("method,score,note\na,0.25,\na,0.75,\nb,0.125,known\n")
    first, second = root / "first.ipynb", root / "second.ipynb"
    for path, score in ((first, "0.50"), (second, "0.51")):
        cells = [("markdown", "# Title"), ("code", "a is 7"), ("markdown", f"Here\na is {score} in 2 rows")]
        path.write_text(json.dumps({"cells": [{"cell_type": kind, "source": [text]} for kind, text in cells]}))
    entry = {
        "id": "one",
        "file": "first.ipynb",
        "text": "a is {} in {} rows",
        "found": [["drawn", "smoke/one/table.csv", "score", {"method": "a"}]],
        "command": "",
    }
    entry["found"].append(["rows_drawn", "smoke/one/table.csv", {"note": None}])
    (root / "claims.yaml").write_text(yaml.safe_dump([entry]))
    assert lines(root) == []
    (root / "claims.yaml").write_text(yaml.safe_dump([entry | {"also": ["second.ipynb"]}]))
    (line,) = lines(root)
    assert line.startswith("one: NOT HELD: stated 0.51, found 0.5000, second.ipynb:Markdown cell 2:2; its raw files ")
    table.unlink()
    (line, *_) = lines(root)
    assert "table.csv is missing; restore it" in line


def test_the_exit_status_says_whether_all_is_held(root, capsys):
    with pytest.raises(SystemExit) as ended:
        verify.main(["--claims"])
    assert not ended.value.code and "1 claims: all held" in capsys.readouterr().out
    (root / "page.md").write_text("Nothing.\n")
    with pytest.raises(SystemExit) as ended:
        verify.main(["--claims"])
    assert ended.value.code == 1 and "not everything is held" in capsys.readouterr().out


def test_missing_runs_are_listed_with_the_reason(root):
    for method in ("etpo", "ppo_kl"):
        shutil.rmtree(root / "results" / "smoke" / method / "kidney-stone")
    (root / "results" / "not_run.yaml").write_text("smoke: {etpo: no time}\n")
    listed = verify.manifest("smoke")
    assert "  etpo: absent (no time): kidney-stone seed 0" in listed
    assert "  ppo_kl: absent (no reason given in results/not_run.yaml): kidney-stone seed 0" in listed


def test_stale_figure_is_told(root):
    fixtures.make_evaluation(root)
    folder = root / "figures" / "smoke" / "main_table"
    folder.mkdir(parents=True)
    (folder / "aggregate.csv").write_text("old\n")
    ((_, (stale, *missing)),) = verify.check_figures([folder])
    assert stale == "figures/smoke/main_table/aggregate.csv: NOT HELD: differs from what the raw results give"
    assert "figures/smoke/main_table/main_table.csv: NOT HELD: is missing" in missing


def test_figure_that_cannot_be_drawn_is_told_and_the_others_are_checked(root):
    fixtures.make_evaluation(root)
    folders = [root / "figures" / "smoke" / name for name in ("learning", "exploration")]
    for folder in folders:
        folder.mkdir(parents=True)
    (_, (line,)), (_, lines) = verify.check_figures(folders)
    assert line.startswith("figures/smoke/learning: NOT HELD: cannot be drawn: ") and "pipeline.worlds" in line
    assert lines and all(found.endswith("NOT HELD: is missing") for found in lines)
    assert not list(folders[1].iterdir())


def test_every_fragment_occurs_once_in_its_file():
    for claim in claims.load(fixtures.CHECKOUT):
        for file in (claim.file, *claim.also):
            assert len(claim.places(claims.text_of(fixtures.CHECKOUT / file))) == 1, (claim.id, file)
