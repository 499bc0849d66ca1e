"""Stage `corpora`: writes the three texts on which perplexity is measured.

    python -m pipeline.corpora --scale laptop

The setting corpora.source decides whether they are openly licensed stand-ins that come without a network ("packaged")
or the corpora themselves ("hub"), corpora.characters how much of each is kept. The stage writes
data/corpora/{scale}/{github,wikitext,arxiv}.txt and a card in JSON beside each. Of these, only the cards are in git.
"""

from collections.abc import Sequence

from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings
from etpo_paper.data.corpora import CORPORA, Text, build_corpus, load_corpus
from pipeline import entry


def texts(scale: str) -> list[Text]:
    """The three texts; made if they are not there, as in a fresh clone."""
    wanted = load_settings(scale).corpora
    for name in CORPORA:
        if not (paths.CORPORA / scale / f"{name}.txt").is_file():
            build_corpus(name, wanted.source, wanted.characters, scale)
    return [load_corpus(name, scale) for name in CORPORA]


def run(scale: str) -> None:
    """Writes every corpus and prints what it is."""
    wanted = load_settings(scale).corpora
    for name in CORPORA:
        card = build_corpus(name, wanted.source, wanted.characters, scale)
        stand_in = f"; stand-in: {card['stand_in']}" if card["stand_in"] else ""
        print(f"{name}: {card['characters']} characters from {card['source']}{stand_in}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    entry.run_scale(run, __doc__, argv)


if __name__ == "__main__":
    main()
