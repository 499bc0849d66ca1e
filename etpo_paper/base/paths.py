"""Every folder that the project reads or writes, named once.

All paths hang off `ROOT`, the checkout. Set the environment variable `ETPO_ROOT` to work on another
copy of the folders (tests do); nothing else decides where files lie.
"""

import os
from pathlib import Path

ROOT = Path(os.environ.get("ETPO_ROOT", Path(__file__).resolve().parents[2]))

PARAMS = ROOT / "params.yaml"
DATA = ROOT / "data"
EMBEDDED = DATA / "embedded"  # tables that ship with the project
TABLES = DATA / "tables"  # the 14 tasks as the experiments use them (made by the `data` stage)
CORPORA = DATA / "corpora"  # texts for perplexity (made by the `corpora` stage)
DOWNLOADS = DATA / "downloads"  # packages fetched for weights and texts
MODELS = ROOT / "models"  # language models (made by the `base_model` and `warm_start` stages)
RESULTS = ROOT / "results"  # raw results, a folder a scale
EVALUATIONS = ROOT / "evaluations"  # what the `evaluate` and `perplexity` stages measured afterwards
FIGURES = ROOT / "figures"  # figures and tables, a folder a scale, made by the notebooks
NOTEBOOKS = ROOT / "notebooks"


def run_folder(scale: str, method: str, task: str, seed: int) -> Path:
    """The folder that holds everything one training run wrote."""
    return RESULTS / scale / method / task / f"seed{seed}"
