"""Every folder that the project reads or writes, named once.

All paths begin at `ROOT`, the checkout. Set the environment variable `ETPO_ROOT` to work on another copy of the
folders, as the tests do; nothing else decides where files are.
"""

import os
from pathlib import Path

ROOT = Path(os.environ.get("ETPO_ROOT", Path(__file__).resolve().parents[2]))

PARAMS = ROOT / "params.yaml"
DATA = ROOT / "data"
EMBEDDED = DATA / "embedded"  # tables that come with the project
TABLES = DATA / "tables"  # the 14 tasks as the experiments use them, made by the stage `data`
CORPORA = DATA / "corpora"  # texts for perplexity, made by the stage `corpora`
DOWNLOADS = DATA / "downloads"  # packages that hold weights or texts
STARTS = ROOT / "starts"  # what the warm start adds to a language model, see etpo_paper/model/starts.py
MODELS = ROOT / "models"  # language models, made of the pretrained ones and of what is in starts/
RESULTS = ROOT / "results"  # raw results, a folder for each scale
EVALUATIONS = ROOT / "evaluations"  # what the stages `evaluate`, `worlds`, `perplexity` and `gradients` measured
FIGURES = ROOT / "figures"  # figures and tables, a folder for each scale, made by the notebooks
NOTEBOOKS = ROOT / "notebooks"


def run_folder(scale: str, method: str, task: str, seed: int) -> Path:
    """The folder that holds everything one training run wrote."""
    return RESULTS / scale / method / task / f"seed{seed}"
