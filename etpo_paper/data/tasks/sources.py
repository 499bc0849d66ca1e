"""Three places a task can come from: the tables that ship with the project, the web, or a folder of downloaded files.

`prepare_task` asks them in the order that the user set and takes the first that gives the table. A source that fails
is reported in one line and the next is tried. "embedded" always answers, without network or account, but for six
tasks with a declared stand-in; "online" and "local" give only the paper's own tables.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from etpo_core.errors import UserError, unknown
from etpo_paper.base import paths
from etpo_paper.data.tasks.generators import GENERATORS
from etpo_paper.data.tasks.preprocessing import complete_rows, kaggle_table, openml_table
from etpo_paper.data.tasks.registry import TASKS, TaskSpec
from etpo_paper.data.tasks.table import Task, make_task

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

ONLINE_TRIES = 2  # requests to a server that does not answer, before the next source is asked
RESTORE = "restore the file from the repository"
DOWNLOAD = "download the file again"


def prepare_task(name: str, sources: Sequence[str] = ("embedded",), local_folder: Path | str | None = None) -> Task:
    """Gets one task from the first source that has it.

    Args:
        name: a key of `TASKS`.
        sources: any of "embedded", "online", "local", in the order to try.
        local_folder: for "local": the folder with the downloaded files.

    Raises:
        UserError: unknown name or source, or no source gave the table (the line says what each of them said).
    """
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    if not sources:
        raise UserError(f"no data source given; name at least one of: {', '.join(SOURCES)}")
    for source in sources:
        if source not in SOURCES:
            raise unknown("data source", source, SOURCES)
    said = []
    for source in sources:
        try:
            task = SOURCES[source](TASKS[name], local_folder)
        except UserError as error:
            said.append(f"{source}: {error}")
            continue
        for line in said:
            logger.warning("task %s taken from source %s, because %s", name, source, line)
        return task
    raise UserError(f"task {name}: no source gave its table; {' | '.join(said)}")


def embedded(spec: TaskSpec, _folder: object = None) -> Task:
    """The table that ships with the project: generated, vendored, or the declared stand-in."""
    if spec.name in GENERATORS:
        x, y, columns = GENERATORS[spec.name]()
        x, y = openml_table(spec, x, y)
        return make_task(spec, x, y, columns, "embedded", False, f"generated table {spec.name}", RESTORE)
    file = spec.embedded or spec.stand_in.file
    return read_file(spec, paths.EMBEDDED / file, "embedded", RESTORE, stand_in=spec.embedded is None)


def local(spec: TaskSpec, folder: Path | str | None) -> Task:
    """The paper's table from a file in the user's folder, or in a subfolder named after the task or its origin."""
    if folder is None:
        raise UserError("source local needs the folder of the downloaded files; set `local_folder`")
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; set `local_folder` to the folder of the downloaded files")
    short = str(spec.identifier).rpartition("/")[2]
    subfolders = [folder / spec.name, folder / short]
    if spec.files[0] != "train.csv":  # a bare train.csv could belong to either competition
        subfolders.append(folder)
    candidates = [sub / file for sub in subfolders for file in spec.files]
    candidates += [folder / file for file in spec.files[1:]]
    for path in candidates:
        if path.is_file():
            return read_file(spec, path, "local", DOWNLOAD)
    usual = f"{spec.name}/train.csv" if spec.files[0] == "train.csv" else spec.files[0]
    raise UserError(f"{folder}: no file of task {spec.name}; expected {usual}, downloaded from {spec.origin}")


def online(spec: TaskSpec, _folder: object = None) -> Task:
    """The paper's table from OpenML or Kaggle, kept in the cache of the `openml` or `kagglehub` package."""
    path = _from_openml(spec) if spec.kind == "openml" else _from_kaggle(spec)
    return read_file(spec, path, "online", "delete that cached file and try again")


SOURCES = {"embedded": embedded, "online": online, "local": local}


