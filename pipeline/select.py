"""Chooses the scale that `dvc repro` works on: checks its settings and writes what it runs into selected.yaml.

    python -m pipeline.select laptop

DVC reads selected.yaml when it lays out its stages. It is not in git, so choosing a scale changes nothing that is.
A mistake in the settings, methods, tasks or model of the scale ends here, before any stage begins.
"""

from collections.abc import Sequence
from typing import Any

import yaml

from etpo_paper.base import paths
from etpo_paper.base.settings import Settings
from pipeline import entry


def selection(settings: Settings) -> dict[str, Any]:
    """What dvc.yaml has to know of a scale."""
    return {
        "scale": settings.scale,
        "file": settings.file,
        # A scale that does not name the section perplexity only trains; no stage goes on from its runs.
        "whole": [settings.scale] if "perplexity" in settings.named else [],
        # A scale that names the section gradients compares estimates of the advantage before any training.
        "compared": [settings.scale] if "gradients" in settings.named else [],
        "model": settings.model,
        "methods": list(settings.method_names),
        "tasks": list(settings.tasks),
        "seeds": list(settings.seeds),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the script from its command line."""
    parser = entry.parser(__doc__)
    parser.add_argument("scale", help="one of params.yaml or a finished round, e.g. laptop")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        selected = selection(entry.resolve(arguments.scale))
        text = "# Written by pipeline.select; choose another scale with `make repro SCALE=name`.\n"
        text += yaml.safe_dump({"selected": selected}, sort_keys=False)
        path = paths.ROOT / "selected.yaml"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
