"""Stage `metrics`: a few numbers and the learning curves of each method, for `dvc metrics` and `dvc plots`.

    python -m pipeline.metrics --scale laptop

Writes evaluations/{scale}/metrics.json and evaluations/{scale}/curves/{method}.csv from the raw results.
"""

from collections.abc import Sequence

from etpo_paper.base import paths
from etpo_paper.base.provenance import write_json, write_rows
from etpo_paper.base.settings import load_settings
from etpo_paper.report.metrics import curves, metrics
from etpo_paper.report.results import require_results
from pipeline import entry


def run(scale: str) -> None:
    """Writes the numbers and the curves."""
    load_settings(scale)
    require_results(scale)
    folder = paths.EVALUATIONS / scale
    write_json(folder / "metrics.json", metrics(scale))
    drawn = curves(scale)
    for method, curve in drawn.items():
        write_rows(folder / "curves" / f"{method}.csv", list(curve), curve.round(6).to_numpy(object).tolist())
    for file in (folder / "curves").glob("*.csv"):
        if file.stem not in drawn:
            file.unlink()  # of a method that the scale no longer has
    print(f"{len(drawn)} methods: {folder / 'metrics.json'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    entry.run_scale(run, __doc__, argv)


if __name__ == "__main__":
    main()
