"""Texts on which perplexity is measured: what the paper asks for, and what stands in for it offline.

The paper asks whether training on code generation costs the model its general language ability, and measures
perplexity on three kinds of text: code from GitHub, encyclopedia articles (WikiText) and arXiv papers in
LaTeX. Each entry of `CORPORA` names two sources of one kind. `source="hub"` reads the corpus itself from the
Hugging Face hub. `source="packaged"` needs only pip and is a declared stand-in: the source code of the
installed package networkx, the Wikipedia articles that ship in the test data of the package gensim, and the
LaTeX of three papers that lie in `data/corpora_embedded`. Whichever it was is written beside the text, in
`data/corpora/{scale}/{name}.json`, and travels from there into every table: `stand_in` is the sentence that says so,
or null for the corpus itself.
"""

import bz2
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from etpo_core.errors import UserError, unknown
from etpo_paper.base import paths
from etpo_paper.base.wheels import fetch_wheel
from etpo_paper.data.wikitext import clean_wikitext, read_dump

SOURCES = ("packaged", "hub")
VENDORED = paths.DATA / "corpora_embedded"


@dataclass(frozen=True)
class HubText:
    """One file of a data set on the Hugging Face hub (a parquet or a .jsonl file).

    Attributes:
        repo: name of the data set.
        file: the file inside it.
        column: the column, or JSON key, that holds the text.
        licence: as the data set states it.
        revision: commit that is read.
        path_ending: only rows whose column `path` ends so are read; None reads all.
        separator: what stands between two rows.
    """

    repo: str
    file: str
    column: str
    licence: str
    revision: str = "main"
    path_ending: str | None = None
    separator: str = "\n\n"


@dataclass(frozen=True)
class Corpus:
    """A kind of text, the corpus itself (`hub`) and its offline stand-in (`packaged`).

    Attributes:
        title: name for readers.
        hub: where the corpus lies.
        packaged: function that yields the stand-in as (name, text) documents.
        stand_in: the sentence that says what the stand-in is and what it stands for.
        licence: licence of the stand-in.
    """

    title: str
    hub: HubText
    packaged: Callable[[], Iterator[tuple[str, str]]]
    stand_in: str
    licence: str


@dataclass(frozen=True)
class Text:
    """A corpus as it lies on disk."""

    name: str
    text: str
    source: str
    stand_in: str | None
    sha256: str


# the offline stand-ins

GENSIM = "gensim==4.4.0"
GENSIM_WHEEL = "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl"
GENSIM_SHA256 = "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8"
ARTICLES = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

PAPERS = {
    "celerite.tex": "eaf260ec5d9ca7aea94c6471218a8e8f68750f122dde00567ee18556aa2caebf",
    "emcee.tex": "59b74396735688662fb6b5926ed577f5d7e2347d5ab7beceb54521663c1abd1d",
    "george.tex": "ccf20ead8ad93f7963a5b617ad90ea9852deb7cb26fc426832df893bfc552d7b",
}


def _package_code() -> Iterator[tuple[str, str]]:
    """The modules of networkx without its tests (not scikit-learn: the agent is trained to write that)."""
    spec = importlib.util.find_spec("networkx")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("package networkx is not installed; it is the offline code corpus: pip install networkx")
    root = Path(next(iter(spec.submodule_search_locations)))
    files = [path for path in root.rglob("*.py") if "tests" not in path.parts]
    for path in _scattered(files, key=lambda path: path.relative_to(root).as_posix()):
        yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def _articles() -> Iterator[tuple[str, str]]:
    """The Wikipedia articles in gensim's test data, without markup."""
    with zipfile.ZipFile(fetch_wheel(GENSIM, GENSIM_WHEEL, GENSIM_SHA256)) as wheel:
        dump = bz2.decompress(wheel.read(ARTICLES))
    pages = [page for page in read_dump(dump) if not page[1].lstrip().lower().startswith("#redirect")]
    for title, markup in _scattered(pages, key=lambda page: page[0]):
        yield title, f"= {title} =\n\n{clean_wikitext(markup)}"


