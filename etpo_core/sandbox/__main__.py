"""`python -m etpo_core.sandbox doctor` reports how well this machine can confine programs, and what would help."""

import argparse
import json
import sys

from etpo_core.errors import one_line_errors
from etpo_core.sandbox.doctor import as_text, examine


def main() -> None:
    """Prints the report; the exit status is 0 if programs can be confined and the self-test passed, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m etpo_core.sandbox", description=__doc__)
    parser.add_argument("command", choices=["doctor"], help="try every wall, run a self-test, measure an execution")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments = parser.parse_args()
    with one_line_errors():
        report = examine()
    print(json.dumps(report, indent=2) if arguments.json else as_text(report))
    sys.exit(0 if report["healthy"] else 1)


if __name__ == "__main__":
    main()
