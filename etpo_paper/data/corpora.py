"""The texts on which perplexity is measured: the corpora that the paper names, and what replaces them offline.

The paper asks whether training on code costs the model its general ability with language, and measures perplexity on
three kinds of text: code from GitHub, encyclopedia articles (WikiText) and arXiv papers in LaTeX. Each entry of
`CORPORA` has two sources. The source "hub" reads the corpus itself from the Hugging Face hub. The source "packaged"
needs no network and is a declared stand-in: the source code of the installed package networkx, and the Wikipedia
articles and LaTeX papers in `data/corpora_embedded`. `build_corpus` writes the text to
`data/corpora/{scale}/{name}.txt` and a card beside it, which says where the text comes from. Its field `stand_in` is
the sentence that every table shows for a stand-in, and null for the corpus itself.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etpo_core.errors import UserError, unknown
from etpo_paper.base import paths

SOURCES = ("packaged", "hub")
EMBEDDED = paths.DATA / "corpora_embedded"


@dataclass(frozen=True)
class HubText:
    """One file of a data set on the Hugging Face hub.

    Attributes:
        repo: name of the data set.
        file: the file in it, a .parquet or a .jsonl file.
        column: the column, or key of the JSON objects, that holds the text.
        licence: the licence as the data set states it.
        revision: the commit that is read.
        path_ending: only rows whose column `path` has this ending are read; None reads all rows.
        separator: the text between two rows.
    """

    repo: str
    file: str
    column: str
    licence: str
    revision: str = "main"
    path_ending: str | None = None
    separator: str = "\n\n"


@dataclass(frozen=True)
class StandIn:
    """A text that needs no network and is used in place of a corpus.

    Attributes:
        sentence: what the text is and what it stands for.
        licence: its licence.
        read: returns a phrase that names the source, and the documents.
    """

    sentence: str
    licence: str
    read: Callable[[], tuple[str, Iterable[str]]]


@dataclass(frozen=True)
class Corpus:
    """A kind of text with its two sources.

    Attributes:
        title: its name in figures and tables.
        hub: the corpus itself.
        packaged: its stand-in.
    """

    title: str
    hub: HubText
    packaged: StandIn


@dataclass(frozen=True)
class Text:
    """A corpus as it was read from disk.

    Attributes:
        name: github, wikitext or arxiv.
        text: the text.
        source: where it comes from.
        stand_in: the sentence of a stand-in, None for the corpus itself.
        sha256: of the text in UTF-8.
    """

    name: str
    text: str
    source: str
    stand_in: str | None
    sha256: str


# ------------------------------------------------------------------------------------------------ the stand-ins

# File in data/corpora_embedded -> SHA-256. The order is that of the corpus.
ARTICLES = {
    "wikipedia/animal_farm.txt": "6456fdbae978f073ab50c1b80cbde6e746da32c0d6fe21c2935095eec6efedec",
    "wikipedia/algae.txt": "fc7b69d9b733853ce0e38f21e35b4bb8d1088faaedaae4ce7d9f81e752ff9ffc",
    "wikipedia/amateur_astronomy.txt": "a7d9b79e8d30ed8e3c3080eebee082eb6f5fb2ab6b4628c02842a4c1db8249f1",
    "wikipedia/america_the_beautiful.txt": "a413c976497eeceb20fa9491467c948d30bfda9d2af228bcb0a33023f8008561",
    "wikipedia/anthropology.txt": "7ef3260cc271160fa2096be1ba7586f4ea917aa7240c44da43c73586423c6c56",
    "wikipedia/andre_agassi.txt": "64ddfd8bb5a5aa313cd70483eba40ff8a09d62a67953524e9f8fa6f6bdd3076a",
    "wikipedia/alabama.txt": "6b020d193bb6bea2915b6ed1d9b6e96c3abcf9265893d8612b23708a4731ebdf",
}
PAPERS = {
    "celerite.tex": "eaf260ec5d9ca7aea94c6471218a8e8f68750f122dde00567ee18556aa2caebf",
    "emcee.tex": "59b74396735688662fb6b5926ed577f5d7e2347d5ab7beceb54521663c1abd1d",
    "george.tex": "ccf20ead8ad93f7963a5b617ad90ea9852deb7cb26fc426832df893bfc552d7b",
}


def networkx_modules() -> list[Path]:
    """The modules of the installed networkx without its tests, in the order in which they are read.

    networkx is used because the agent is trained to write scikit-learn code, which therefore cannot measure its
    general ability. The order is that of the hashed names: it is the same everywhere, and a text that is cut draws on
    the whole package rather than on the beginning of the alphabet.
    """
    spec = importlib.util.find_spec("networkx")
    if spec is None or spec.origin is None:
        raise UserError("package networkx is not installed; it is the offline code corpus: pip install networkx")
    root = Path(spec.origin).parent
    modules = [path for path in root.rglob("*.py") if "tests" not in path.parts]
    return sorted(modules, key=lambda path: _sha256(path.relative_to(root).as_posix().encode("utf-8")))


def _read_networkx() -> tuple[str, Iterator[str]]:
    documents = (path.read_text(encoding="utf-8") for path in networkx_modules())
    return f"networkx {importlib.metadata.version('networkx')}, installed package", documents


def _read_articles() -> tuple[str, Iterator[str]]:
    dump = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    return f"gensim 4.4.0, wheel, {dump}", _embedded(ARTICLES)


def _read_papers() -> tuple[str, Iterator[str]]:
    return "data/corpora_embedded: celerite 0.4.3, emcee 3.1.6, george 0.4.4", _embedded(PAPERS)


def _embedded(files: Mapping[str, str]) -> Iterator[str]:
    for name, sha256 in files.items():
        path = EMBEDDED / name
        if not path.is_file() or _sha256(path.read_bytes()) != sha256:
            raise UserError(f"{path} is missing or was changed; restore it: git checkout -- {path}")
        yield path.read_bytes().decode("utf-8")


CORPORA = {
    "github": Corpus(
        "GitHub code",
        HubText(
            "codeparrot/github-code",
            "data/train-00000-of-01126.parquet",
            "content",
            "various open-source licences, by repository",
            path_ending=".py",
        ),
        StandIn(
            "source code of the Python package networkx, in place of code from all of GitHub",
            "BSD-3-Clause",
            _read_networkx,
        ),
    ),
    # WikiText-2 and WikiText-103 share one test split. This is that split, before tokenisation.
    "wikitext": Corpus(
        "WikiText",
        HubText(
            "Salesforce/wikitext",
            "wikitext-103-raw-v1/test-00000-of-00001.parquet",
            "text",
            "CC BY-SA 3.0 and GFDL",
            revision="b08601e04326c79dfdd32d625aee71d232d685c3",
            separator="",
        ),
        StandIn(
            "Wikipedia articles of 2016 from the test data of the package gensim, in place of WikiText",
            "CC BY-SA 3.0 and GFDL",
            _read_articles,
        ),
    ),
    "arxiv": Corpus(
        "arXiv LaTeX",
        HubText(
            "togethercomputer/RedPajama-Data-1T-Sample",
            "arxiv_sample.jsonl",
            "text",
            "by paper, see arXiv",
            revision="776f0cf8399524b53d817f4613cc75c6cd9c5a3b",
        ),
        StandIn(
            "LaTeX sources of three astronomy papers, in place of papers from all of arXiv",
            "MIT",
            _read_papers,
        ),
    ),
}


# ------------------------------------------------------------------------------------------ writing and reading


def build_corpus(name: str, source: str, characters: int, scale: str) -> dict[str, Any]:
    """Writes `data/corpora/{scale}/{name}.txt` and `{name}.json`; the same inputs give the same bytes.

    Args:
        name: github, wikitext or arxiv.
        source: "packaged" for the offline stand-in, "hub" for the corpus itself.
        characters: the length at which the text is cut; a shorter source is written whole.
        scale: names the folder, because scales may differ in source and length.

    Returns:
        The content of the .json file: name, title, source, licence, stand_in, sha256 of the text, characters, and
        the number of documents that the text draws on.

    Raises:
        UserError: the name or source is unknown, or the source cannot be reached or was altered.
    """
    corpus = _corpus(name)
    if source not in SOURCES:
        raise unknown("corpus source", source, SOURCES)
    documents: Iterable[str]
    if source == "hub":
        origin, documents = f"{corpus.hub.repo}: {corpus.hub.file}", hub_documents(corpus.hub)
        separator, licence, stand_in = corpus.hub.separator, corpus.hub.licence, None
    else:
        origin, documents = corpus.packaged.read()
        separator, licence, stand_in = "\n\n", corpus.packaged.licence, corpus.packaged.sentence
    text, used = _join(documents, separator, characters)
    if not text:
        raise UserError(f"corpus {name}: its source gave no text; delete {paths.DOWNLOADS} and try again")
    card = {
        "name": name,
        "title": corpus.title,
        "source": origin,
        "licence": licence,
        "stand_in": stand_in,
        "sha256": _sha256(text.encode("utf-8")),
        "characters": len(text),
        "documents": used,
    }
    folder = paths.CORPORA / scale
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{name}.txt", text)
    _write(folder / f"{name}.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    return card


def load_corpus(name: str, scale: str) -> Text:
    """Reads a corpus that `build_corpus` wrote for a scale.

    Raises:
        UserError: the name is unknown, or the files are missing or do not belong together.
    """
    _corpus(name)
    text_path, card_path = (paths.CORPORA / scale / f"{name}.{end}" for end in ("txt", "json"))
    remedy = f"write it again: python -m pipeline.corpora --scale {scale}"
    try:
        data, card = text_path.read_bytes(), json.loads(card_path.read_text(encoding="utf-8"))
        if card["sha256"] != _sha256(data):
            raise UserError(f"corpus {name}: {text_path} is not the text that {card_path.name} describes; {remedy}")
        return Text(name, data.decode("utf-8"), card["source"], card["stand_in"], card["sha256"])
    except FileNotFoundError as error:
        raise UserError(f"corpus {name}: {error.filename} is missing; {remedy}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"corpus {name}: {card_path} is not readable; {remedy}") from None


def _corpus(name: str) -> Corpus:
    if name not in CORPORA:
        raise unknown("corpus", name, CORPORA)
    return CORPORA[name]


def _join(documents: Iterable[str], separator: str, characters: int) -> tuple[str, int]:
    """Returns the first `characters` of the joined documents, and how many documents they touch."""
    parts: list[str] = []
    length = 0
    for document in documents:
        if parts:
            length += len(separator)
        if length >= characters:
            break
        parts.append(document)
        length += len(document)
    return separator.join(parts)[:characters], len(parts)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all, with the same line ends on every system."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(text.encode("utf-8"))
    partial.replace(path)


# ------------------------------------------------------------------------------------------------------ the hub


def hub_documents(spec: HubText) -> Iterator[str]:
    """Yields the rows of a file on the Hugging Face hub. The environment variable `HF_ENDPOINT` names another hub.

    Raises:
        UserError: the hub cannot be reached, refuses, or sends something else than the file.
    """
    path = _hub_file(spec)
    try:
        yield from _parquet_rows(path, spec) if spec.file.endswith(".parquet") else _json_rows(path, spec)
    except (ValueError, KeyError) as error:  # the errors of pyarrow are ValueErrors or KeyErrors
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{spec.repo}: {spec.file} is not the expected file ({reason}); delete {path}") from None


def _hub_file(spec: HubText) -> Path:
    import huggingface_hub as hub

    cache, endpoint = paths.DOWNLOADS / "hub", os.environ.get("HF_ENDPOINT")
    place = {"repo_id": spec.repo, "filename": spec.file, "repo_type": "dataset", "revision": spec.revision}
    download: dict[str, Any] = {**place, "cache_dir": cache, "endpoint": endpoint}
    try:
        cached = hub.try_to_load_from_cache(**place, cache_dir=cache)
        if isinstance(cached, str):
            return Path(cached)
        # The download would try an unreachable hub for half a minute, so one request asks first.
        hub.get_hf_file_metadata(hub.hf_hub_url(**place, endpoint=endpoint), timeout=10)
        return Path(hub.hf_hub_download(**download))
    except Exception as error:  # the client has changed its HTTP library, and so the types of its errors, twice
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(
            f"cannot read data set {spec.repo} from the Hugging Face hub ({reason}); check the network and "
            "HF_TOKEN, or set corpora.source to packaged in params.yaml"
        ) from None


def _parquet_rows(path: Path, spec: HubText) -> Iterator[str]:
    import pyarrow.parquet

    columns = [spec.column] + (["path"] if spec.path_ending else [])
    with pyarrow.parquet.ParquetFile(path) as file:
        missing = set(columns) - set(file.schema_arrow.names)
        if missing:
            raise KeyError(f"no column {', '.join(sorted(missing))}")
        for batch in file.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                if spec.path_ending is None or row["path"].endswith(spec.path_ending):
                    yield row[spec.column] or ""


def _json_rows(path: Path, spec: HubText) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)[spec.column]
