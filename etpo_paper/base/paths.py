"""Every folder that the project reads or writes, named once.

All paths begin at `ROOT`: the checkout, or the working directory where the package was installed as a wheel. Set the
environment variable `ETPO_ROOT` to work on another copy of the folders, as the tests do; nothing else decides where
files are. A wheel brings the settings, the starts and the embedded tables with it, which are read unless `ETPO_ROOT`
names a folder that has its own.
"""

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]
_SHIPPED = Path(__file__).resolve().parents[1] / "shipped"  # only in a wheel, see setup.py

ROOT = Path(os.environ.get("ETPO_ROOT", Path.cwd() if _SHIPPED.is_dir() else _CHECKOUT))


def _brought(name: str) -> Path:
    """A file or folder of the project, or that of the wheel."""
    own = ROOT / name
    # A working directory may hold a params.yaml of something else, so it is not asked.
    return own if not _SHIPPED.is_dir() or "ETPO_ROOT" in os.environ and own.exists() else _SHIPPED / name


PARAMS = _brought("params.yaml")
DATA = ROOT / "data"
EMBEDDED = _brought("data/embedded")  # tables that come with the project
TABLES = DATA / "tables"  # the 14 tasks as the experiments use them, made by the stage `data`
CORPORA = DATA / "corpora"  # texts for perplexity, made by the stage `corpora`
DOWNLOADS = DATA / "downloads"  # packages that hold weights or texts
STARTS = _brought("starts")  # what the warm start adds to a language model, see etpo_paper/model/starts.py
MODELS = ROOT / "models"  # language models, made of the pretrained ones and of what is in starts/
RESULTS = ROOT / "results"  # raw results, a folder for each scale
EVALUATIONS = ROOT / "evaluations"  # what the stages `evaluate`, `worlds`, `perplexity` and `gradients` measured
FIGURES = ROOT / "figures"  # figures and tables, a folder for each scale, made by the notebooks
NOTEBOOKS = ROOT / "notebooks"


def run_folder(scale: str, method: str, task: str, seed: int) -> Path:
    """The folder that holds everything one training run wrote."""
    return RESULTS / scale / method / task / f"seed{seed}"
