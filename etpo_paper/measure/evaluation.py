"""Scores the best code of each run on splits that never gave a reward.

The reward of a run is the mean ROC AUC over five fixed splits, and the paper reports its *maximum* over all steps of
training. That is the best of many tries on the very splits that selected it, so it is too optimistic. Here the best
program of each finished run is fitted and scored once more on other 50/50 splits of the same table
(`evaluation.held_out_seeds`), and `evaluations/{scale}/held_out.csv` shows both numbers side by side. A program that
ran on the five splits may still fail on another one, for example because it exceeds a time limit there. The held-out
score is the mean over the splits on which the program ran, and the number of splits on which it failed stands beside
it.

Every row of the table was once in a training half that gave a reward. A program that carried labels over from there, in
its text, would have a high held-out score as well, without having learned anything. So each program runs a second time
on the same splits, with the training labels dealt to other training rows (`deal`). What is fitted then says nothing,
and an honest program falls to about 0.5; a program that knows the labels keeps its score. The mean over the splits is
`dealt_auc`, its standard error `dealt_error`, and `results.carries_labels` is the verdict.

The scores are cached by content (program, data, splits, limits), so a run that has not changed is not scored again.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from etpo_core.errors import UserError
from etpo_core.sandbox.scoring import deal_labels, make_split
from etpo_paper.base import paths
from etpo_paper.report import results

FAILED = -1.0  # score of a program that fails on every held-out split, equal to the environment's reward for a failure
# Scores by content. They are no result and may be deleted at any time.
CACHE = paths.ROOT / "build" / "held_out"
_NAMES = "scores", "dealt"  # of what a file there holds

# What a program has on each split, None where it fails: scores with the true labels, and scores with dealt ones.
Scores = tuple[list[float | None], list[float | None]]
Score = Callable[[str, Sequence[str]], list[Scores]]


def evaluate(
    scale: str,
    split_seeds: Sequence[int],
    score: Score,
    content: Callable[[str], str],
    failure_reward: float = FAILED,
) -> pd.DataFrame:
    """Computes the held-out scores of all finished runs of a scale.

    Args:
        scale: the scale whose results are read.
        split_seeds: seeds of the held-out splits.
        score: maps the name of a task and programs to the scores of each program.
        content: maps the name of a task to a digest of everything but the program and the splits that affects a score.
        failure_reward: the reward of code that fails. A run that never earned more has no best code.

    Returns:
        A row for each finished run with the columns `results.HELD_OUT_COLUMNS`, sorted by method, task and seed.
        `splits` counts the splits on which the program ran and `splits_failed` the others; both are 0 if no program of
        the run ever ran. The score is `failure_reward` where `splits` is 0, and the dealt columns are empty there. On a
        split where a program fails with dealt labels only, its score with the true ones counts instead, so that no
        program hides what it carries by failing.

    Raises:
        UserError: the best code of a run is missing.
    """
    cards = results.load_cards(scale)
    cards = cards[cards["status"] == "finished"]
    steps = results.load_steps(scale)
    best_rewards = steps.groupby(results.KEYS)["reward"].max()
    rows = []
    for task, group in cards.groupby("task", sort=True):
        runs = [
            run | {"best_reward": float(best_rewards.get((run["method"], task, run["seed"]), failure_reward))}
            for run in group.to_dict("records")
        ]
        programs = [_best_code(Path(run["folder"])) if run["best_reward"] > failure_reward else None for run in runs]
        distinct = sorted({program for program in programs if program is not None})
        known = _score_cached(str(task), distinct, split_seeds, score, content)
        for run, program in zip(runs, programs, strict=True):
            scores, dealt = known[program] if program is not None else ([], [])
            ran = [value for value in scores if value is not None]
            rows.append(
                {
                    "method": run["method"],
                    "task": task,
                    "seed": run["seed"],
                    "best_reward": run["best_reward"],
                    "held_out_score": sum(ran) / len(ran) if ran else failure_reward,
                    **with_dealt_labels(scores, dealt),
                    "splits": len(ran),
                    "splits_failed": len(scores) - len(ran),
                    "stand_in": run["stand_in"] if isinstance(run["stand_in"], str) else "",
                }
            )
    frame = pd.DataFrame(rows, columns=results.HELD_OUT_COLUMNS)
    return frame.sort_values(results.KEYS, ignore_index=True)


def with_dealt_labels(scores: Sequence[float | None], dealt: Sequence[float | None]) -> dict[str, float]:
    """The columns dealt_auc and dealt_error of a program, from its scores with true and with dealt labels."""
    both = zip(scores, dealt, strict=True)
    kept = [true if other is None else other for true, other in both if true is not None]
    error = statistics.stdev(kept) / math.sqrt(len(kept)) if len(kept) > 1 else math.nan
    return {"dealt_auc": statistics.fmean(kept) if kept else math.nan, "dealt_error": error}


def deal(x: np.ndarray, y: np.ndarray, split_seed: int) -> np.ndarray:
    """The labels of a table with those of a split's training half dealt to other rows of that half.

    Args:
        x: float64 [rows, features].
        y: int64 [rows].
        split_seed: the seed of the split.

    Returns:
        int64 [rows]. The validation half keeps its labels.
    """
    split = make_split(x, y, split_seed)
    dealt = y.copy()
    dealt[split.train] = deal_labels(split, b"").y_train
    return dealt


def write(frame: pd.DataFrame, scale: str) -> Path:
    """Writes the held-out scores of a scale and returns the path of the file."""
    path = paths.EVALUATIONS / scale / "held_out.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, float_format="%.6f", lineterminator="\n")
    return path


def _best_code(folder: Path) -> str:
    path = folder / "best_code.py"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not text.strip():
        raise UserError(f"{path} is missing although code of this run had a reward; run it again")
    return text


def _score_cached(
    task: str,
    programs: Sequence[str],
    split_seeds: Sequence[int],
    score: Score,
    content: Callable[[str], str],
) -> dict[str, Scores]:
    """Maps each program to its scores; only programs that are not in the cache are run."""
    if not programs:
        return {}
    rest = content(task)
    places = {source: CACHE / f"{_key(source, split_seeds, rest)}.json" for source in programs}
    known = {source: scores for source, place in places.items() if (scores := _read(place)) is not None}
    new = [source for source in programs if source not in known]
    if new:
        CACHE.mkdir(parents=True, exist_ok=True)
        for source, values in zip(new, score(task, new), strict=True):
            known[source] = values
            places[source].write_text(json.dumps(dict(zip(_NAMES, values, strict=True))), encoding="utf-8")
    return known


def _key(source: str, split_seeds: Sequence[int], rest: str) -> str:
    text = json.dumps([source, [int(seed) for seed in split_seeds], rest])
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _read(place: Path) -> Scores | None:
    try:
        stored: Any = json.loads(place.read_text(encoding="utf-8"))
        scores, dealt = ([None if value is None else float(value) for value in stored[name]] for name in _NAMES)
        return scores, dealt
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the file is absent, or was cut short by an interruption
