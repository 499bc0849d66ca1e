"""Raw results as tidy frames: the only way from the files of the runs to figures and tables.

A run leaves a folder `results/{scale}/{method}/{task}/seed{n}/` with `steps.csv` (a row for each environment step),
`updates.csv` (a row for each update), `samples.jsonl`, `best_code.py` and `run_card.json`. The loaders here read all
runs of a scale and put `method`, `task` and `seed` in front of every row. They read only the runs whose card says
"finished". A run that was not started, was interrupted, or says "not run" has no rows; `run_status` lists it with the
reason, so that notebooks can state what is missing.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings
from etpo_paper.report.names import DAGGER, counted, label, ordered

KEYS = ["method", "task", "seed"]
STEP_COLUMNS = [
    "step", "update", "environment", "episode", "episode_step", "reward", "done", "status", "error_class",
    "code_hash", "tokens",
]  # fmt: skip
UPDATE_COLUMNS = [
    "update", "steps", "mean_reward", "max_reward", "share_runs", "policy_loss", "critic_loss",
    "kl_per_token", "kl_per_action", "tokens",
]  # fmt: skip
SAMPLE_COLUMNS = ["update", "step", "reward", "status", "error", "code", "pieces", "credit"]
CARD_COLUMNS = ["status", "reason", "stand_in", "source", "weights", "model", "integrity", "folder"]
HELD_OUT_COLUMNS = [
    *KEYS, "best_reward", "held_out_score", "dealt_auc", "dealt_error", "splits", "splits_failed", "stand_in",
]  # fmt: skip
PERPLEXITY_COLUMNS = [
    "model", "task", "seed", "corpus", "source", "stand_in", "tokens", "nll", "perplexity", "before_nll",
]  # fmt: skip
GRADIENT_COLUMNS = ["task", "actions", "method", "known", "lam", "cosine", "error"]
REGRET_COLUMNS = ["variant", "purpose", "world", "learning_rate", "update", "regret"]
BENCHMARK_COLUMNS = ["kind", "variant", "purpose", "world", "seed", "learning_rate", "start", "middle", "end"]
ESTIMATE_COLUMNS = [
    "kind", "length", "policy", "world", "estimator", "bias", "tilt", "deviation", "off", "cosine", "actions", "drawn",
]  # fmt: skip
OWN_ENVIRONMENT_COLUMNS = ["method", "seed", "update", "steps", "mean_reward", "share_runs"]
# With dealt labels, honest programs lie around 0.5. A program is held to carry labels if it lies above 0.5 by more than
# both of these: a margin in ROC AUC, and so many standard errors of its own mean over the splits, because on a table of
# a few dozen rows an honest program may be far above or below on each. docs/executor.md says how they were chosen.
DEALT_MARGIN, DEALT_ERRORS = 0.1, 4.0
EARLY, LATE = "early", "late"  # see `period`

_NAMES = {"method", "task", "variant", "purpose", "known", "kind", "policy", "estimator"}
_TEXT = dict.fromkeys(["status", "error_class", "code_hash", "stand_in", "corpus", "source", "model"], "object")


def load_cards(scale: str) -> pd.DataFrame:
    """The run cards of a scale, a row for each run that has one.

    Returns:
        Columns method, task, seed, status ("finished" | "not run"), reason, stand_in (text or None), source,
        weights (sha256 of the model's weights, or None), model (text if it is a stand-in, or None), integrity (whether
        the card counts attempts on the executor), folder; sorted by the first three.

    Raises:
        UserError: a card cannot be read.
    """
    rows = []
    for path in sorted((paths.RESULTS / scale).glob("*/*/seed*/run_card.json")):
        folder = path.parent
        seed = re.fullmatch(r"seed(\d+)", folder.name)
        if seed is None:
            continue
        card = _read_card(path)
        data, model = card.get("data") or {}, card.get("model") or {}
        rows.append(
            {
                "method": folder.parent.parent.name,
                "task": folder.parent.name,
                "seed": int(seed.group(1)),
                "status": card.get("status", "unfinished"),
                "reason": card.get("reason"),
                "stand_in": data.get("stand_in") or None,
                "source": data.get("source"),
                "weights": model.get("sha256"),
                "model": model.get("stand_in"),
                "integrity": "integrity" in card,
                "folder": folder,
            }
        )
    return pd.DataFrame(rows, columns=[*KEYS, *CARD_COLUMNS]).sort_values(KEYS, ignore_index=True)


def planned(scale: str) -> pd.DataFrame:
    """The runs that the settings of a scale ask for: columns method, task, seed."""
    settings = load_settings(scale)
    rows = [
        (method, task, int(seed))
        for method in settings.method_names
        for task in settings.tasks
        for seed in settings.seeds
    ]
    return pd.DataFrame(rows, columns=KEYS)


def run_status(scale: str) -> pd.DataFrame:
    """Every run that is planned or on disk: columns method, task, seed, status, reason.

    The status is the card's ("finished", "not run"), or "absent" for a planned run without a card, which has no reason.
    """
    cards = load_cards(scale)[[*KEYS, "status", "reason"]]
    status = planned(scale).merge(cards, on=KEYS, how="outer")
    absent = status["status"].isna()
    status["status"] = status["status"].astype(object).where(~absent, "absent")
    status["reason"] = status["reason"].astype(object).where(~absent, None)
    return status.sort_values(KEYS, ignore_index=True)


def missing_notes(status: pd.DataFrame) -> list[str]:
    """One line for each method that lacks planned runs: how many of them finished, and why the others did not if known.

    Args:
        status: see `run_status`; only the rows that matter.
    """
    notes = []
    for method in ordered(status["method"]):
        rows = status[status["method"] == method]
        open_rows = rows[rows["status"] != "finished"]
        if open_rows.empty:
            continue
        reasons = "; ".join(sorted({str(reason) for reason in open_rows["reason"] if isinstance(reason, str)}))
        done = len(rows) - len(open_rows)
        count = f"{done} of {len(rows)} planned runs finished" if done else "not run"
        notes.append(f"{label(method)}: {count}" + (f" ({reasons})." if reasons else "."))
    return notes


def require_results(scale: str) -> None:
    """Says what to run if a scale has no raw results at all.

    Raises:
        UserError: results/{scale} holds no run card.
    """
    place = paths.RESULTS / scale
    if next(place.glob("*/*/seed*/run_card.json"), None) is None:
        raise UserError(f"no raw results in {place}; make them with `make repro SCALE={scale}`")


def require_rows(rows: pd.DataFrame, what: str, scale: str, stage: str) -> None:
    """Says which stage to run if what it writes is not there.

    Args:
        rows: what was read.
        what: its name in the message, e.g. "held-out scores".
        scale: whose they are.
        stage: the module in `pipeline` that makes them.

    Raises:
        UserError: there are no rows.
    """
    if rows.empty:
        raise UserError(f"no {what} of scale {scale}; make them: python -m pipeline.{stage} --scale {scale}")


def load_steps(scale: str) -> pd.DataFrame:
    """All environment steps of the finished runs: method, task, seed and `STEP_COLUMNS`."""
    return _load_runs(scale, "steps.csv", STEP_COLUMNS, _read_csv)


def load_updates(scale: str) -> pd.DataFrame:
    """All updates of the finished runs: method, task, seed and `UPDATE_COLUMNS`."""
    return _load_runs(scale, "updates.csv", UPDATE_COLUMNS, _read_csv)


def load_samples(scale: str) -> pd.DataFrame:
    """The samples of code kept by the finished runs: method, task, seed and `SAMPLE_COLUMNS`.

    The columns pieces and credit hold a list for each sample of a method that trains. They are empty for other methods,
    and in files of older versions, which did not keep them.
    """
    return _load_runs(scale, "samples.jsonl", SAMPLE_COLUMNS, _read_jsonl)


def load_evaluation(scale: str) -> pd.DataFrame:
    """Held-out scores of the best codes (`HELD_OUT_COLUMNS`); no rows if the stage was not run."""
    return _load_evaluation(paths.EVALUATIONS / scale / "held_out.csv", HELD_OUT_COLUMNS)


def carries_labels(evaluation: pd.DataFrame) -> pd.Series:
    """Whether each row's program keeps a score with dealt labels, so that its score does not come from what it fits.

    Args:
        evaluation: see `load_evaluation`.
    """
    errors = evaluation["dealt_error"].fillna(0.0)
    return evaluation["dealt_auc"] > 0.5 + np.maximum(DEALT_MARGIN, DEALT_ERRORS * errors)


def load_perplexity(scale: str) -> pd.DataFrame:
    """Perplexities by model and corpus (`PERPLEXITY_COLUMNS`); no rows if the stage was not run."""
    return _load_evaluation(paths.EVALUATIONS / scale / "perplexity.csv", PERPLEXITY_COLUMNS)


def load_regret(scale: str) -> pd.DataFrame:
    """Regret in small worlds (`REGRET_COLUMNS`), purpose "tuning" or "reported"; no rows if the stage was not run."""
    return _load_evaluation(paths.EVALUATIONS / scale / "regret.csv", REGRET_COLUMNS)


def load_benchmark(scale: str) -> pd.DataFrame:
    """Regret in kinds of worlds (`BENCHMARK_COLUMNS`), a row for each run; no rows if the stage was not run."""
    return _load_evaluation(paths.EVALUATIONS / scale / "benchmark.csv", BENCHMARK_COLUMNS)


def load_estimates(scale: str) -> pd.DataFrame:
    """What estimators of an advantage are worth (`ESTIMATE_COLUMNS`); no rows if the stage was not run."""
    return _load_evaluation(paths.EVALUATIONS / scale / "estimates.csv", ESTIMATE_COLUMNS)


def load_own_environment(scale: str) -> pd.DataFrame:
    """Runs in an environment of one's own (`OWN_ENVIRONMENT_COLUMNS`), a row a batch; no rows if they were not made."""
    return _load_evaluation(paths.EVALUATIONS / scale / "own_environment.csv", OWN_ENVIRONMENT_COLUMNS)


