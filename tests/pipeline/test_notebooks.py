"""The notebooks on synthetic results: they run alone, write what they say, and the same bytes again.

Their cells are executed in this process, once for all tests of the same results; one notebook is also executed in a
kernel of its own, as a user does it, and has to write the same bytes.
"""

import json

import fixtures_results as fixtures
import numpy as np
import pandas as pd
import pytest
from stages import InThisProcess, move, run_module

from etpo_core.errors import UserError
from etpo_paper.report import notebook

INDEX = "00_index"  # holds no code, see tests/paper/test_index.py
ALL = sorted(path for path in (fixtures.CHECKOUT / "notebooks").glob("*.ipynb") if path.stem != INDEX)
WRITES = {
    "algorithm": {"workflow": "f", "algorithm": "t", "readings_of_q": "t"},
    "consistency": {"gap_by_inner_discount": "ft", "kl_gradients": "t"},
    "learning": {"regret": "ft", "benchmark": "ft", "estimates": "ft"},
    "dataset_table": {"datasets": "t", "class_counts": "f"},
    "exploration": {"best_within_k": "ft"},
    "main_table": {"main_table": "t", "aggregate": "t", "performance_profile": "f"},
    "convergence": {"mean_reward": "f", "last_fifth": "t", "settled": "t"},
    "style": {"complexity": "ft", "emergence": "ft", "codes": "t"},
    "credit": {"tokens_failed": "f", "tokens_ran": "f", "concentration": "t"},
    "ablations": {"ablations": "ft"},
    "frontier": {"reward_by_kl": "ft"},
    "own_environment": {"mean_reward": "ft"},
}
ENDINGS = {"f": ("png", "pdf"), "t": ("csv", "md", "tex")}


