"""Wikipedia's markup, reduced to running text.

A MediaWiki dump is XML around articles in a markup of its own: templates in double braces, tables, footnotes,
pictures and links. `read_dump` takes the articles out of the XML and `clean_wikitext` the text out of the
markup. It is made for measuring perplexity, where stray markup would be measured along with the language; it
renders nothing, and what a template would have printed is lost.
"""

import html
import re
from xml.etree import ElementTree


def read_dump(dump: bytes) -> list[tuple[str, str]]:
    """(title, markup) of every article in a MediaWiki XML dump."""
    root = ElementTree.fromstring(dump)
    space = root.tag[: root.tag.index("}") + 1]
    return [
        (page.findtext(f"{space}title", ""), page.findtext(f"{space}revision/{space}text", ""))
        for page in root.iter(f"{space}page")
        if page.findtext(f"{space}ns") == "0"
    ]


_CONTENT = "ref|math|gallery|table|timeline|score|code|pre"  # elements dropped with what they hold
_TAIL = re.compile(
    r"^==\s*(see also|references|notes|notes and references|footnotes|external links|further reading"
    r"|bibliography|sources|citations|works cited)\s*==\s*$",
    re.IGNORECASE | re.MULTILINE,
)


def clean_wikitext(markup: str) -> str:
    """The running text of an article: no templates, tables, footnotes, pictures, links or closing lists.

    Headings stay, as "== History ==", for a reader and a language model alike.
    """
    text = re.sub(r"<!--.*?-->", "", markup, flags=re.DOTALL)
    text = re.sub(r"<ref[^<>]*/>", "", text)
    text = re.sub(rf"<({_CONTENT})\b[^<>]*>.*?</\1>", "", text, flags=re.DOTALL)
    text = _without(text, "{{", "}}")
    text = _without(text, "{|", "|}")
    tail = _TAIL.search(text)
    text = text[: tail.start()] if tail else text
    text = _without(text, "[[", "]]", starts=("file:", "image:", "category:"))
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)  # [[target|shown]] and [[shown]]
    text = re.sub(r"\[(?:https?:)?//[^\s\]]*\s?([^\]]*)\]", r"\1", text)  # [http://address shown]
    text = re.sub(r"</?[A-Za-z][^<>]{0,80}>", "", text)
    text = html.unescape(re.sub(r"'{2,}", "", text)).replace("\xa0", " ")
    text = re.sub(r"\(\s*[,;]?\s*\)", "", text)  # what a removed pronunciation leaves
    lines = [re.sub(r" +", " ", line).strip() for line in text.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _without(text: str, opening: str, closing: str, starts: tuple[str, ...] = ("",)) -> str:
    """The text without its outermost bracketed parts, whatever is nested in them.

    Args:
        text: what to strip.
        opening: e.g. "{{".
        closing: e.g. "}}".
        starts: only parts whose content starts with one of these, in any case, are dropped.
    """
    marks = re.compile(f"{re.escape(opening)}|{re.escape(closing)}")
    kept, position, depth, begin = [], 0, 0, 0
    for mark in marks.finditer(text):
        if mark.group() == opening:
            if depth == 0:
                begin = mark.start()
                if not text[mark.end() :].lstrip()[:12].lower().startswith(starts):
                    continue
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                kept.append(text[position:begin])
                position = mark.end()
    return "".join(kept) + text[position:]
