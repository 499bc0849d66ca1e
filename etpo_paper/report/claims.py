"""Numbers that the documentation states, recomputed from the committed raw files.

`claims.yaml` lists the claims. A claim names a file, a fragment of its text in which `{}` takes the place of each
number, and for each number a call of one of the functions in `FUNCTIONS`. The number is read from the file itself and
compared with what the call returns, so that a changed digit in the text is found as well as a changed row of a raw
file. A number holds if it is the recomputed one rounded to the digits shown. Notebooks are
read by their Markdown cells.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from etpo_core.errors import UserError, unknown
from etpo_paper.base import paths
from etpo_paper.base.sections import Place, unknown_name
from etpo_paper.report import ablations, convergence, index, perplexity, results, statistics

NUMBER = r"(-?\d+(?:\.\d+)?)"
_CELL = "\f"
FIELDS = {"id", "file", "text", "found", "command"}


@dataclass(frozen=True)
class Claim:
    """One entry of `claims.yaml`.

    Attributes:
        id: its name.
        file: where it is stated, relative to the root.
        text: the fragment, with `{}` for each number; line breaks count as spaces.
        found: for each number the name of a function and its arguments.
        command: the command that makes the raw files.
        times: what the recomputed numbers are multiplied by, 100 for per cent.
        also: further files that state the same.
    """

    id: str
    file: str
    text: str
    found: list[list[Any]]
    command: str
    times: float = 1.0
    also: list[str] = field(default_factory=list)

    def places(self, text: str) -> list[re.Match[str]]:
        """Where the fragment occurs in a text, with any numbers."""
        words = [re.escape(word).replace(r"\{\}", NUMBER) for word in self.text.split()]
        return list(re.finditer(r"\s+".join(words), text))


def load(root: Path) -> list[Claim]:
    """Reads `claims.yaml`.

    Raises:
        UserError: the file is missing or no valid YAML, or an entry is not a claim.
    """
    path = root / "claims.yaml"
    if not path.is_file():
        raise UserError(f"{path} is missing; restore it with `git checkout claims.yaml`")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct it there") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path}: expected a list of claims with the fields {', '.join(sorted(FIELDS))}")
    claims = []
    for entry in entries:
        if absent := FIELDS - set(entry):
            raise UserError(f"{path}: claim {entry.get('id')} lacks the field {min(absent)}; add it")
        for name in entry:
            if name not in (known := [f.name for f in fields(Claim)]):
                raise unknown_name("field", name, known, Place(f"claim {entry['id']}", "claims.yaml"))
        claim = Claim(**entry)
        if claim.text.count("{}") != len(claim.found):
            raise UserError(f"{path}: claim {claim.id} needs one call under `found` for each {{}} of its text")
        for call in claim.found:
            _check_call(claim, call)
        claims.append(claim)
    return claims


def _check_call(claim: Claim, call: object) -> None:
    if not isinstance(call, list) or not call:
        raise UserError(f"claims.yaml: claim {claim.id}: got {call!r}, expected a list: a function and its arguments")
    name, *arguments = call
    if name not in FUNCTIONS:
        raise unknown_name("function", name, FUNCTIONS, Place(f"claim {claim.id}", "claims.yaml"))
    wanted = list(signature(FUNCTIONS[name]).parameters)
    if len(arguments) != len(wanted):
        expected = f"expected {len(wanted)} arguments: {', '.join(wanted)}"
        raise UserError(f"claims.yaml: claim {claim.id}: got {call}, {expected}")


def check(claim: Claim, root: Path) -> list[str]:
    """What does not hold about a claim, one line each; empty if it holds."""
    return [line for file in (claim.file, *claim.also) for line in _check_file(claim, file, root)]


def text_of(path: Path) -> str:
    """What a reader sees of a page: its text, or the Markdown cells of a notebook with a form feed between them."""
    if not path.is_file():
        return ""
    return _CELL.join(index.markdown_cells(path)) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")


def forget() -> None:
    """Drops what was read, for a process that changes the raw files between two checks."""
    for function in (_ends, _ablations, _scores, _changes, _drawn):
        function.cache_clear()


def ends(scale: str, method: str, column: str) -> float:
    """A cell of `convergence.compare_ends`: the last fifth's reward of a method, or ETPO compared with the method."""
    return _cell(_ends(scale), column, scale, method=method)


def ablation(scale: str, method: str, column: str) -> float:
    """A cell of `ablations.table`: ETPO or an ablation of it, on the seeds that all of them have."""
    return _cell(_ablations(scale), column, scale, method=method)


def share_that_runs(scale: str, method: str) -> float:
    """The share of a method's programs of the last fifth of the steps that ran, the mean over its runs."""
    return float(_rows(_scores(scale), scale, method=method)["last_runs"].mean())


def paired(scale: str, first: str, second: str) -> float:
    """IQM over (task, seed) pairs of the last fifth's reward of the first method minus that of the second."""
    return float(statistics.pooled_iqm(_pairs(scale, first, second)))


def pairs_above(scale: str, first: str, second: str) -> float:
    """The number of (task, seed) pairs in which the first method's last fifth earns more."""
    return float(sum((pair > 0).sum() for pair in _pairs(scale, first, second)))


