"""Selects the scale that `dvc repro` works on: checks its settings and writes what it runs into selected.yaml.

    python -m pipeline.select study
    python -m pipeline.select

DVC reads selected.yaml when it lays out its stages. The file is in git and selects `laptop`; `git checkout
selected.yaml` goes back to that. Without a name the present selection is brought up to date with params.yaml. A mistake
in the settings, methods, tasks or model of the scale ends here, before any stage begins.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.settings import Settings
from pipeline import entry
from pipeline.resolve import resolve

# Scales whose raw results come with the project: their figures can always be drawn again.
PUBLISHED = ("laptop", "study")


def selection(settings: Settings) -> dict[str, Any]:
    """What dvc.yaml has to know of a scale."""
    # A scale that does not name the section perplexity only trains; no stage goes on from its runs.
    whole = [settings.scale] if "perplexity" in settings.named else []
    return {
        "scale": settings.scale,
        "file": settings.file,
        "whole": whole,
        # Whose figures are drawn from raw results.
        "drawn": list(dict.fromkeys([*whole, *PUBLISHED])),
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
    parser.add_argument("scale", nargs="?", help="one of params.yaml or a finished round; by default the one selected")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        path = paths.ROOT / "selected.yaml"
        selected = selection(resolve(arguments.scale or _selected(path)))
        text = "# What `dvc repro` works on. Select another scale with `python -m pipeline.select NAME`.\n"
        text += yaml.safe_dump({"selected": selected}, sort_keys=False)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _selected(path: Path) -> str:
    """The name of the scale that the file selects."""
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["selected"]["scale"])
    except (OSError, yaml.YAMLError, LookupError, TypeError):
        expected = "the selection that `python -m pipeline.select NAME` writes"
        raise UserError(f"{path.name}: missing or damaged, expected {expected}; name a scale, e.g. laptop") from None


if __name__ == "__main__":
    main()