def load_gradients(scale: str) -> pd.DataFrame:
    """How well gradients of small batches agree with others (`GRADIENT_COLUMNS`); no rows if the stage was not run."""
    return _load_evaluation(paths.EVALUATIONS / scale / "gradients.csv", GRADIENT_COLUMNS)


def integrity(steps: pd.DataFrame) -> dict[str, int]:
    """How many programs tried what the executor does not let through, by kind of attempt.

    "refused": a call for a file, socket, process or signal, which became an error; "forbidden": a system call for which
    the kernel ended the program; "forged": bytes in the place of an answer; "labels": an error that depends on which
    row has which label, which a program may also have without intent.

    Args:
        steps: see `load_steps`, or the rows of one steps.csv.
    """
    status, error = steps["status"], steps["error_class"]
    attempts = {
        "refused": error == "PermissionError",
        "forbidden": status == "policy_violation",
        "forged": error == "ProtocolError",
        "labels": status == "label_dependent",
    }
    return {kind: int(found.sum()) for kind, found in attempts.items()}


def integrity_note(steps: pd.DataFrame, cards: pd.DataFrame) -> str:
    """What programs tried and the executor did not let through, in a sentence; see `integrity`.

    Args:
        steps: see `load_steps`.
        cards: see `load_cards`.
    """
    tried = integrity(steps)
    finished = cards.loc[cards["status"] == "finished", "integrity"]
    stopped = [
        f"{counted(tried['refused'], 'refused call')} for files, sockets, processes or signals",
        counted(tried["forbidden"], "forbidden system call"),
        counted(tried["forged"], "forged answer"),
        counted(tried["labels"], "error") + " that tell labels",
    ]
    if not finished.all():
        stopped[-1] += " (in newer runs)" if finished.any() else " (not looked for when these runs were made)"
    return f"Attempts that the executor stopped, among {len(steps):,} programs: {', '.join(stopped)}."


