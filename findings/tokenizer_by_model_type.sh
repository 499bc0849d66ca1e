#!/usr/bin/env bash
# Question: which tokenizer does AutoTokenizer build from a folder with tokenizer.json, and a
# tokenizer_config.json that says "tokenizer_class": "PreTrainedTokenizerFast"?
# One would think: the one that tokenizer.json describes, whatever else lies in the folder.
# What happens: if config.json says "model_type": "qwen2", the class Qwen2Tokenizer is taken and puts its own
# pre-tokenizer (single digits, bytes) in place of the one in tokenizer.json; the same text gets other ids.
# With model_type qwen3 the file is followed, unless tokenizer_class is left out. No message is printed.
# Versions: transformers 5.23.0, tokenizers 0.23.3 (no torch).
# Why it matters: a tokenizer trained for a small model of a known architecture changes when the model is saved
# next to it, and the model then reads ids it was not trained on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet transformers==5.23.0 tokenizers==0.23.3
export HOME=$folder HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
cat > check.py <<'PY'
"""Tokenise one word with the same tokenizer.json in folders that differ in config.json alone."""
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

tokenizer = Tokenizer(models.BPE({"<unk>": 0, "1": 1, "2": 2, "12": 3, "a": 4}, [("1", "2")], unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # keeps 12 together
WHOLE, SINGLE = [4, 3], [4, 1, 2]
CASES = [  # tokenizer_class, model_type, expected ids of "a12"
    ("PreTrainedTokenizerFast", None, WHOLE),
    ("PreTrainedTokenizerFast", "qwen2", SINGLE),
    ("PreTrainedTokenizerFast", "qwen3", WHOLE),
    (None, "qwen3", SINGLE),
]
wrong = []
print("tokenizer.json itself:", tokenizer.encode("a12").ids)
for number, (name, model_type, expected) in enumerate(CASES):
    folder = Path(f"case{number}")
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"unk_token": "<unk>"} | ({"tokenizer_class": name} if name else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(folder)
    ids = loaded("a12")["input_ids"]
    print(f"tokenizer_class={name}, model_type={model_type}: {type(loaded).__name__} gives {ids}")
    if ids != expected:
        wrong.append(f"model_type={model_type}, tokenizer_class={name}: {ids}, not {expected}")
if wrong:
    sys.exit("CHANGED: " + "; ".join(wrong))
PY
env/bin/pip list 2>/dev/null | grep -E '^(transformers|tokenizers) '
env/bin/python check.py
