"""A language model of the user's own: a transformers folder, or a name on the hub, in the place of our models.

`register` looks at the model and writes a card for it, `models/own/NAME/card.json`; nothing is written into the user's
folder. The card says where the files lie, identifies them by one SHA-256, and holds what was chosen:

- `format`: how it is asked. A model with infilling tokens fills in; a chat model is asked in its chat template; any
  other one goes on from the code. Base models often come with the chat template of their family. A model is therefore
  taken for a chat model if its template ends a turn with a token that the model itself ends an answer with.
- `stops`: a program ends where its text shows it (`stops`), because such a model may never write its end token.
- `decoder`: who writes the actions, which the architecture decides (`llama.config_fits`).
- `context`: how many tokens it reads at once, None where its configuration does not say.
- `lora_targets`: the names of the linear products with adapters, None for all.

A card stays as it is while the model's files do, so that a run goes on as it was begun.
"""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etpo_core.errors import UserError
from etpo_paper.environment.prompts import task_prompt
from etpo_paper.model import llama, loading
from etpo_paper.model.loading import CHAT, CONTINUATION, INFILL, OWN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHTS = ("*.safetensors", "*.bin")


def register(source: str, targets: str | None, ours: Collection[str], programs: bool = True) -> str:
    """Makes a model of the user's own known, and prints how it is used.

    Args:
        source: a transformers folder, or a name on the hub, such as "Qwen/Qwen2.5-0.5B".
        targets: names of the linear products that have adapters, with commas between them; None for all.
        ours: the names of the models that need no card, for a message.
        programs: whether it writes bodies of `build_model`, which end where their text shows it; otherwise actions end
            with its end token, as in environments of the user's own.

    Returns:
        Its name, for `models` and `loading`.

    Raises:
        UserError: there is no such model, or it cannot be used.
    """
    names = None if targets is None else [name.strip() for name in targets.split(",")]
    if names is not None and not all(names):
        raise UserError(f"--lora-targets {targets!r}: expected names with commas between them, such as q_proj,v_proj")
    if not Path(source).is_dir() and "/" not in source:
        raise UserError(
            f"unknown model {source!r}; expected {', '.join(ours)}, a folder with a model of transformers, or a name "
            "on the hub such as Qwen/Qwen2.5-0.5B"
        )
    which = hashlib.sha256(f"{source} {names}{'' if programs else ' texts'}".encode()).hexdigest()[:8]
    name = f"{OWN}{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(source).name)}-{which}"
    folder = loading.MODELS / name
    card = loading.read_card(name) if (folder / "card.json").is_file() else None
    if card is None or not loading.unchanged(card):
        card = _card(source, names) | {"stops": programs}
        loading.write_card(folder, card)
    print(f"{source}: {card['used']}")
    return name


def _card(source: str, targets: list[str] | None) -> dict[str, Any]:
    card, config, tokenizer = loading.describe(source, source)
    place = Path(card["path"])
    if not any(file for pattern in WEIGHTS for file in place.glob(pattern)):
        raise UserError(f"{source} holds no weights: expected files {' or '.join(WEIGHTS)} beside its config.json")
    format, why = _format(tokenizer, loading.end_tokens(card))
    ids = loading.encode_prompt(tokenizer, task_prompt("Balance Scale", 4, 62), format)
    if max(ids) >= config.vocab_size:
        raise UserError(
            f"{source}: its tokenizer has a token {max(ids)}, and the model knows {config.vocab_size}: the two do not "
            "belong together"
        )
    fast = llama.config_fits(config)
    asked = {CHAT: "asked in its chat template", INFILL: "fills in the body", CONTINUATION: "goes on from the code"}
    path = "on the fast path" if fast else "through transformers"
    used = f"{config.model_type}, {path}; {asked[format]}, because {why}"
    return card | {
        "format": format,
        "decoder": "LlamaDecoder" if fast else "TransformersDecoder",
        "context": getattr(config, "max_position_embeddings", None),
        "lora_targets": targets,
        "used": used,
        "stand_in": f"a model of the user's own: {used}",
    }


def _format(tokenizer: "PreTrainedTokenizerBase", ends: Collection[int]) -> tuple[str, str]:
    """The format of prompts that suits a model, and why."""
    if loading.infill_tokens(tokenizer) is not None:
        return INFILL, "it has the tokens for that"
    if not tokenizer.chat_template:
        return CONTINUATION, "it has no chat template"
    answer = "Yes."
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        loading.encode_prompt(tokenizer, task_prompt("Balance Scale", 4, 62), CHAT)
    except Exception as error:  # a template is a program of its own
        return CONTINUATION, f"its chat template fails ({loading.first_line(error)})"
    behind = tokenizer(text.rpartition(answer)[2], add_special_tokens=False).input_ids
    closing = next((token for token in behind if token in ends), None)
    if closing is None:
        return CONTINUATION, "it does not end an answer as its chat template ends a turn: a base model"
    return CHAT, f"that ends a turn with {tokenizer.convert_ids_to_tokens(closing)}, as the model does an answer"
