"""Stage `figures`: runs one notebook, which writes its figures and tables.

    python -m pipeline.figures --scale laptop --notebook main_table

The executed copy, with all its outputs, goes to build/notebooks/{scale}/ for reading. It is not a result, because its
bytes differ from run to run. A cell that fails ends the stage with its error in one line.
"""

import re
import warnings
from collections.abc import Sequence

from etpo_core.errors import DISK_ERRNOS, UserError
from etpo_paper.base import paths
from etpo_paper.base.sections import unknown_name
from etpo_paper.base.settings import load_settings
from pipeline import entry


def run_notebook(scale: str, name: str) -> None:
    """Executes notebooks/{name}.ipynb for a scale.

    Raises:
        UserError: a mistake in the settings of the scale, an unknown notebook, or a cell that failed.
        OSError: a figure or table could not be written.
    """
    load_settings(scale)  # not `resolve`: nothing of the methods is run, and checking them imports torch
    source = paths.NOTEBOOKS / f"{name}.ipynb"
    if not source.is_file():
        raise unknown_name("notebook", name, (path.stem for path in paths.NOTEBOOKS.glob("*.ipynb")))
    executed = paths.ROOT / "build" / "notebooks" / scale / f"{name}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries warn about one another on import
        import papermill
        from papermill.exceptions import PapermillExecutionError

        try:
            papermill.execute_notebook(str(source), str(executed), parameters={"scale": scale}, kernel_name="python3")
        except PapermillExecutionError as error:
            if error.ename == "UserError":
                raise UserError(error.evalue) from None
            number = re.match(r"\[Errno (\d+)\] ", error.evalue)
            if number and int(number[1]) in DISK_ERRNOS:
                raise OSError(int(number[1]), error.evalue[number.end() :]) from None
            what = " ".join(f"{error.ename}: {error.evalue}".split())
            raise UserError(f"notebook {name} failed in cell {error.exec_count}: {what}; open {executed}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    parser = entry.parser(__doc__, scale="laptop")
    parser.add_argument("--notebook", required=True, help="name of a notebook, without .ipynb")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        run_notebook(arguments.scale, arguments.notebook)
        print(f"figures and tables: {paths.FIGURES / arguments.scale / arguments.notebook}")


if __name__ == "__main__":
    main()