def stand_ins(cards: pd.DataFrame) -> dict[str, str]:
    """The tasks of some run cards whose data are a stand-in, with a text that says which."""
    rows = cards[cards["stand_in"].notna()]
    return {task: str(text) for task, text in zip(rows["task"], rows["stand_in"], strict=True)}


def common_tasks(frame: pd.DataFrame, methods: Iterable[str]) -> list[str]:
    """The tasks on which every one of the methods has rows. Averages over different tasks cannot be compared.

    Args:
        frame: with columns method and task.
        methods: methods to be compared.
    """
    tasks = [set(frame.loc[frame["method"] == method, "task"]) for method in methods]
    return sorted(set.intersection(*tasks)) if tasks else []


def notes(scale: str, frame: pd.DataFrame, methods: Iterable[str], intervals: bool = True) -> list[str]:
    """What a reader must know to understand a figure or table, one line for each fact.

    Args:
        scale: whose runs they are.
        frame: the rows shown, with columns method, task and seed.
        methods: the methods that the figure is about, whether or not they were run.
        intervals: whether the figure shows intervals, so that a line has to say where they come from.

    Returns:
        How many tasks and seeds there are and what that means for intervals; which methods or runs are missing; whether
        all runs started from the same weights; which tasks are stand-ins, and which model is.
    """
    wanted = set(methods)
    seeds = frame.groupby(["method", "task"])["seed"].nunique()
    lines = []
    if len(seeds):
        few, many = int(seeds.min()), int(seeds.max())
        text = f"{counted(frame['task'].nunique(), 'task')}, {'' if few == many else f'{few} to '}"
        text += f"{counted(many, 'seed')} a task"
        if intervals:
            text += "; intervals: 95 %, bootstrap over seeds" if many > 1 else ": n=1, hence no interval"
        lines.append(text + ".")
    status = run_status(scale)
    lines += missing_notes(status[status["method"].isin(wanted)])
    cards = load_cards(scale)
    own = frame[KEYS].drop_duplicates().merge(cards[[*KEYS, "weights", "model"]], on=KEYS)
    weights = own.dropna(subset="weights")
    weights = weights.astype({"seed": int})  # floats in a frame that has rows of no run
    if (starts := weights["weights"].nunique()) > 1:
        lines.append(
            f"The runs used {starts} versions of the warm start, whose weights differ by rounding errors. "
            + _different_starts(weights)
        )
    marked = sorted(set(stand_ins(cards)) & set(frame["task"]))
    if marked:
        lines.append(f"Stand-in data, not the paper's (marked {DAGGER} beside a task's name): {', '.join(marked)}.")
    lines += [f"{model.replace(': stands', ' stands')}." for model in sorted(own["model"].dropna().unique())]
    return lines


