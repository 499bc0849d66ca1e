"""Makes the folder of a language model before any training.

    python -m pipeline.base_model --model smollm2

writes models/smollm2-base. Stages that need `smollm2` or `codellama` do the same when it is not there. For `codellama`
it writes a card alone, which refers to the hub name or folder that the section `base_model` of params.yaml names; no
weights are copied.
"""

from collections.abc import Sequence
from pathlib import Path

from etpo_paper.base import paths
from etpo_paper.base.sections import unknown_name
from etpo_paper.base.settings import load_defaults
from etpo_paper.model import models
from etpo_paper.model.loading import build_tiny
from pipeline import entry


def make(model: str) -> str:
    """Makes the base model.

    Args:
        model: "tiny", "smollm2" or "codellama".

    Returns:
        The name of the folder in models/.
    """
    seed = load_defaults().base_model.tiny.seed  # the same at every scale
    makers = {"tiny": lambda folder: make_tiny(folder, seed), **models.base_makers()}
    if model not in makers:
        raise unknown_name("model", model, makers)
    name = f"{model}-base"
    makers[model](paths.MODELS / name)
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
        print(f"{paths.MODELS / name}: ready")


if __name__ == "__main__":
    main()
