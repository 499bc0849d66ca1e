"""Scores the best code of every run on splits that never gave a reward.

A run's reward is the mean ROC AUC over five fixed splits, and the paper reports the *maximum* of it over
all steps of training: the best of many tries on the very splits that chose it, which flatters. Here the
best program of each finished run is fitted and scored once more on other 50/50 splits of the same table
(`evaluation.held_out_seeds`), and both numbers stand side by side in `evaluations/{scale}/held_out.csv`. A program
that ran on the five splits may still fail on one of the others, by running out of time for one; the score is the mean
over those it ran on, and how many it did not is told beside it.
Scores are kept by content - program, data, splits, limits - so that a run that has not changed is not
scored again.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.report import results

FAILED = -1.0  # of a program that fails on a held-out split: what the environment gives for a failure
# Scores by content; not a result, so it may be deleted at any time.
CACHE = paths.ROOT / "build" / "held_out"

Score = Callable[[str, Sequence[str]], list[list[float | None]]]


def evaluate(
    scale: str,
    split_seeds: Sequence[int],
    score: Score,
    content: Callable[[str], str],
    failure_reward: float = FAILED,
) -> pd.DataFrame:
    """Held-out scores of all finished runs of a scale.

    Args:
        scale: whose results to read.
        split_seeds: seeds of the held-out splits.
        score: maps a task's name and programs to the scores of each on every split, None where it fails.
        content: maps a task's name to a digest of all that decides a score besides program and splits.
        failure_reward: the reward of code that fails; a run that never got beyond it has no best code.

    Returns:
        Columns `results.HELD_OUT_COLUMNS`, a row a finished run, sorted by method, task and seed; `splits` is the
        number of splits that the program ran on, `splits_failed` that of the others; both are 0 where no code ever
        ran. The score is `failure_reward` where `splits` is 0.
    """
    cards = results.load_cards(scale)
    cards = cards[cards["status"] == "finished"]
    steps = results.load_steps(scale)
    best_rewards = steps.groupby(results.KEYS)["reward"].max()
    rows = []
    for task, runs in cards.groupby("task", sort=True):
        programs = {}
        for run in runs.itertuples():
            path = Path(run.folder) / "best_code.py"
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            reward = float(best_rewards.get((run.method, task, run.seed), failure_reward))
            programs[run.Index] = text if text.strip() and reward > failure_reward else None
            if reward > failure_reward and programs[run.Index] is None:
                raise UserError(f"{path} is missing although code of this run had a reward; run it again")
        known = _score_cached(task, sorted({p for p in programs.values() if p}), split_seeds, score, content)
        for run in runs.itertuples():
            scores = known[programs[run.Index]] if programs[run.Index] else []
            ran = [value for value in scores if value is not None]
            rows.append(
                {
                    "method": run.method,
                    "task": task,
                    "seed": run.seed,
                    "best_reward": float(best_rewards.get((run.method, task, run.seed), failure_reward)),
                    "held_out_score": sum(ran) / len(ran) if ran else failure_reward,
                    "splits": len(ran),
                    "splits_failed": len(scores) - len(ran),
                    "stand_in": run.stand_in if isinstance(run.stand_in, str) else "",
                }
            )
    frame = pd.DataFrame(rows, columns=results.HELD_OUT_COLUMNS)
    return frame.sort_values(results.KEYS, ignore_index=True)


def write(frame: pd.DataFrame, scale: str) -> Path:
    """Writes the held-out scores of a scale; returns the file."""
    path = paths.EVALUATIONS / scale / "held_out.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, float_format="%.6f", lineterminator="\n")
    return path


def _score_cached(
    task: str,
    programs: Sequence[str],
    split_seeds: Sequence[int],
    score: Score,
    content: Callable[[str], str],
) -> dict[str, list[float | None]]:
    if not programs:
        return {}
    rest = content(task)
    places = {source: CACHE / f"{_key(source, split_seeds, rest)}.json" for source in programs}
    known = {source: _read(place) for source, place in places.items()}
    new = [source for source in programs if known[source] is None]
    if new:
        CACHE.mkdir(parents=True, exist_ok=True)
        for source, values in zip(new, score(task, new), strict=True):
            known[source] = values
            places[source].write_text(json.dumps({"scores": values}), encoding="utf-8")
    return known


def _key(source: str, split_seeds: Sequence[int], rest: str) -> str:
    text = json.dumps([source, [int(seed) for seed in split_seeds], rest])
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _read(place: Path) -> list[float | None] | None:
    try:
        stored: Any = json.loads(place.read_text(encoding="utf-8"))
        return [None if value is None else float(value) for value in stored["scores"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, or cut off by an interruption: score again