def common_runs(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The rows of some methods on the tasks and seeds that every one of them has.

    Args:
        frame: with columns method, task and seed.
        methods: methods to be compared.
    """
    rows = frame[frame["method"].isin(methods)]
    counts = rows.groupby(["task", "seed"])["method"].transform("nunique")
    return rows[counts == len(set(methods))]


def finished_methods(frame: pd.DataFrame, methods: Iterable[str]) -> list[str]:
    """The methods among `methods` that have rows in a frame, in the order of every legend.

    Raises:
        UserError: none of them has rows.
    """
    methods = list(methods)
    present = ordered(set(methods) & set(frame["method"]))
    if not present:
        raise UserError(f"no finished run of {', '.join(methods)}; run them with `make repro` first")
    return present


def period(updates: pd.Series) -> pd.Series:
    """Whether an update belongs to the first fifth of training ("early"), the last ("late") or neither ("between").

    Args:
        updates: numbers of updates, from 0 to the last one of training. A fifth is rounded up, so that short runs have
            both an early and a late part.
    """
    count = int(updates.max()) + 1
    fifth = -(-count // 5)
    names = np.select([updates < fifth, updates >= count - fifth], [EARLY, LATE], default="between")
    return pd.Series(names, index=updates.index, dtype=object)


def _different_starts(weights: pd.DataFrame) -> str:
    """The tasks and seeds on which methods started from different weights, in a sentence.

    Args:
        weights: columns method, task, seed and weights, a row for each run.
    """
    starts = weights.groupby(["task", "seed"])["weights"].nunique()
    apart = starts[starts > 1].reset_index()
    if apart.empty:
        return "All methods started from the same weights on each task and seed."
    tasks = weights["task"].nunique()
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for task, rows in apart.groupby("task"):
        by_seeds.setdefault(tuple(rows["seed"]), []).append(str(task))
    parts = []
    for same, names in by_seeds.items():
        which = f"seed{'s' * (len(same) > 1)} {', '.join(map(str, same))}"
        everywhere = tasks > 1 and len(names) == tasks
        parts.append(f"{which} of {'every task' if everywhere else ', '.join(sorted(names))}")
    return f"Methods started from different weights on {'; '.join(sorted(parts))}."


def _load_runs(
    scale: str, name: str, columns: Sequence[str], read: Callable[[Path, Sequence[str]], pd.DataFrame]
) -> pd.DataFrame:
    cards = load_cards(scale)
    frames = []
    for run in cards[cards["status"] == "finished"].to_dict("records"):
        path = run["folder"] / name
        if not path.is_file():
            raise UserError(f"{path} is missing although the run is finished; delete {run['folder']} and run again")
        frame = read(path, columns)[list(columns)]  # older files have more of them
        _check_rows(frame, path, _read_card(run["folder"] / "run_card.json"))
        for position, key in enumerate(KEYS):
            frame.insert(position, key, run[key])
        if not frame.empty:
            frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=[*KEYS, *columns])
    return pd.concat(frames, ignore_index=True)


def _check_rows(frame: pd.DataFrame, path: Path, card: dict[str, Any]) -> None:
    """Compares the rows of a file with what a finished run leaves: nothing twice, nothing missing.

    Raises:
        UserError: the rows do not fit, as where two processes wrote the file or lines were lost.
    """
    if path.name == "samples.jsonl":  # some of the steps
        number, rule, up_to = "step", "no step twice and all in order", ""
        fits = frame[number].is_monotonic_increasing and frame[number].is_unique
    else:
        number, first, count = ("step", 1, "step") if path.name == "steps.csv" else ("update", 0, "steps")
        last = 0 if frame.empty else frame[count].max()
        wanted = ((card.get("parameters") or {}).get("training") or {}).get("env_steps", last)
        rule, up_to = f"each {number} once and in order, up to step {wanted:g}", f", up to step {last:g}"
        fits = frame[number].tolist() == list(range(first, first + len(frame))) and last == wanted
    if not fits:
        found = f"{len(frame)} rows with {frame[number].nunique()} different {number}s{up_to}"
        mend = f"restore it with git, or delete {path.parent} and make the run again"
        raise UserError(f"{path}: expected {rule}, found {found}; {mend}")


def _load_evaluation(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=list(columns))
    return _read_csv(path, columns)


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete its folder and run again") from None
    if not isinstance(card, dict):
        raise UserError(f"{path} holds no run card; delete its folder and run again")
    return card


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    mend = "restore it with git or make it again"
    try:
        text = path.read_text(encoding="utf-8")
        # A hash such as "46e1" is not a number, and "None" may be a name; only an empty cell is a missing number.
        frame = pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=["", "nan"], dtype=_TEXT)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path} is not a readable CSV file ({' '.join(str(error).split())}); {mend}") from None
    # Pandas takes the rest of a row that was cut off for missing numbers.
    rows = csv.reader(io.StringIO(text))
    if cut := [rows.line_num for row in rows if row and len(row) != len(frame.columns)]:
        raise UserError(f"{path} has not {len(frame.columns)} cells in line {cut[0]}; {mend}")
    if not text.endswith("\n"):
        raise UserError(f"{path} ends in the middle of a row, in line {rows.line_num}; {mend}")
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        raise UserError(f"{path} lacks the column {absent[0]!r}; make it again with this version")
    if wrong := [column for column in columns if column not in _NAMES and frame[column].dtype == "str"]:
        raise UserError(f"{path} has text in the column {wrong[0]!r}, expected numbers; {mend}")
    return frame


def _read_jsonl(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    rows = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError:
            raise UserError(f"{path} is not valid JSON in line {number}; make it again") from None
        rows.append({column: row.get(column) for column in columns})
    return pd.DataFrame(rows, columns=list(columns))
