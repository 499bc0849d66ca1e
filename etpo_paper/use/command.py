"""Trains an agent that writes scikit-learn programs for your table, and scores programs in a sandbox.

    etpo fit churn.csv --target churn           # trains, ends with the best program and its scores
    etpo score program.py churn.csv --target churn
    etpo propose runs/churn                     # the trained policy writes programs for its table
    etpo export runs/churn --out churn-model    # that policy as a plain model of transformers
    etpo runs                                   # the runs in runs/, and how to go on with those that were stopped
    etpo doctor                                 # can this machine confine programs?

`etpo COMMAND --help` tells of each command.
"""

from etpo_paper.base.command_line import Parser, one_line_errors  # before all that loads torch

# isort: split
import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from etpo_paper.base.lock import HELD, HeldError

RAW = argparse.RawDescriptionHelpFormatter


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command. What it needs is imported then: torch alone takes seconds."""
    arguments = _parser().parse_args(argv)
    with one_line_errors():
        try:
            arguments.run(arguments)
        except HeldError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(HELD)


def _parser() -> Parser:
    parser = Parser(prog="etpo", description=__doc__, formatter_class=RAW)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, run: object, says: str) -> Parser:
        made: Parser = commands.add_parser(name, help=says, description=says, formatter_class=RAW)
        made.set_defaults(run=run)
        return made

    fit = add("fit", _fit, "trains an agent on a table; stopped with Ctrl-C, the same command goes on")
    _table(fit)
    fit.add_argument("--method", default="etpo", help="a section of methods in params.yaml; default: etpo")
    fit.add_argument("--steps", type=int, default=500, metavar="N", help="programs to try; default: 500")
    ours = "smollm2 (default), codellama (needs a GPU), tiny (a toy)"
    fit.add_argument("--model", default="smollm2", help=f"{ours}, a folder with a causal language model, or a hub name")
    fit.add_argument("--lora-targets", metavar="A,B", help="the linear products of your model to adapt; default: all")
    fit.add_argument("--seed", type=int, default=0, metavar="N", help="of first weights and sampling; default: 0")
    fit.add_argument("--out", type=Path, metavar="FOLDER", help="all that is written; default: runs/TABLE")
    fit.add_argument(
        "--tensorboard", action="store_true", help="curves for `tensorboard --logdir FOLDER`, as it trains"
    )
    propose = add("propose", _propose, "has a trained policy write programs for its table, each scored")
    propose.add_argument("folder", type=Path, metavar="FOLDER", help="of a finished `etpo fit`")
    propose.add_argument("--count", type=int, default=8, metavar="N", help="programs to write; default: 8")
    export = add("export", _export, "merges a trained policy into its base, and says what rounding costs")
    export.add_argument("folder", type=Path, metavar="FOLDER", help="of a finished `etpo fit`")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder for the model")
    types = ("float32", "bfloat16", "float16")
    export.add_argument("--dtype", choices=types, default="float32", help="of its weights; default: float32, exact")
    runs = add("runs", _runs, "lists runs: how far they are, their best reward, and how to go on")
    runs.add_argument("folder", type=Path, nargs="?", default=Path("runs"), metavar="FOLDER", help="default: runs")
    runs.add_argument("--watch", action="store_true", help="list them again every few seconds, until none is at work")
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


def _fit(given: argparse.Namespace) -> None:
    from etpo_paper.training import live
    from etpo_paper.use.fit import fit
    from etpo_paper.use.folder import Asked

    table, lora = str(given.table.resolve()), given.lora_targets
    asked = Asked(table, given.target, given.method, given.steps, given.model, given.seed, lora)
    if given.tensorboard:
        os.environ[live.SWITCH] = "1"
    fit(asked, given.out or Path("runs") / given.table.stem)


def _propose(given: argparse.Namespace) -> None:
    from etpo_paper.use.propose import propose

    propose(given.folder, given.count)


def _export(given: argparse.Namespace) -> None:
    from etpo_paper.use.export import export

    export(given.folder, given.out, given.dtype)


def _runs(given: argparse.Namespace) -> None:
    from etpo_paper.use.runs import runs, watch

    watch(given.folder) if given.watch else runs(given.folder)


def _score(given: argparse.Namespace) -> None:
    from etpo_paper.use.score import score

    sys.exit(0 if score(given.program, given.table, given.target, given.splits) else 1)


def _doctor(given: argparse.Namespace) -> None:
    from etpo_core.sandbox.doctor import as_text, examine

    report = examine()
    print(json.dumps(report, indent=2) if given.json else as_text(report))
    sys.exit(0 if report["healthy"] else 1)
