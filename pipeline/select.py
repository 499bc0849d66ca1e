"""Chooses the scale that `dvc repro` works on: writes its lists from params.yaml into selected.yaml.

`python -m pipeline.select laptop`. DVC reads selected.yaml when it lays out its stages; the file is not in git, so
choosing a scale changes nothing that is.
"""

import sys
from collections.abc import Sequence

import yaml

from etpo_core.errors import UserError, one_line_errors
from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings, read_params
from etpo_paper.data.tasks import TASKS


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the script."""
    with one_line_errors():
        given = sys.argv[1:] if argv is None else argv
        if len(given) != 1:
            raise UserError(f"expected one argument, the scale: {', '.join(read_params()['scales'])}")
        settings = load_settings(given[0])
        unknown_tasks = [t for t in settings.tasks if t not in TASKS]
        if unknown_tasks:
            raise UserError(
                f"unknown task {unknown_tasks[0]!r} in scales.{settings.scale}.tasks of params.yaml; "
                f"choose from: {', '.join(TASKS)}"
            )
        selected = {
            "scale": settings.scale,
            # A scale without a section for perplexity only trains: what is made of its runs is a stage of its own.
            "whole": [settings.scale] if "perplexity" in read_params()["scales"][settings.scale] else [],
            # Where estimates of the advantage are compared before any training.
            "compared": [settings.scale] if "gradients" in read_params()["scales"][settings.scale] else [],
            "model": settings.model,
            "methods": settings.method_names,
            "tasks": settings.tasks,
            "seeds": settings.seeds,
        }
        text = "# Written by pipeline.select; choose another scale with `make repro SCALE=name`.\n"
        text += yaml.safe_dump({"selected": selected}, sort_keys=False)
        path = paths.ROOT / "selected.yaml"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


if __name__ == "__main__":
    main()
