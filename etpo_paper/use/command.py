"""Trains an agent that writes scikit-learn programs for your table, and scores programs in a sandbox.

    etpo fit churn.csv --target churn           # trains, ends with the best program and its scores
    etpo score program.py churn.csv --target churn
    etpo doctor                                 # can this machine confine programs?

`etpo COMMAND --help` tells of each command.
"""

from etpo_paper.base.command_line import Parser, one_line_errors  # before all that loads torch

# isort: split
import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

RAW = argparse.RawDescriptionHelpFormatter


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command. What it needs is imported then: torch alone takes seconds."""
    arguments = _parser().parse_args(argv)
    with one_line_errors():
        arguments.run(arguments)


def _parser() -> Parser:
    parser = Parser(prog="etpo", description=__doc__, formatter_class=RAW)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, run: object, says: str) -> Parser:
        made: Parser = commands.add_parser(name, help=says, description=says, formatter_class=RAW)
        made.set_defaults(run=run)
        return made

    score = add("score", _score, "scores one program on a table, in the sandbox")
    score.add_argument("program", type=Path, metavar="PROGRAM.py", help="build_model, its body, or a best_program.py")
    _table(score)
    score.add_argument("--splits", type=int, metavar="N", help="random halves of each kind; default: 5, held out 10")
    doctor = add("doctor", _doctor, "tries how well this machine can confine programs, and says what would help")
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _table(parser: Parser) -> None:
    parser.add_argument("table", type=Path, metavar="TABLE.csv", help="a CSV file with a line of column names")
    parser.add_argument("--target", required=True, metavar="NAME", help="the column to predict, with 2 to 30 classes")


def _score(given: argparse.Namespace) -> None:
    from etpo_paper.use.score import score

    sys.exit(0 if score(given.program, given.table, given.target, given.splits) else 1)


def _doctor(given: argparse.Namespace) -> None:
    from etpo_core.sandbox.doctor import as_text, examine

    report = examine()
    print(json.dumps(report, indent=2) if given.json else as_text(report))
    sys.exit(0 if report["healthy"] else 1)
