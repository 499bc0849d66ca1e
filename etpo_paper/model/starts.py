"""The model that all runs begin from, as it is kept in git: what the warm start added to the pretrained model.

`starts/{name}/` holds a `card.json` and, where there was a warm start, one file of weights. Of a large model the file
is a LoRA adapter of some megabytes, in the format of peft, and `make` adds it to the pretrained model. Of the toy model
it is the whole model. All runs of all machines begin from these weights; a warm start that is repeated on another kind
of processor ends with slightly different ones.

The weights in the file are float16. They are added in float64 and rounded once, so that every machine gets the same
model. `etpo_paper.warm_start` has the recipe, and the stage `warm_start` repeats it.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from etpo_core.errors import UserError
from etpo_paper.base import paths
from etpo_paper.base.provenance import file_sha256, write_json
from etpo_paper.model import loading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER, WHOLE = "adapter_model.safetensors", "model.safetensors"
PRECISION = torch.float16


def folder(name: str) -> Path:
    """Where the start of a model is kept."""
    return paths.STARTS / name


def read_start(name: str) -> dict[str, Any] | None:
    """The card of a start: that of the model made from it, and `start`, which names and identifies the file of weights.

    Returns:
        None if starts/{name} does not exist.

    Raises:
        UserError: the card cannot be read, or the file is not the one that it names.
    """
    path = folder(name) / "card.json"
    if not path.is_file():
        return None
    restore = f"restore {path.parent} from git"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        start = card["start"]
        file = start and path.parent / start["file"]
        expected = start and start["sha256"]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path}: expected the card of a start; {restore}") from None
    if file is not None and (not file.is_file() or file_sha256(file) != expected):
        raise UserError(f"{file}: missing, or not the file that its card names; {restore}")
    return card


def write_start(
    name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", card: dict[str, Any], place: Path
) -> None:
    """Writes a start into a folder.

    Args:
        name: of the model.
        model: after the warm start: with an adapter of peft around it, or as it is if all its weights were trained.
        tokenizer: its tokenizer.
        card: of the pretrained model, with the recipe as `warm_start`.
        place: the folder; an older one is replaced.
    """
    from peft import PeftModel

    shutil.rmtree(place, ignore_errors=True)
    if isinstance(model, PeftModel):
        file = place / ADAPTER
        write_adapter(place, model, "default", f"{name}-base", PRECISION)
    else:
        card = loading.save_model(model, tokenizer, place, card, PRECISION)
        file = place / WHOLE
    card = {key: value for key, value in card.items() if key not in loading.PLACE}
    start = {"file": file.name, "sha256": file_sha256(file), "dtype": str(PRECISION).removeprefix("torch.")}
    loading.write_card(place, card | {"name": name, "start": start})


def write_adapter(place: Path, model: Any, adapter: str, base: str, dtype: torch.dtype | None = None) -> None:
    """Writes a LoRA adapter in the format of peft, the same bytes in every process and on every machine.

    Args:
        place: the folder.
        model: the model of peft around it.
        adapter: its name in the model.
        base: the name of the model that it was trained on. peft would write the path, and a set of modules in another
            order in every process.
        dtype: the floating type of the stored weights; None for that in memory.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    place.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    plain = {key: weights[key].detach().to("cpu", dtype).contiguous() for key in sorted(weights)}
    save_file(plain, place / ADAPTER, {"format": "pt"})
    config = model.peft_config[adapter].to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_json(place / "adapter_config.json", config)


def write_plain(name: str) -> None:
    """Writes the start of a model that has no warm start: a card that says so."""
    write_json(folder(name) / "card.json", {"name": name, "warm_start": None, "start": None})


def complete(name: str, made: dict[str, Any]) -> None:
    """Puts the card of the model that was made from a start in the place of the start's own card.

    It then says which weights the model has, so that other machines can tell whether they made the same.
    """
    loading.write_card(folder(name), made)


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """A weight matrix with a low-rank adapter added, W + scale B A.

    Args:
        weight: W, floating [out, in].
        down: A, floating [rank, in].
        up: B, floating [out, rank].
        scale: alpha / rank.

    Returns:
        float64 [out, in].
    """
    return weight.double() + scale * (up.double() @ down.double())


