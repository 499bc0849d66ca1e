"""Stage `verify`: every number of `claims.yaml`, and every committed figure and table, recomputed from raw results.

    python -m pipeline.verify            # claims, figures and the manifest of runs
    python -m pipeline.verify --claims   # claims and the manifest only

Prints each as `held` or `NOT HELD` and exits with status 1 if anything is not held. Figures are drawn into a
temporary folder; nothing of the checkout is written.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import yaml

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.settings import load_settings
from etpo_paper.report import claims, notebook, results
from pipeline import entry

COMPARED = {".csv", ".md", ".tex", ".png", ".pdf"}
WORKERS = 2


def check_figure(folder: Path) -> list[str]:
    """Draws figures/{scale}/{notebook} again and compares bytes; a line for each file that differs.

    Call it in a process of its own, in which figures go to a temporary folder from then on.
    """
    label = f"figures/{folder.parent.name}/{folder.name}"
    with tempfile.TemporaryDirectory() as place:
        paths.FIGURES = Path(place)
        try:
            notebook.execute(paths.NOTEBOOKS / f"{folder.name}.ipynb", scale=folder.parent.name)
        except Exception as error:  # of whatever kind: the other figures are still to be checked
            what = str(error) if isinstance(error, UserError) else " ".join(f"{type(error).__name__}: {error}".split())
            return [f"{label}: NOT HELD: cannot be drawn: {what}"]
        lines, drawn = [], Path(place) / folder.parent.name / folder.name
        for name in sorted({path.name for path in (*folder.iterdir(), *drawn.iterdir()) if path.suffix in COMPARED}):
            if not (folder / name).is_file():
                lines.append(f"{label}/{name}: NOT HELD: is missing")
            elif not (drawn / name).is_file() or (drawn / name).read_bytes() != (folder / name).read_bytes():
                lines.append(f"{label}/{name}: NOT HELD: differs from what the raw results give")
        return lines


def check_figures(folders: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yields each folder with what `check_figure` says of it, in order; several are drawn at a time."""
    # Forked processes have this one's libraries loaded, which takes longer than to draw most figures.
    with ProcessPoolExecutor(WORKERS, get_context("fork")) as pool:
        yield from zip(folders, pool.map(check_figure, folders), strict=True)


def manifest(scale: str) -> list[str]:
    """How many runs of a scale are planned and finished, and why the others are not."""
    status = results.run_status(scale)
    planned, finished = len(results.planned(scale)), int((status["status"] == "finished").sum())
    beyond = len(status) - planned  # finished runs that today's settings no longer plan
    more = f", {beyond} of them not planned" if beyond else ""
    lines = [f"{scale}: {planned} planned, {finished} finished{more}, {len(status) - finished} not"]
    reasons = _reasons().get(scale, {})
    open_runs = status[status["status"] != "finished"].fillna({"reason": ""})
    for (method, state, reason), runs in open_runs.groupby(["method", "status", "reason"]):
        seeds = runs.groupby("task")["seed"].agg(lambda own: f"seed {', '.join(map(str, own))}")
        named = "; ".join(f"{task} {own}" for task, own in seeds.items())
        why = reason or reasons.get(method, "no reason given in results/not_run.yaml")
        lines.append(f"  {method}: {state} ({why}): {named}")
    return lines


def _reasons() -> dict[str, dict[str, str]]:
    """Why runs were not made, by scale and method."""
    path = paths.RESULTS / "not_run.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def run(figures: bool = True) -> bool:
    """Prints everything.

    Returns:
        Whether all is held.
    """
    held = True
    listed = claims.load(paths.ROOT)
    for claim in listed:
        wrong = claims.check(claim, paths.ROOT)
        held = held and not wrong
        print("\n".join(wrong) or f"{claim.id}: held", flush=True)
    folders = sorted(f for f in paths.FIGURES.glob("*/*") if (paths.NOTEBOOKS / f"{f.name}.ipynb").is_file())
    if figures:
        for folder, wrong in check_figures(folders):
            held = held and not wrong
            print("\n".join(wrong) or f"{folder.relative_to(paths.ROOT)}: held", flush=True)
    print("runs:")
    for place in sorted(p.name for p in paths.RESULTS.glob("*") if p.is_dir()):
        load_settings(place)
        print("\n".join(manifest(place)))
    print(f"{len(listed)} claims: {'all held' if held else 'not everything is held'}")
    return held


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    parser = entry.parser(__doc__)
    parser.add_argument("--claims", action="store_true", help="leave the figures out")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        held = run(figures=not arguments.claims)
    sys.exit(not held)


if __name__ == "__main__":
    main()