@pytest.fixture
def figures(at):
    """Runs the stage `figures` in this process, for a root, the smoke scale and a notebook."""

    def run(root, name):
        at(root)
        with InThisProcess():
            return run_module("pipeline.figures", "--scale", "smoke", "--notebook", name)

    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with synthetic results in which every notebook has been run once."""
    root = fixtures.make_root(tmp_path_factory.mktemp("root"))
    fixtures.make_results(root)
    fixtures.make_evaluation(root)
    fixtures.make_tables(root)
    fixtures.make_regret(root)
    fixtures.make_own_environment(root)
    with pytest.MonkeyPatch.context() as patch, InThisProcess():
        move(patch, root)
        for name in WRITES:
            done = run_module("pipeline.figures", "--scale", "smoke", "--notebook", name)
            assert done.returncode == 0, done.stderr
    return root


def table(root, name, file):
    return pd.read_csv(root / "figures" / "smoke" / name / f"{file}.csv")


@pytest.mark.parametrize("name", WRITES)
def test_a_notebook_writes_its_figures_and_tables(root, name):
    expected = {f"{file}.{end}" for file, kinds in WRITES[name].items() for k in kinds for end in ENDINGS[k]}
    place = root / "figures" / "smoke" / name
    assert {path.name for path in place.iterdir()} == expected
    assert all(path.stat().st_size > 0 for path in place.iterdir())
    assert (root / "build" / "notebooks" / "smoke" / f"{name}.ipynb").is_file()


@pytest.mark.nightly
def test_a_deleted_figure_comes_back_byte_for_byte_from_a_kernel(root, at):
    import nbformat

    place = root / "figures" / "smoke" / "exploration"
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    (place / "best_within_k.png").unlink()
    (place / "best_within_k.pdf").unlink()
    at(root)
    done = run_module("pipeline.figures", "--scale", "smoke", "--notebook", "exploration")
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    executed = nbformat.read(root / "build" / "notebooks" / "smoke" / "exploration.ipynb", as_version=4)
    assert any(cell.outputs for cell in executed.cells if cell.cell_type == "code")


def test_main_table_is_what_the_raw_files_say(root):
    rows = table(root, "main_table", "main_table").set_index(["task", "method"])
    best = [
        pd.read_csv(root / f"results/smoke/etpo/balance-scale/seed{seed}/steps.csv")["reward"].max() for seed in (0, 1)
    ]
    row = rows.loc[("balance-scale", "etpo")]
    assert row["best_mean"] == pytest.approx(sum(best) / 2, abs=1e-6)
    assert row["best_std"] == pytest.approx(abs(best[0] - best[1]) / 2**0.5, abs=1e-6)
    assert row["best_mean"] - row["held_out_mean"] == pytest.approx(0.02, abs=1e-6)
    assert rows.loc[("balance-scale", "reflection_gpt4"), "n"] == 0
    shown = (root / "figures/smoke/main_table/main_table.md").read_text()
    assert "| kidney-stone† | not run |" in shown
    assert (
        "**" in shown and "Stand-in data, not the paper's (marked †" in shown and "Reflection (GPT-4): not run" in shown
    )


def test_curves_end_at_what_the_raw_files_say(root):
    rows = table(root, "exploration", "best_within_k")
    rows = rows[(rows["method"] == "ppo_kl") & (rows["steps"] == 40)]
    best = [
        pd.read_csv(root / f"results/smoke/ppo_kl/{task}/seed{seed}/steps.csv")["reward"].max()
        for task in ("balance-scale", "kidney-stone")
        for seed in (0, 1)
    ]
    assert rows["best"].iloc[0] == pytest.approx(sum(best) / 4, abs=1e-6)


def test_stand_ins_are_marked_in_the_data_table(root):
    shown = (root / "figures/smoke/dataset_table/datasets.md").read_text()
    assert shown.count("| airlines† |") == 1 and "| diabetes |" in shown
    assert shown.count("stand-in for") == 6


def test_one_seed_and_missing_methods_still_draw_what_is_there(tmp_path, figures):
    fixtures.make_root(tmp_path)
    fixtures.make_results(tmp_path, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))
    fixtures.make_evaluation(tmp_path)
    for name in ("main_table", "convergence"):
        done = figures(tmp_path, name)
        assert done.returncode == 0, done.stderr
    shown = (tmp_path / "figures/smoke/convergence/last_fifth.md").read_text()
    assert "n=1" in shown and "PPO-KL: not run" in shown and "[" not in shown


def test_a_notebook_without_its_input_leaves_the_figures_that_are_there(tmp_path, figures):
    fixtures.make_root(tmp_path)
    fixtures.make_results(tmp_path, methods=("etpo",), tasks=("balance-scale",), seeds=(0,))
    for name, table in (("dataset_table", "datasets.md"), ("main_table", "main_table.md")):
        committed = tmp_path / "figures" / "smoke" / name / table
        committed.parent.mkdir(parents=True)
        committed.write_text("what was committed")
        done = figures(tmp_path, name)
        assert done.returncode == 2 and "python -m pipeline." in done.stderr.splitlines()[-1]
        assert [*committed.parent.iterdir()] == [committed] and committed.read_text() == "what was committed"


def test_the_end_of_training_taken_apart_is_what_the_raw_files_say(tmp_path, figures):
    fixtures.make_root(tmp_path)
    fixtures.make_results(tmp_path, methods=("ppo_kl", "etpo", "etpo_memory"), tasks=("balance-scale",))
    assert figures(tmp_path, "convergence").returncode == 0
    rows = table(tmp_path, "convergence", "settled").set_index("method")
    runs = [pd.read_csv(tmp_path / f"results/smoke/etpo/balance-scale/seed{seed}/steps.csv") for seed in (0, 1)]
    last = [run.tail(len(run) // 5) for run in runs]
    levels = [run[run["status"] == "ok"]["reward"].mean() for run in last]
    best = sum(run["reward"].max() for run in runs) / 2
    assert rows.loc["etpo", "last_level"] == pytest.approx(sum(levels) / 2, abs=1e-6)
    assert rows.loc["etpo", "gap"] == pytest.approx(best - sum(levels) / 2, abs=1e-6)
    assert rows["etpo_memory_difference"].isna().tolist() == [method == "etpo_memory" for method in rows.index]


@pytest.mark.nightly
def test_credit_of_one_method_is_drawn_and_samples_without_credit_are_one_line(tmp_path, figures):
    fixtures.make_root(tmp_path)
    fixtures.make_results(tmp_path, methods=("etpo",), tasks=("balance-scale",), seeds=(0, 1))
    first, second = (tmp_path / f"results/smoke/etpo/balance-scale/seed{seed}/samples.jsonl" for seed in (0, 1))

    def forget(path):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{k: v for k, v in row.items() if k not in ("pieces", "credit")} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    forget(first)
    assert figures(tmp_path, "credit").returncode == 0
    shown = (tmp_path / "figures/smoke/credit/concentration.md").read_text()
    assert "ETPO: 1 run left out" in shown and "PPO-KL: not run" in shown
    forget(second)
    done = figures(tmp_path, "credit")
    assert done.returncode == 2 and "UserError" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the samples of scale smoke hold no credit")
    assert last.endswith("make them again: rm -r results/smoke/etpo; make repro SCALE=smoke")


def test_an_unknown_parameter_fails_and_names_the_known_ones(root, tmp_path, at):
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    at(root)
    source, out = fixtures.CHECKOUT / "notebooks" / "exploration.ipynb", tmp_path / "out.ipynb"
    with InThisProcess(), pytest.raises(PapermillExecutionError) as caught:
        execute_notebook(source, out, parameters={"scale": "smoke", "sacle": "paper"}, kernel_name="python3")
    assert caught.value.ename == "UserError"
    assert caught.value.evalue == "unknown notebook parameter 'sacle'; choose one of: scale"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "raise PermissionError(13, 'Permission denied', 'figures/a.png')",
            "error: Permission denied: 'figures/a.png': free the disk or make the folder writable",
        ),
        ("raise FileNotFoundError(2, 'No such file', 'b')", "error: notebook one failed in cell 3: FileNotFoundError:"),
    ],
)
def test_a_notebook_that_cannot_write_says_what_to_do(tmp_path, at, cell, message):
    import nbformat

    (tmp_path / "notebooks").mkdir()
    root = fixtures.make_root(tmp_path)
    cells = [nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(cell)]
    about = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), root / "notebooks" / "one.ipynb")
    at(root)
    with InThisProcess():
        done = run_module("pipeline.figures", "--scale", "smoke", "--notebook", "one")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scale", "laptop", "--notebook", "exploration"), "error: no raw results in"),
        (("--scale", "huge", "--notebook", "exploration"), "error: unknown scale 'huge'"),
        (("--scale", "smoke", "--notebook", "figure_1"), "error: unknown notebook 'figure_1'"),
    ],
)
def test_bad_input_is_one_line(root, at, arguments, message):
    at(root)
    with InThisProcess():
        done = run_module("pipeline.figures", *arguments)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "error" in line.lower()][-1].startswith(message)
    assert "Traceback" not in done.stderr


def test_injected_names_are_read_from_papermills_cell_only():
    cells = ['scale = "laptop"', '# Parameters\nscale = "smoke"\nseed = 1\n', "other = 2"]
    assert notebook.injected_names(cells) == ["scale", "seed"]


def test_parameters_are_checked_outside_a_kernel_too():
    cells = {"In": ["# Parameters\nsede = 1\n"], "scale": "smoke"}
    with pytest.raises(UserError, match="unknown notebook parameter 'sede'; choose one of: scale"):
        notebook.check_parameters(cells, {"scale"})
    with pytest.raises(UserError, match="parameter 'seed' has no value"):
        notebook.check_parameters({"scale": "smoke"}, {"scale", "seed"})
    with pytest.raises(UserError, match="must be the name of a scale, not 3"):
        notebook.check_parameters({"scale": 3}, {"scale"})
    with pytest.raises(UserError, match="unknown scale 'huge'"):
        notebook.check_parameters({"scale": "huge"}, {"scale"})


@pytest.mark.parametrize(
    ("own", "given", "line"),
    [
        ("3", "'3'", "seed: got '3', expected a whole number; papermill makes text of numpy's numbers"),
        ("3", "2.0", "seed: got 2.0, expected a whole number"),
        ("True", "'True'", "seed: got 'True', expected true or false"),
        ("0.5", "'0.5'", "seed: got '0.5', expected a number"),
        ("3", "4", None),
        ("0.5", "1", None),
        ("'a'", "'b'", None),
        ("range(3)", "'b'", None),
    ],
)
def test_a_parameter_that_papermill_made_text_of_is_refused(own, given, line):
    cells = ["", f"scale = 'smoke'\nseed = {own}  # of the worlds", f"# Parameters\nseed = {given}\n", "%time"]
    found = {"In": cells, "scale": "smoke", "seed": eval(given)}
    if line is None:
        notebook.check_parameters(found, {"scale", "seed"})
    else:
        with pytest.raises(UserError, match=line):
            notebook.check_parameters(found, {"scale", "seed"})


def test_papermill_still_makes_text_of_numbers_of_numpy():
    from papermill.translators import PythonTranslator

    written = PythonTranslator.codify({"a": np.int64(3), "b": np.bool_(True), "c": np.float64(0.5), "d": 3})
    assert written.splitlines()[1:] == ['a = "3"', 'b = "True"', "c = 0.5", "d = 3"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_every_notebook_is_clean_and_complete(path):
    import nbformat  # it takes seconds to load

    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code), "holds outputs"
    assert "papermill" not in book.metadata and book.metadata.kernelspec.name == "python3"
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# "), "has no title"
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and "scale =" in tagged[0].source, "has no parameters cell"
    assert code[0] is tagged[0], "does something before its parameters"
    assert "check_parameters(globals()" in code[1].source, "does not check its parameters"
    last = book.cells[-1]
    assert last.cell_type == "markdown" and f"--notebook {path.stem}" in last.source, "does not say its command"
