"""The Python blocks of docs/environments.md run, one after the other, with the toy model."""

import random

import pytest
from stages import CHECKOUT
from test_use_runs import etpo, here  # noqa: F401  fixtures

from etpo_paper.environment.episodes import Episodes

PAGE = CHECKOUT / "docs" / "environments.md"


@pytest.fixture(scope="module")
def page(etpo, here):  # noqa: F811
    """What the blocks leave: their names."""
    names: dict = {"__name__": "page"}
    blocks = PAGE.read_text().split("```python\n")[1:]
    for block in blocks:
        exec(compile(block.partition("```")[0], PAGE.name, "exec"), names)  # our own page
    return names


def test_the_example_trains_and_leaves_the_files_that_the_page_names(page, here):  # noqa: F811
    run = page["run"]
    assert run.folder.resolve() == (here / "runs" / "letters" / "run").resolve()
    assert len((run.folder / "steps.csv").read_text().splitlines()) == 33
    for name in ("updates.csv", "samples.jsonl", "best_code.py", "checkpoint/policy/adapter_config.json"):
        assert (run.folder / name).is_file()


def test_the_letter_of_the_example_comes_from_the_seed_alone(page):
    letters = page["Letters"]()
    assert letters.reset(seed=0)[0] == "Many times the letter o:" == f"Many times the letter {letters.letter}:"
    assert random.Random(0).choice("aeiou") == "o"
    assert letters.step("oo, ")[1:4] == (0.5, True, False) and letters.step("")[1] == 0
    assert page["reward"](prompts=["Many times the letter o:"], completions=["ooo"]) == [1.0]


def test_the_lake_is_walked_in_words(page):
    episodes = Episodes([page["lake"]()])
    assert episodes.prompts[0].prefix == "Field 0. Go"
    (step,) = episodes.step(["home"])
    assert (step.reward, step.terminated, step.status) == (-1.0, False, "unreadable")
    (step,) = episodes.step([" down"])
    assert step.reward == 0.0 and step.next_prompt.prefix.startswith("Field ")


def test_the_page_can_be_read_in_some_minutes():
    assert len(PAGE.read_text().splitlines()) <= 125
