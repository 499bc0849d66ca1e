"""Stage `base_model`: makes the folder of a language model before any training.

    python -m pipeline.base_model --model smollm2

writes models/smollm2-base. For `codellama` it writes a card alone, which refers to the hub name or folder that the
section `base_model` of params.yaml names; no weights are copied.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from etpo_paper.base.paths import MODELS
from etpo_paper.base.sections import unknown_name
from etpo_paper.base.settings import load_defaults
from etpo_paper.model.loading import build_tiny, convert_smollm2, fetch_hub
from pipeline import entry


def make(model: str) -> str:
    """Makes the base model.

    Args:
        model: "tiny", "smollm2" or "codellama".

    Returns:
        The name of the folder in models/.
    """
    settings = load_defaults().base_model  # the same at every scale
    makers: dict[str, Callable[[Path], Any]] = {
        "tiny": lambda folder: make_tiny(folder, settings.tiny.seed),
        "smollm2": convert_smollm2,
        "codellama": lambda folder: fetch_hub(settings.codellama.source, folder),
    }
    if model not in makers:
        raise unknown_name("model", model, makers)
    name = f"{model}-base"
    makers[model](MODELS / name)
    return name


def make_tiny(folder: Path, seed: int) -> None:
    """Makes the tiny model, whose tokenizer is trained on the corpus of the warm start."""
    from etpo_paper.warm_start.corpus import tokenizer_texts  # here, because it imports all of scikit-learn

    build_tiny(folder, tokenizer_texts(seed), seed)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stage from its command line."""
    parser = entry.parser(__doc__)
    parser.add_argument("--model", required=True, help="tiny, smollm2 or codellama")
    arguments = parser.parse_args(argv)
    with entry.one_line_errors():
        name = make(arguments.model)
        print(f"{MODELS / name}: ready")


if __name__ == "__main__":
    main()
