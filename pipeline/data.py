"""Stage `data`: puts the tables of all fourteen tasks under data/tables, each checked.

    python -m pipeline.data --sources embedded

The note of each table, a JSON file, is in git; the table itself is not. For each task the sources are tried in the
given order. `embedded` is the default and needs no network and no account, but has stand-ins for six tasks; `online`
downloads from OpenML and Kaggle; `local` reads files in `--local-folder`.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from etpo_paper.base import paths
from etpo_paper.base.settings import load_defaults
from etpo_paper.data.tasks import TASKS, Task, check_task, load_task, prepare_task, save_task
from pipeline import entry


def table(name: str) -> Task:
    """The table of a task; made from the sources that the settings name if it is not there, as in a fresh clone."""
    if not (paths.TABLES / f"{name}.csv").is_file():
        settings = load_defaults().data  # the same at every scale
        save_task(prepare_task(name, settings.sources, paths.ROOT / settings.local_folder))
    return load_task(name)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line: writes a CSV and a JSON file for each task."""
    parser = entry.parser(__doc__)
    parser.add_argument("--sources", help="comma-separated order of sources; default: `data.sources` of params.yaml")
    parser.add_argument("--local-folder", help="folder of downloaded files; default: `data.local_folder`")
    parser.add_argument("--task", default="all", help="one task, or all")
    parser.add_argument("--out", type=Path, help="folder for the tables; default: data/tables")
    given = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    with entry.one_line_errors():
        settings = load_defaults().data  # the same at every scale
        sources = [source.strip() for source in (given.sources.split(",") if given.sources else settings.sources)]
        folder = given.local_folder or paths.ROOT / settings.local_folder
        names = list(TASKS) if given.task == "all" else [given.task]
        check_task(names[0])
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
