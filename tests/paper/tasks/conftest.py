"""What the tests of the tasks share: loopback servers that speak as much of OpenML's and Kaggle's protocol as the
client packages use, and small tables.
"""

import dataclasses
import functools
import hashlib
import io
import json
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from etpo_paper.data.tasks import TASKS
from etpo_paper.data.tasks.generators import GENERATORS

# Generating this table takes a second, so all tests share it.
GENERATORS["jungle-chess"] = functools.cache(GENERATORS["jungle-chess"])

OML = "http://openml.org/openml"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def reply(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class OpenMLServer:
    """Serves ARFF texts as OpenML data sets; `datasets[id] = text`. `md5[id]` overrides the announced checksum."""

    def __init__(self):
        self.datasets: dict[int, str] = {}
        self.md5: dict[int, str] = {}
        self.requests: list[str] = []
        outer = self

        class Handler(_Handler):
            def do_GET(self):
                outer.requests.append(self.path)
                kind, _, number = self.path.rpartition("/")
                if int(number) not in outer.datasets:
                    error = f'<oml:error xmlns:oml="{OML}"><oml:code>111</oml:code>'
                    error += "<oml:message>Unknown dataset</oml:message></oml:error>"
                    self.reply(412, error.encode(), "text/xml")
                elif kind.endswith("/download"):
                    self.reply(200, outer.datasets[int(number)].encode(), "text/plain")
                else:
                    self.reply(200, outer.description(int(number)).encode(), "text/xml")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def description(self, number: int) -> str:
        md5 = self.md5.get(number) or hashlib.md5(self.datasets[number].encode()).hexdigest()
        fields = {
            "id": number,
            "name": f"table{number}",
            "version": 1,
            "description": "a table",
            "format": "ARFF",
            "upload_date": "2014-04-06T23:21:47",
            "licence": "Public",
            "url": f"{self.url}/download/{number}",
            "parquet_url": f"{self.url}/parquet/{number}",
            "file_id": number,
            "visibility": "public",
            "status": "active",
            "md5_checksum": md5,
        }
        inner = "".join(f"<oml:{key}>{value}</oml:{key}>" for key, value in fields.items())
        return f'<oml:data_set_description xmlns:oml="{OML}">{inner}</oml:data_set_description>'

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def openml_server(tmp_path, monkeypatch):
    """An OpenML server on loopback, with `openml` pointed at it and its cache in a fresh folder."""
    monkeypatch.setenv("OPENML_CACHE_DIR", str(tmp_path / "openml"))  # read when openml is first imported
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    import openml

    server = OpenMLServer()
    before = openml.config.server, openml.config.get_cache_directory()
    openml.config.server = f"{server.url}/api/v1/xml"
    openml.config.set_root_cache_directory(str(tmp_path / "openml"))
    monkeypatch.setattr("etpo_paper.data.tasks.sources.ONLINE_TRIES", 1)
    yield server
    openml.config.server = before[0]
    server.close()


@pytest.fixture
def small_kaggle(monkeypatch):
    """kidney-stone and health-insurance with tables of six made-up rows."""
    for name, features in (("kidney-stone", 1), ("health-insurance", 2)):
        small = {"raw_rows": 6, "rows": 5, "features": features, "class_counts": (3, 2), "sha256": None}
        monkeypatch.setitem(TASKS, name, dataclasses.replace(TASKS[name], **small))


class KaggleServer:
    """Serves CSV texts as the only file of a Kaggle download: `files["owner/set" or "competition"] = (name, text)`."""

    def __init__(self):
        self.files: dict[str, tuple[str, str]] = {}
        self.requests: list[str] = []
        self.status = 200
        outer = self

        class Handler(_Handler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
                call = self.path.rpartition("/")[2]
                outer.requests.append(call)
                handle = asked.get("competitionName") or f"{asked.get('ownerSlug')}/{asked.get('datasetSlug')}"
                if outer.status != 200:
                    self.reply(outer.status, b'{"code": 0, "message": "no"}', "application/json")
                elif handle not in outer.files:
                    self.reply(404, b'{"code": 404, "message": "Not found"}', "application/json")
                elif call == "GetDataset":
                    self.reply(200, json.dumps({"currentVersionNumber": 1}).encode(), "application/json")
                else:
                    packed = io.BytesIO()
                    with zipfile.ZipFile(packed, "w") as archive:
                        archive.writestr(*outer.files[handle])
                    self.reply(200, packed.getvalue(), "application/zip")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def kaggle_home(tmp_path, monkeypatch):
    """Kaggle's packages pointed at loopback, with made-up credentials and a fresh cache; no server yet."""
    for name, value in {
        "KAGGLE_API_ENVIRONMENT": "TEST",
        "KAGGLE_USERNAME": "nobody",
        "KAGGLE_KEY": "nothing",
        "KAGGLEHUB_CACHE": str(tmp_path / "kaggle"),
        "KAGGLE_CONFIG_DIR": str(tmp_path / "kaggle"),
        "NO_PROXY": "127.0.0.1,localhost",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    import kagglehub  # noqa: F401  (it reads some of these variables when it is first imported)

    # It reads the source of all callers in search of known libraries, which would take most of a test's time.
    monkeypatch.setattr("kagglehub.clients.get_user_agent", lambda: "test")


@pytest.fixture
def kaggle_server(kaggle_home, monkeypatch):
    from kagglesdk import kaggle_env

    server = KaggleServer()
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.TEST, server.url)
    yield server
    server.close()
