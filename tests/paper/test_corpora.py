"""The perplexity texts: the stand-ins, how the Wikipedia articles were cleaned, and the hub behind a local fake."""

import bz2
import hashlib
import importlib.util
import json
import shutil
import socket
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.data import corpora
from etpo_paper.data.corpora import CORPORA, HubText, build_corpus, hub_documents, load_corpus, networkx_modules
from pipeline import corpora as stage

_spec = importlib.util.spec_from_file_location("rebuild_corpora", corpora.EMBEDDED / "rebuild.py")
rebuild = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rebuild)

ARTICLE = """{{Infobox person
| name = {{nowrap|Ada}}
}}
<!-- a comment -->'''Ada''' ({{IPA|x}}) was a [[mathematician|maths person]] from [[London]].<ref>{{cite web|url=x}}
more</ref><ref name="a" /> She wrote ''Notes''&nbsp;&ndash; see [http://example.org/a her page].
[[File:Ada.jpg|thumb|A [[portrait]] of Ada]]
{| class="wikitable"
| cell || {{x|}}
|}
The sum <math>x^2</math> is<br /> small.



== Life ==
* born in [[1815]]
[[Category:People]]
== See also ==
* [[Charles Babbage]]
"""


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CORPORA", tmp_path / "corpora")
    monkeypatch.setattr(paths, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the only hub here is our own
    return tmp_path


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Cleaning the articles ---------------------------------------------------------------------------------------------


def test_markup_is_reduced_to_text():
    assert rebuild.clean_wikitext(ARTICLE) == (
        "Ada was a maths person from London. She wrote Notes – see her page.\n\n"
        "The sum is small.\n\n== Life ==\n* born in 1815"
    )


@pytest.mark.parametrize(
    "markup, text",
    [
        ("a {{b {{c}} d}} e", "a e"),
        ("a {{b {{c}} d", "a {{b {{c}} d"),  # never closed: nothing is lost
        ("a }} b {{c}} d", "a }} b d"),
        ("{{a}}{{b}}", ""),
        ("[[Image:x|[[y]] z]] w [[v]]", "w v"),
        ("[[a|b]] [[c]]", "b c"),
        ("{|\n{|\n|inner\n|}\n|outer\n|}\nafter", "after"),
        ("x < y and y > z", "x < y and y > z"),
        ("", ""),
    ],
)
def test_nested_markup(markup, text):
    assert rebuild.clean_wikitext(markup) == text


def dump(*pages: tuple[str, int, str]) -> bytes:
    page = "<page><title>{}</title><ns>{}</ns><revision><text>{}</text></revision></page>"
    text = "".join(page.format(*given) for given in pages)
    return f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{text}</mediawiki>'.encode()


def test_only_articles_are_read_from_a_dump():
    pages = dump(("A", 0, "one"), ("Talk:A", 1, "two"), ("C", 0, "#REDIRECT [[A]]"), ("B", 0, ""))
    assert rebuild.read_dump(pages) == [("A", "one"), ("B", "")]


def test_rebuilding_writes_articles_up_to_the_wanted_length(root, monkeypatch, capsys):
    with zipfile.ZipFile(root / "gensim.whl", "w") as archive:
        pages = dump(*((title, 0, f"'''{title}''' is [[long]].") for title in ("One A", "Two", "Three")))
        archive.writestr(rebuild.DUMP, bz2.compress(pages))
    monkeypatch.setattr(rebuild, "CHARACTERS", 30)
    monkeypatch.setattr(sys, "argv", ["rebuild.py", "--wheel", str(root / "gensim.whl"), "--out", str(root / "out")])
    rebuild.main()
    texts = {path.name: path.read_text() for path in (root / "out").iterdir()}
    order = [line.split("/")[1].split(".")[0] for line in capsys.readouterr().out.splitlines()]
    assert len(order) == 2 and set(texts) == {f"{name}.txt" for name in order}
    whole, cut = (texts[f"{name}.txt"] for name in order)
    assert whole.startswith("= ") and whole.endswith(" is long.")
    assert len(whole + rebuild.SEPARATOR + cut) == 30  # as long as the corpus that is made of them


# The stand-ins -----------------------------------------------------------------------------------------------------


def test_stand_ins_are_built_the_same_every_time():
    for name in CORPORA:
        card = build_corpus(name, "packaged", 50_000, "smoke")
        data = (paths.CORPORA / "smoke" / f"{name}.txt").read_bytes()
        assert build_corpus(name, "packaged", 50_000, "smoke") == card
        assert (paths.CORPORA / "smoke" / f"{name}.txt").read_bytes() == data
        text = load_corpus(name, "smoke")
        assert len(text.text) == card["characters"] == 50_000
        assert text.stand_in == CORPORA[name].packaged.sentence and "in place of" in text.stand_in
        assert text.source == card["source"]
        assert build_corpus(name, "packaged", 1000, "smoke")["sha256"] != card["sha256"]


def test_the_stage_writes_the_texts_on_which_the_results_were_measured():
    stage.main(["--scale", "laptop"])
    cards = {name: json.loads((paths.CORPORA / "laptop" / f"{name}.json").read_text()) for name in CORPORA}
    assert cards["wikitext"]["sha256"] == "2d33e783df774a83f0ba742b64658906b9067a7687cf1595c6403587117e50a5"
    assert cards["arxiv"]["sha256"] == "e74c38675baf893813e82dd7f21a39418b600eb08b0dcfd04748de05365b55e6"
    assert {name: (card["characters"], card["licence"]) for name, card in cards.items()} == {
        "github": (200_000, "BSD-3-Clause"),
        "wikitext": (200_000, "CC BY-SA 3.0 and GFDL"),
        "arxiv": (180_917 + 2 * 2, "MIT"),
    }
    assert (cards["wikitext"]["documents"], cards["arxiv"]["documents"]) == (7, 3)
    assert load_corpus("arxiv", "laptop").text.count("\\begin{document}") == 3


def test_the_stage_says_in_one_line_what_is_wrong(root, monkeypatch, capsys):
    monkeypatch.setattr(corpora, "EMBEDDED", root)
    with pytest.raises(SystemExit) as stopped:
        stage.main(["--scale", "smoke"])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and "animal_farm.txt is missing or was changed" in line and "git checkout" in line


def test_no_test_and_no_scikit_learn_in_the_code():
    modules = networkx_modules()
    assert len(modules) > 200 and not any("tests" in path.parts for path in modules)
    assert modules != sorted(modules)  # a text that is cut does not hold the beginning of the alphabet alone


@pytest.mark.parametrize("name, file", [("arxiv", "celerite.tex"), ("wikitext", "wikipedia/animal_farm.txt")])
def test_a_changed_text_is_refused(root, monkeypatch, name, file):
    monkeypatch.setattr(corpora, "EMBEDDED", shutil.copytree(corpora.EMBEDDED, root / "embedded"))
    path = corpora.EMBEDDED / file
    path.write_bytes(path.read_bytes().replace(b"e", b"a", 1))
    with pytest.raises(UserError, match="git checkout") as error:
        build_corpus(name, "packaged", 1000, "smoke")
    one_line(error)


def test_the_notice_lists_every_text():
    notice = (corpora.EMBEDDED / "NOTICE.md").read_text()
    files = {p.relative_to(corpora.EMBEDDED).as_posix() for p in corpora.EMBEDDED.rglob("*.t[xe][tx]")}
    assert files == set(corpora.ARTICLES | corpora.PAPERS)
    for file in files:
        (line,) = [line for line in notice.splitlines() if line.startswith(f"| `{file}` |")]
        assert f"`{hashlib.sha256((corpora.EMBEDDED / file).read_bytes()).hexdigest()}`" in line


def test_names_sources_and_damaged_files_are_checked():
    with pytest.raises(UserError, match="choose one of: arxiv, github, wikitext"):
        build_corpus("books", "packaged", 10, "smoke")
    with pytest.raises(UserError, match="choose one of: hub, packaged"):
        build_corpus("arxiv", "web", 10, "smoke")
    with pytest.raises(UserError, match="pipeline.corpora"):
        load_corpus("arxiv", "smoke")
    build_corpus("arxiv", "packaged", 100, "smoke")
    (paths.CORPORA / "smoke" / "arxiv.txt").write_text("something else")
    with pytest.raises(UserError, match="is not the text that arxiv.json describes"):
        load_corpus("arxiv", "smoke")
    for damage in ("{", "[]", "{}"):
        (paths.CORPORA / "smoke" / "arxiv.json").write_text(damage)
        with pytest.raises(UserError, match="not readable") as error:
            load_corpus("arxiv", "smoke")
        one_line(error)


# The hub -----------------------------------------------------------------------------------------------------------


class Hub:
    """Serves files of data sets as the hub does: commit, ETag and size in the head, then the bytes."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                hub.asked.append(self.path)
                data = hub.files.get(self.path)
                self.send_response(200 if data is not None else 404)
                if data is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", "a" * 40)
                self.send_header("ETag", f'"{hashlib.sha256(data or b"").hexdigest()}"')
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                return data

            def do_GET(self):
                self.wfile.write(self.do_HEAD() or b"")

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    hub.close()


def put(hub, name, data: bytes):
    spec = CORPORA[name].hub
    hub.files[f"/datasets/{spec.repo}/resolve/{spec.revision}/{spec.file}"] = data


def parquet(root, **columns) -> bytes:
    pd.DataFrame(columns).to_parquet(root / "file.parquet")
    return (root / "file.parquet").read_bytes()


def test_the_corpora_themselves_come_from_the_hub(root, hub):
    put(hub, "github", parquet(root, path=["a.py", "b.c", "c.py"], content=["import a", "int b;", "c = 1"]))
    put(hub, "wikitext", parquet(root, text=["", " = Lobster = \n", " It swims . \n"]))
    put(hub, "arxiv", b"".join(json.dumps({"text": t, "meta": {}}).encode() + b"\n" for t in ("\\section{é}", "x")))
    expected = {
        "github": "import a\n\nc = 1",
        "wikitext": " = Lobster = \n It swims . \n",
        "arxiv": "\\section{é}\n\nx",
    }
    for name, text in expected.items():
        card = build_corpus(name, "hub", 1000, "smoke")
        assert load_corpus(name, "smoke").text == text
        assert card["stand_in"] is None and CORPORA[name].hub.repo in card["source"]
    assert build_corpus("arxiv", "hub", 8, "smoke")["characters"] == 8
    # what is there already is not sent again
    assert sum("arxiv" in path for path in hub.asked) <= 4


def test_offline_mode_is_told(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot read data set") as error:
        build_corpus("github", "hub", 1000, "smoke")
    one_line(error)
    assert not hub.asked


def test_a_hub_without_the_file(hub):
    with pytest.raises(UserError, match="codeparrot/github-code from the Hugging Face hub") as error:
        build_corpus("github", "hub", 1000, "smoke")
    assert "corpora.source" in one_line(error)


@pytest.mark.parametrize("data", [b"no parquet", b""])
def test_a_hub_with_something_else(hub, data):
    put(hub, "wikitext", data)
    with pytest.raises(UserError, match="not the expected file") as error:
        build_corpus("wikitext", "hub", 1000, "smoke")
    one_line(error)


def test_a_hub_with_other_columns(root, hub):
    put(hub, "wikitext", parquet(root, page=["x"]))
    put(hub, "arxiv", b'{"page": "x"}\n')
    for name in ("wikitext", "arxiv"):
        with pytest.raises(UserError, match="not the expected file.*text") as error:
            build_corpus(name, "hub", 1000, "smoke")
        one_line(error)


def test_a_hub_that_is_not_there(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    begin = time.monotonic()
    with pytest.raises(UserError, match="cannot read data set a/b") as error:
        list(hub_documents(HubText("a/b", "c.jsonl", "text", "")))
    one_line(error)
    assert time.monotonic() - begin < 5  # the hub's own client would try for half a minute