def _papers() -> Iterator[tuple[str, str]]:
    """The three LaTeX papers that ship with the project."""
    for name, sha256 in PAPERS.items():
        path = VENDORED / name
        if not path.is_file() or _sha256(path.read_bytes()) != sha256:
            raise UserError(f"{path} is missing or was changed; restore it: git checkout -- {path}")
        yield name, path.read_text(encoding="utf-8")


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
        _package_code,
        "source code of the Python package networkx, in place of code from all of GitHub",
        "BSD-3-Clause",
    ),
    # WikiText-2 and WikiText-103 share one test split; this is it, untokenised.
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
        _articles,
        "Wikipedia articles of 2016 from the test data of the package gensim, in place of WikiText",
        "CC BY-SA 3.0 and GFDL",
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
        _papers,
        "LaTeX sources of three astronomy papers, in place of papers from all of arXiv",
        "MIT",
    ),
}


# building and reading


def build_corpus(name: str, source: str, characters: int, scale: str) -> dict:
    """Writes `data/corpora/{scale}/{name}.txt` and `{name}.json`; the same inputs give the same bytes.

    Args:
        name: github, wikitext or arxiv.
        source: "packaged" for the offline stand-in, "hub" for the corpus itself.
        characters: the text is cut after so many; a source that has fewer gives what it has.
        scale: whose folder it goes to; scales may differ in source and length.

    Returns:
        The content of the .json file: name, title, source, licence, stand_in, sha256 of the text, characters,
        documents (how many the text draws on).

    Raises:
        UserError: for an unknown name or source, or when a source cannot be reached or was altered.
    """
    corpus = _corpus(name)
    if source not in SOURCES:
        raise unknown("corpus source", source, SOURCES)
    if source == "hub":
        documents, separator = hub_documents(corpus.hub), corpus.hub.separator
    else:
        documents, separator = (text for _, text in corpus.packaged()), "\n\n"
    text, used = _join(documents, separator, characters)
    if not text:
        raise UserError(f"corpus {name}: its source gave no text; delete {paths.DOWNLOADS} and try again")
    card = {
        "name": name,
        "title": corpus.title,
        "source": f"{corpus.hub.repo}: {corpus.hub.file}" if source == "hub" else _packaged_source(name),
        "licence": corpus.hub.licence if source == "hub" else corpus.licence,
        "stand_in": None if source == "hub" else corpus.stand_in,
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
        UserError: for an unknown name, and when the files are missing or do not belong together.
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


def _packaged_source(name: str) -> str:
    if name == "github":
        return f"networkx {importlib.metadata.version('networkx')}, installed package"
    if name == "wikitext":
        return f"gensim {GENSIM.split('==')[1]}, wheel, {Path(ARTICLES).name}"
    return "data/corpora_embedded: celerite 0.4.3, emcee 3.1.6, george 0.4.4"


def _scattered(items: Iterable, key: Callable[[object], str]) -> list:
    """Items in the order of the hash of their names: the same everywhere, and no alphabetical cluster."""
    return sorted(items, key=lambda item: _sha256(key(item).encode("utf-8")))


def _join(documents: Iterable[str], separator: str, characters: int) -> tuple[str, int]:
    """The first `characters` of the documents put together, and how many documents they touch."""
    parts, length = [], 0
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
    """Whole or not at all, and with the same line ends on every system."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(text.encode("utf-8"))
    partial.replace(path)


# The hub


def hub_documents(spec: HubText) -> Iterator[str]:
    """Yields the rows of a file on the Hugging Face hub; `HF_ENDPOINT` names another hub.

    Raises:
        UserError: when the hub cannot be reached, refuses, or sends something else than the file.
    """
    path = _hub_file(spec)
    try:
        yield from _parquet_rows(path, spec) if spec.file.endswith(".parquet") else _json_rows(path, spec)
    except (ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors or KeyErrors
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{spec.repo}: {spec.file} is not the expected file ({reason}); delete {path}") from None


def _hub_file(spec: HubText) -> Path:
    import huggingface_hub as hub

    place = {"repo_id": spec.repo, "filename": spec.file, "repo_type": "dataset", "revision": spec.revision}
    cache, endpoint = paths.DOWNLOADS / "hub", os.environ.get("HF_ENDPOINT")
    try:
        cached = hub.try_to_load_from_cache(**place, cache_dir=cache)
        if isinstance(cached, str):
            return Path(cached)
        # Asked first, and once: the download itself would try an unreachable hub for half a minute.
        hub.get_hf_file_metadata(hub.hf_hub_url(**place, endpoint=endpoint), timeout=10)
        return Path(hub.hf_hub_download(**place, cache_dir=cache, endpoint=endpoint))
    except Exception as error:  # the client's HTTP library, and with it the types of its errors, has changed twice
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
