"""Rebuilds the Wikipedia articles in `wikipedia/` from the dump that ships with the Python package gensim.

Nobody needs this script to run the project, because the articles are committed. It shows exactly how each file came to
be. Fetch the wheel, whose test data hold a shortened dump of the English Wikipedia, and run

    pip download --no-deps --only-binary=:all: --python-version 311 --platform manylinux_2_28_x86_64 gensim==4.4.0
    python data/corpora_embedded/rebuild.py --wheel gensim-4.4.0-*.whl --out data/corpora_embedded/wikipedia

A MediaWiki dump is XML around articles in a markup of its own: templates in double braces, tables, footnotes, pictures
and links. `read_dump` takes the articles out of the XML and `clean_wikitext` takes the running text out of the markup.
The text is meant for measuring perplexity, where stray markup would be measured along with the language. Nothing is
rendered, so what a template would have printed is lost.
"""

import argparse
import bz2
import hashlib
import html
import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
CHARACTERS = 200_000  # of all articles together, which is what the scales ask for; the last article is cut there
SEPARATOR = "\n\n"  # stands between two articles where the corpus is put together

_CONTENT = "ref|math|gallery|table|timeline|score|code|pre"  # elements that are dropped together with their content
_CLOSING_SECTIONS = re.compile(
    r"^==\s*(see also|references|notes|notes and references|footnotes|external links|further reading"
    r"|bibliography|sources|citations|works cited)\s*==\s*$",
    re.IGNORECASE | re.MULTILINE,
)


def read_dump(dump: bytes) -> list[tuple[str, str]]:
    """Returns (title, markup) of every article in a MediaWiki XML dump; redirects are left out."""
    root = ElementTree.fromstring(dump)
    space = root.tag[: root.tag.index("}") + 1]
    pages = [
        (page.findtext(f"{space}title", ""), page.findtext(f"{space}revision/{space}text", ""))
        for page in root.iter(f"{space}page")
        if page.findtext(f"{space}ns") == "0"  # articles, not talk or help pages
    ]
    return [page for page in pages if not page[1].lstrip().lower().startswith("#redirect")]


def clean_wikitext(markup: str) -> str:
    """Reduces an article to its running text.

    Comments, templates, tables, footnotes, formulas, pictures, categories, the targets of links and the closing
    sections (references, external links and the like) are removed. Headings stay as they are, e.g. "== History ==".
    """
    text = re.sub(r"<!--.*?-->", "", markup, flags=re.DOTALL)
    text = re.sub(r"<ref[^<>]*/>", "", text)
    text = re.sub(rf"<({_CONTENT})\b[^<>]*>.*?</\1>", "", text, flags=re.DOTALL)
    text = without(text, "{{", "}}")
    text = without(text, "{|", "|}")
    closing = _CLOSING_SECTIONS.search(text)
    text = text[: closing.start()] if closing else text
    text = without(text, "[[", "]]", starts=("file:", "image:", "category:"))
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)  # [[target|shown]] and [[shown]]
    text = re.sub(r"\[(?:https?:)?//[^\s\]]*\s?([^\]]*)\]", r"\1", text)  # [http://address shown]
    text = re.sub(r"</?[A-Za-z][^<>]{0,80}>", "", text)
    text = html.unescape(re.sub(r"'{2,}", "", text)).replace("\xa0", " ")
    text = re.sub(r"\(\s*[,;]?\s*\)", "", text)  # parentheses that are empty once the pronunciation is removed
    lines = [re.sub(r" +", " ", line).strip() for line in text.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def without(text: str, opening: str, closing: str, starts: tuple[str, ...] = ("",)) -> str:
    """Removes the outermost bracketed parts of a text, including everything that is nested in them.

    Args:
        text: the text to strip.
        opening: the opening bracket, e.g. "{{".
        closing: the closing bracket, e.g. "}}".
        starts: only parts whose content begins with one of these, in upper or lower case, are removed.
    """
    brackets = re.compile(f"{re.escape(opening)}|{re.escape(closing)}")
    kept, position, depth, begin = [], 0, 0, 0
    for bracket in brackets.finditer(text):
        if bracket.group() == opening:
            if depth == 0:
                begin = bracket.start()
                if not text[bracket.end() :].lstrip()[:12].lower().startswith(starts):
                    continue
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                kept.append(text[position:begin])
                position = bracket.end()
    return "".join(kept) + text[position:]


def main() -> None:
    """Writes the articles that the first 200,000 characters of the corpus consist of, and prints their SHA-256."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True, help="the wheel of gensim 4.4.0")
    parser.add_argument("--out", type=Path, required=True, help="folder for the articles")
    given = parser.parse_args()
    with zipfile.ZipFile(given.wheel) as wheel:
        articles = read_dump(bz2.decompress(wheel.read(DUMP)))
    given.out.mkdir(parents=True, exist_ok=True)
    # The order of the hashed titles is the same everywhere and mixes the subjects, which the alphabet would not.
    articles.sort(key=lambda article: hashlib.sha256(article[0].encode("utf-8")).hexdigest())
    left = CHARACTERS
    for title, markup in articles:
        text = f"= {title} =\n\n{clean_wikitext(markup)}"[:left]
        path = given.out / f"{title.lower().replace(' ', '_')}.txt"
        path.write_bytes(text.encode("utf-8"))
        print(f'"wikipedia/{path.name}": "{hashlib.sha256(text.encode("utf-8")).hexdigest()}",')
        left -= len(text) + len(SEPARATOR)
        if left <= 0:
            break


if __name__ == "__main__":
    main()