def last_fifth(scale: str, method: str, task: str, seed: int) -> float:
    """The mean reward of one run over the last fifth of its steps."""
    return _cell(_scores(scale), "last_mean", scale, method=method, task=task, seed=seed)


def iqm(scale: str, method: str) -> float:
    """The interquartile mean over a method's runs of the last fifth's reward."""
    rows = _rows(_scores(scale), scale, method=method)
    return float(statistics.pooled_iqm(statistics.strata_of(rows, "last_mean")))


def perplexity_change(scale: str, method: str, corpus: str) -> float:
    """The relative change of the perplexity of a text by a method's training, the mean over its runs."""
    return _cell(_changes(scale), "change", scale, method=method, corpus=corpus)


def drawn(table: str, column: str, keys: dict[str, object]) -> float:
    """A number of a committed table, which `make verify` itself compares with the raw results.

    Args:
        table: path of its CSV file within figures/.
        column: the column that holds the number.
        keys: values of other columns. Where several rows have them, the mean is taken over these rows.
    """
    return float(_column(_drawn_rows(table, keys), column).mean())


def rows_drawn(table: str, keys: dict[str, object]) -> float:
    """The number of rows of a committed table that have these values, see `drawn`; None stands for an empty cell."""
    return float(len(_drawn_rows(table, keys)))


FUNCTIONS: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        ends,
        ablation,
        share_that_runs,
        paired,
        pairs_above,
        last_fifth,
        iqm,
        perplexity_change,
        drawn,
        rows_drawn,
    )
}


def _check_file(claim: Claim, file: str, root: Path) -> list[str]:
    if not (root / file).is_file():
        return [f"{claim.id}: NOT HELD: {file} is missing; restore it with git or correct claims.yaml"]
    text = text_of(root / file)
    places = claim.places(text)
    if len(places) != 1:
        return [f"{claim.id}: NOT HELD: its text occurs {len(places)} times instead of once in {file}"]
    wrong = []
    for position, call in enumerate(claim.found, start=1):
        stated = places[0].group(position)
        where = f"{file}:{_line(text, places[0].start(position))}"
        name, *arguments = call
        try:
            value = claim.times * FUNCTIONS[name](*arguments)
        except UserError as error:
            wrong.append(f"{claim.id}: NOT HELD: stated {stated}, {error}, {where}")
            continue
        digits = len(stated.partition(".")[2])
        if not abs(float(stated) - value) <= 0.5 * 10**-digits + 1e-9:
            found = f"stated {stated}, found {value:.{digits + 2}f}"
            wrong.append(f"{claim.id}: NOT HELD: {found}, {where}; its raw files are made by `{claim.command}`")
    return wrong


def _line(text: str, place: int) -> str:
    """The line of a place in a text, counted from 1; in a notebook also which of its Markdown cells."""
    before = text[:place]
    line = before[before.rfind(_CELL) + 1 :].count("\n") + 1
    return f"Markdown cell {before.count(_CELL) + 1}:{line}" if _CELL in text else str(line)


@cache
def _ends(scale: str) -> pd.DataFrame:
    results.require_results(scale)
    return convergence.compare_ends(convergence.load(scale), np.random.default_rng(0))


@cache
def _ablations(scale: str) -> pd.DataFrame:
    results.require_results(scale)
    return ablations.table(ablations.load(scale, np.random.default_rng(0))).numbers


@cache
def _scores(scale: str) -> pd.DataFrame:
    results.require_results(scale)
    return statistics.run_scores(results.load_steps(scale))


@cache
def _drawn(table: str) -> pd.DataFrame:
    path = paths.FIGURES / table
    if not path.is_file():
        raise UserError(f"{path} is missing; restore it with `git checkout figures`")
    return pd.read_csv(path)


def _drawn_rows(table: str, keys: dict[str, object]) -> pd.DataFrame:
    frame = _drawn(table)
    for key, value in keys.items():
        cells = _column(frame, key)
        frame = frame[cells.isna() if value is None else cells == value]
    if frame.empty:
        raise UserError(f"figures/{table} has no row with {keys}")
    return frame


@cache
def _changes(scale: str) -> pd.DataFrame:
    return perplexity.collect(scale).changes


def _pairs(scale: str, first: str, second: str) -> list[np.ndarray]:
    pairs = statistics.paired_differences(_scores(scale), "last_mean", first, second)
    if not pairs:
        raise UserError(f"no pair of finished runs of {first} and {second}; run `make repro SCALE={scale}`")
    return pairs


def _rows(frame: pd.DataFrame, scale: str, **keys: object) -> pd.DataFrame:
    for key, value in keys.items():
        frame = frame[frame[key] == value]
    if frame.empty:
        named = ", ".join(map(str, keys.values()))
        raise UserError(f"no raw results of {named}; restore them or run `make repro SCALE={scale}`")
    return frame


def _cell(frame: pd.DataFrame, column: str, scale: str, **keys: object) -> float:
    return float(_column(_rows(frame, scale, **keys), column).iloc[0])


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    if name not in frame.columns:
        raise unknown("column", name, frame.columns)
    return frame[name]
