"""`python -m etpo_core.sandbox doctor`: what this machine can hold a program in, and what would make it better."""

import argparse
import json
import sys

from etpo_core.errors import one_line_errors
from etpo_core.sandbox.doctor import as_text, examine


def main() -> None:
    """Prints the report; the exit status is 0 when programs can be confined and the self-test went as expected."""
    parser = argparse.ArgumentParser(prog="python -m etpo_core.sandbox", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="try every wall, run a self-test, measure what an execution costs")
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    with one_line_errors():
        report = examine()
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    sys.exit(0 if report["healthy"] else 1)


if __name__ == "__main__":
    main()
