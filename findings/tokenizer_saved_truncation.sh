#!/usr/bin/env bash
# Question: does calling a tokenizer with truncation=True, max_length=8 change what save_pretrained writes?
# One would think: no; these are arguments of one call, and the next call without them gives all tokens.
# What happens: the fast tokenizer keeps the last call's truncation and padding, and save_pretrained writes them into
# tokenizer.json. AutoTokenizer undoes them at its first call; everything else that reads the file, such as
# Tokenizer.from_file, cuts every text to 8 tokens, or pads it, without a word.
# Versions: transformers 5.23.0, tokenizers 0.23.3.
# Why it matters: a model that is saved after training together with its tokenizer is served by programs that read
# tokenizer.json themselves, and they then see only the beginning of each prompt.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet transformers==5.23.0 tokenizers==0.23.3
export HOME=$folder HF_HUB_OFFLINE=1
cat > check.py <<'PY'
"""Save a tokenizer after calls with different arguments, and count the tokens that readers of the folder see."""
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

words = [f"word{i}" for i in range(20)]
text = " ".join(words)
inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*words, "<pad>"])}, unk_token="<pad>"))
inner.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<pad>")
wrong = []


def check(name, arguments, expected):
    tokenizer(text, **arguments)
    tokenizer.save_pretrained(name)
    kept = json.loads(Path(name, "tokenizer.json").read_text())
    counts = [
        len(AutoTokenizer.from_pretrained(name)(text).input_ids),
        len(Tokenizer.from_file(f"{name}/tokenizer.json").encode(text).ids),
    ]
    kept = {key: value for key in ("truncation", "padding") if (value := kept[key]) is not None}
    print(f"saved after a call with {arguments}: AutoTokenizer {counts[0]} tokens, Tokenizer.from_file {counts[1]}")
    print(f"    in tokenizer.json: {kept}")
    if counts != expected:
        wrong.append(f"{name}: {counts}, not {expected}")


check("plain", {}, [20, 20])
check("cut", {"truncation": True, "max_length": 8}, [20, 8])
check("padded", {"padding": "max_length", "max_length": 30}, [20, 30])
check("again", {}, [20, 20])
if wrong:
    sys.exit("CHANGED: " + "; ".join(wrong))
PY
env/bin/pip list 2>/dev/null | grep -E '^(transformers|tokenizers) '
env/bin/python check.py
