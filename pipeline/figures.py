"""Stage `figures`: runs one notebook, which writes its figures and tables.

    python -m pipeline.figures --scale laptop --notebook main_table

The executed copy, with all its outputs, goes to build/notebooks/{scale}/ for reading; it is not a result,
because its bytes differ from run to run. A failing cell ends the stage with its error in one line.
"""

import argparse
import warnings
from collections.abc import Sequence

from etpo_core.errors import UserError, one_line_errors, unknown
from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings


def run_notebook(scale: str, name: str) -> None:
    """Executes notebooks/{name}.ipynb for a scale.

    Raises:
        UserError: unknown scale or notebook, or a cell that failed.
    """
    load_settings(scale)  # says which scales there are
    source = paths.NOTEBOOKS / f"{name}.ipynb"
    if not source.is_file():
        raise unknown("notebook", name, (path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")))
    executed = paths.ROOT / "build" / "notebooks" / scale / f"{name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries about each other
        import papermill
        from papermill.exceptions import PapermillExecutionError

        try:
            papermill.execute_notebook(str(source), str(executed), parameters={"scale": scale}, kernel_name="python3")
        except PapermillExecutionError as error:
            if error.ename == "UserError":
                raise UserError(error.evalue) from None
            what = " ".join(f"{error.ename}: {error.evalue}".split())
            raise UserError(f"notebook {name} failed in cell {error.exec_count}: {what}; open {executed}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and runs one notebook."""
    parser = argparse.ArgumentParser(description="Runs one notebook of the project.")
    parser.add_argument("--scale", required=True, help="one of those in params.yaml, e.g. laptop")
    parser.add_argument("--notebook", required=True, help="name of a notebook, without .ipynb")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        run_notebook(arguments.scale, arguments.notebook)
        print(f"figures and tables: {paths.FIGURES / arguments.scale / arguments.notebook}")


if __name__ == "__main__":
    main()