@torch.no_grad()
def merge(model: nn.Module, place: Path, dtype: torch.dtype) -> None:
    """Adds the adapter of a start to the model that it was trained on, in place.

    Args:
        model: the pretrained model.
        place: the folder of the start.
        dtype: the floating type that the sums are rounded to.

    Raises:
        UserError: the adapter was made for another model, or holds something that cannot be added to one weight. The
            model is as it was then.
    """
    from safetensors.torch import load_file
    from transformers.pytorch_utils import Conv1D

    file = place / ADAPTER
    weights = load_file(file)
    config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    modules, ends = dict(model.named_modules()), (".lora_A.weight", ".lora_B.weight")
    # An embedding and the head are often one tensor. An adapter of one of them would change both.
    owners = Counter(p.data_ptr() for _, p in model.named_parameters(remove_duplicate=False))
    sums = []
    for layer in dict.fromkeys(key.removesuffix(ends[0]).removesuffix(ends[1]) for key in weights):
        if not {layer + end for end in ends} <= weights.keys():
            raise UserError(f"{file} holds {layer}, expected LoRA of linear products alone: train it without that")
        linear, (down, up) = modules.get(layer.removeprefix("base_model.model.")), (weights[layer + e] for e in ends)
        transposed = isinstance(linear, Conv1D)  # GPT-2 and its relatives hold Wᵀ
        weight = None if linear is None else linear.weight.T if transposed else linear.weight
        if weight is None or weight.shape != (len(up), down.shape[1]):
            raise UserError(f"{file} was made for another model: this one has no such layer as {layer}")
        if owners[weight.data_ptr()] > 1:
            raise UserError(f"{file} holds {layer}, whose weight another layer shares: train it without that")
        sums.append((weight, merged(weight, down, up, config["lora_alpha"] / config["r"]).to(dtype)))
    for weight, total in sums:
        weight.copy_(total)


def make(name: str, base: Callable[[], object]) -> dict[str, Any]:
    """Makes models/{name} from its start.

    Args:
        name: a model with a folder in starts/.
        base: makes models/{name}-base if it is not there; called only if it is needed.

    Returns:
        The card of the model.

    Raises:
        UserError: the start is damaged, or the pretrained model is another one than it was made from.
    """
    card, place, goal = read_start(name), folder(name), paths.MODELS / name
    if card is None:
        raise UserError(f"{place}: there is no start of this model")
    if card["start"] is None:
        base()
        made = loading.read_card(f"{name}-base") | {"name": name}
        loading.write_card(goal, made)
        return made
    if card["start"]["file"] == WHOLE:
        partial = goal.with_name(f".{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(place, partial)
        shutil.rmtree(goal, ignore_errors=True)
        partial.rename(goal)
        return card
    base()
    model, tokenizer, own = loading.load_model(f"{name}-base")
    own = {key: value for key, value in own.items() if key not in loading.PLACE}
    expected = card["warm_start"]["base"]
    if own["sha256"] != expected:
        found = f"models/{name}-base has sha256 {own['sha256']}"
        raise UserError(f"{found}, but {place} was made from {expected}: delete models/{name}-base")
    dtype = getattr(torch, own["dtype"])
    merge(model, place, dtype)
    parts = {"name": name, "warm_start": card["warm_start"], "start": card["start"]}
    return loading.save_model(model, tokenizer, goal, own | parts, dtype)


def difference(one: Path, other: Path) -> float:
    """How far the weights of two starts of the same model are apart.

    Returns:
        The norm of the difference, as a share of the norm of the first; 0 only if they are the same.
    """
    from safetensors.torch import load_file

    name = next(name for name in (ADAPTER, WHOLE) if (one / name).is_file())
    a, b = load_file(one / name), load_file(other / name)
    apart = sum((a[key].double() - b[key].double()).square().sum() for key in a)
    whole = sum(value.double().square().sum() for value in a.values())
    return float((apart / whole) ** 0.5)
