"""Stage `data`: puts the tables of all fourteen tasks under data/tables, each checked.

    python -m pipeline.data --sources embedded

For each task the sources are asked in the given order: `embedded` (the default: no network, no account; stand-ins for
six tasks), `online` (OpenML and Kaggle) and `local` (files in `--local-folder`).
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from etpo_core.errors import one_line_errors
from etpo_paper.base import paths
from etpo_paper.base.settings import read_params
from etpo_paper.data.tasks import TASKS, prepare_task, save_task


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and writes a CSV and a JSON file a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", help="comma-separated order of sources; default: `data.sources` of params.yaml")
    parser.add_argument("--local-folder", help="folder of downloaded files; default: `data.local_folder`")
    parser.add_argument("--task", default="all", help="one task, or all")
    parser.add_argument("--out", type=Path, help="folder for the tables; default: data/tables")
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    with one_line_errors():
        settings = read_params()["data"]  # the same at every scale
        sources = [source.strip() for source in given.sources.split(",")] if given.sources else settings["sources"]
        folder = given.local_folder or paths.ROOT / settings["local_folder"]
        names = list(TASKS) if given.task == "all" else [given.task]
        stand_ins = []
        with logging_redirect_tqdm():
            for name in (bar := tqdm(names, unit="task")):
                bar.set_description(name)
                task = prepare_task(name, sources, folder)
                save_task(task, given.out or paths.TABLES)
                if task.stand_in:
                    stand_ins.append(f"{name}: {task.stand_in}")
        print(f"{len(names)} tables in {given.out or paths.TABLES}, of which {len(stand_ins)} are stand-ins")
        for line in stand_ins:
            print(f"  {line}")


if __name__ == "__main__":
    main()
