"""What import-linter cannot see: which files may know how many processes there are."""

import re

from etpo_paper.base import paths

KNOWS_RANKS = re.compile(r"\b(distributed|dist)\.(rank|size|get_rank|get_world_size)\(")


def test_only_the_room_of_processes_and_the_pipeline_know_ranks():
    files = [*paths.ROOT.glob("etpo_core/**/*.py"), *paths.ROOT.glob("etpo_paper/**/*.py")]
    knowing = {str(f.relative_to(paths.ROOT)) for f in files if KNOWS_RANKS.search(f.read_text(encoding="utf-8"))}
    assert knowing == {"etpo_paper/base/distributed.py"}