def read_file(spec: TaskSpec, path: Path, source: str, cure: str, stand_in: bool = False) -> Task:
    """Reads and preprocesses one raw file.

    Args:
        spec: the task.
        path: an ARFF file for an OpenML task, a CSV file for a Kaggle task.
        source: the source's name, for the note.
        cure: what to do if the file is bad.
        stand_in: whether the file is the task's declared stand-in, which is used whole, without the paper's subsample.

    Raises:
        UserError: no such file, or not the table it should be.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {cure}")
    target = spec.stand_in.target if stand_in else spec.target
    openml = spec.kind == "openml"
    try:
        raw = read_arff(path, target) if openml else read_csv(path, target)
    except Exception as error:  # whatever the parsers raise, the file is not readable
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:150]
        form = "an ARFF" if openml else "a CSV"
        raise UserError(f"{path}: expected {form} file with column {target}, found {reason}; {cure}") from None
    rows = len(raw[1]) if openml else len(raw)
    if not stand_in and rows != spec.raw_rows:
        raise UserError(f"{path}: expected {spec.raw_rows} rows, found {rows}; {cure}")
    if openml:
        x, y, columns = raw
        x, y = complete_rows(x, y) if stand_in else openml_table(spec, x, y)
    else:
        try:
            x, y, columns = kaggle_table(raw, target, () if stand_in else spec.drop, spec.coded)
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: expected the columns of {spec.origin}, found {error}; {cure}") from None
    return make_task(spec, x, y, columns, source, stand_in, str(path), cure)


def read_csv(path: Path, target: str) -> "pd.DataFrame":
    """Reads a CSV file as Kaggle has them.

    Raises:
        Exception: whatever pandas says of a file that is not CSV, and ValueError without the target.
    """
    import pandas as pd  # here, because loading a prepared table does not need it

    frame = pd.read_csv(path)
    if target not in frame.columns:
        raise ValueError(f"no column {target}")
    return frame


def read_arff(path: Path, target: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Reads a dense ARFF file, row by row so that a large one stays small in memory.

    Args:
        path: the file.
        target: name of the nominal column to predict.

    Returns:
        x float64 [rows, features], nominal values as their position in the header, NaN where missing; y int64 [rows];
        feature names.

    Raises:
        Exception: whatever the parser says of a file that is not ARFF, and ValueError without the target.
    """
    import arff  # liac-arff, the parser of the `openml` package

    with open(path, encoding="utf-8") as file:
        parsed = arff.load(file, encode_nominal=True, return_type=arff.DENSE_GEN)
        names = [name for name, _ in parsed["attributes"]]
        if target not in names:
            raise ValueError(f"no column {target}")
        rows = (tuple(np.nan if cell is None else cell for cell in row) for row in parsed["data"])
        table = np.fromiter(rows, dtype=np.dtype((np.float64, len(names))))
    at = names.index(target)
    labels = table[:, at]
    if np.isnan(labels).any():
        raise ValueError(f"a missing value in column {target}")
    columns = tuple(name for name in names if name != target)
    return np.delete(table, at, axis=1), labels.astype(np.int64), columns


@contextmanager
def _openml_settings(config) -> Iterator[None]:
    """Few retries, and ARFF instead of Parquet: only ARFF fixes the order of the categories."""
    policy, tries = config.retry_policy, config.connection_n_retries
    before = os.environ.get("OPENML_SKIP_PARQUET")
    config.set_retry_policy("human", ONLINE_TRIES)
    os.environ["OPENML_SKIP_PARQUET"] = "true"
    try:
        yield
    finally:
        config.set_retry_policy(policy, tries)
        if before is None:
            del os.environ["OPENML_SKIP_PARQUET"]
        else:
            os.environ["OPENML_SKIP_PARQUET"] = before


def _from_openml(spec: TaskSpec) -> Path:
    import openml

    try:
        with _openml_settings(openml.config):
            data = openml.datasets.get_dataset(spec.identifier, download_data=True)
    except Exception as error:  # the package lets requests', its own and parsers' errors through
        raise _offline("OpenML", spec, error, "check the network or use source embedded or local") from None
    return Path(data.data_file)


def _from_kaggle(spec: TaskSpec) -> Path:
    import kagglehub

    try:
        if spec.kind == "kaggle-competition":
            folder = kagglehub.competition_download(spec.identifier)
        else:
            folder = kagglehub.dataset_download(spec.identifier)
    except Exception as error:  # likewise
        cure = "check the network, set KAGGLE_USERNAME and KAGGLE_KEY, accept the rules on Kaggle, or use source local"
        raise _offline("Kaggle", spec, error, cure) from None
    path = Path(folder) / spec.files[0]
    if not path.is_file():
        raise UserError(f"{folder}: expected the file {spec.files[0]} in the download of {spec.origin}; {DOWNLOAD}")
    return path


def _offline(site: str, spec: TaskSpec, error: Exception, cure: str) -> UserError:
    reason = " ".join(str(error).split())[:200] or "no reason given"
    return UserError(f"{site} did not give {spec.identifier} ({type(error).__name__}: {reason}); {cure}")
