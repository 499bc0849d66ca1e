"""Programs as files: the one that a user gives to be scored, and the best one together with its preprocessing."""

from importlib import resources
from pathlib import Path

from etpo_core.errors import UserError
from etpo_paper.environment.prompts import is_module, parsed, program
from etpo_paper.use.table import OwnTable

MARK = "# ---- The program ends here. What follows takes it from the original columns to probabilities. ----\n"


def read_program(path: Path) -> tuple[str, int]:
    """The program in a file: `build_model` as a function or as its body alone, or a `best_program.py`.

    Returns:
        The program, and how many lines it has above those of the file.

    Raises:
        UserError: there is no such file, or no program in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; expected a Python file that defines build_model") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; expected a Python file that defines build_model") from None
    text = text.partition(MARK)[0].strip("\n") + "\n"
    if parsed(text) is not None and not is_module(text):
        raise UserError(
            f"{path} defines no function build_model; expected `def build_model(x_train, y_train)` that returns a "
            "fitted classifier, or its body, indented, that makes `model`"
        )
    source = program(text)
    return source, lines_above(source, text)


def lines_above(source: str, text: str) -> int:
    """How many lines a program has above the text that it was made of."""
    return source.count("\n", 0, max(0, source.find(text.rstrip("\n"))))


def one_file(source: str, table: OwnTable) -> str:
    """A program together with the preprocessing of a table; it needs pandas and scikit-learn, and not this package."""
    name = f"{table.task.spec.identifier}".replace("\n", " ")
    plan = "".join(f"    {entry!r},\n" for entry in table.plan)
    columns = resources.files("etpo_paper.use").joinpath("columns.py").read_text(encoding="utf-8")
    return (
        f"# A classifier of rows like those of {name}. It needs pandas and scikit-learn:\n"
        "#\n"
        "#     from best_program import fit\n"
        "#     model = fit(frame)                      # a data frame with the original columns\n"
        "#     model.predict_proba(new_frame)          # float64 [rows, classes], classes as in model.classes_\n\n"
        f"{source.rstrip()}\n\n\n{MARK}{columns}\n\n"
        f"TARGET = {table.target!r}\n"
        f"LABELS = {table.labels!r}\n"
        f"PLAN = [\n{plan}]\n\n\n"
        "def fit(frame: pd.DataFrame) -> Classifier:\n"
        '    """Fits the program to the rows of a data frame with the original columns, the target among them."""\n'
        "    return Classifier(frame, TARGET, LABELS, PLAN, build_model)\n"
    )
