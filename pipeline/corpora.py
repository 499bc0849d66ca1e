"""Stage `corpora`: writes the three texts on which perplexity is measured.

    python -m pipeline.corpora --scale laptop

Settings: corpora.source ("packaged": offline stand-ins, "hub": the corpora themselves) and
corpora.characters. Writes data/corpora/{scale}/{github,wikitext,arxiv}.txt and a .json card beside each.
"""

import argparse
from collections.abc import Sequence

from etpo_core.errors import one_line_errors
from etpo_paper.base.settings import load_settings
from etpo_paper.data.corpora import CORPORA, build_corpus


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and runs the stage."""
    parser = argparse.ArgumentParser(description="Write the texts on which perplexity is measured.")
    parser.add_argument("--scale", required=True, help="smoke, laptop, study or paper")
    arguments = parser.parse_args(argv)
    with one_line_errors():
        run(arguments.scale)


def run(scale: str) -> None:
    """Writes every corpus and prints what it is."""
    settings = load_settings(scale).corpora
    for name in CORPORA:
        card = build_corpus(name, settings.source, settings.characters, scale)
        stand_in = f"; stand-in: {card['stand_in']}" if card["stand_in"] else ""
        print(f"{name}: {card['characters']} characters from {card['source']}{stand_in}")


if __name__ == "__main__":
    main()
