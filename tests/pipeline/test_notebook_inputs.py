"""A notebook that lacks its inputs stops with one line, and the committed figures stay as they are."""

import fixtures_results as fixtures
import pytest
from stages import InThisProcess, run_module


@pytest.mark.parametrize("prepared", [False, True], ids=["no table", "all but pc1"])
def test_the_data_table_is_not_replaced_when_tables_are_missing(tmp_path, at, prepared):
    root = fixtures.make_root(tmp_path)
    if prepared:
        fixtures.make_tables(root, skip=("pc1",))
    committed = root / "figures" / "smoke" / "dataset_table" / "datasets.md"
    committed.parent.mkdir(parents=True)
    committed.write_text("committed")
    at(root)
    with InThisProcess():
        done = run_module("pipeline.figures", "--scale", "smoke", "--notebook", "dataset_table")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: not prepared in ") and ("airlines" in last) is not prepared and "pc1" in last
    assert last.endswith("make them: python -m pipeline.data")
    assert [path.name for path in committed.parent.iterdir()] == ["datasets.md"]
    assert committed.read_text() == "committed"
