#!/usr/bin/env bash
# Question: does `with model.disable_adapter():` leave a frozen adapter frozen?
# One would think: yes; the block switches the adapter off and on again and restores what was before.
# What happens: on leaving the block the active adapter's weights have requires_grad=True, also those of an adapter
# that was loaded for inference or frozen by hand. load_adapter(..., is_trainable=True) of a second one has the
# reverse fate: trainable before the block, frozen after it.
# Versions: peft 0.21.2, torch 2.13.0, transformers 5.23.0.
# Why it matters: reference log-probabilities are often computed in such a block; an optimiser built afterwards from
# the parameters that require a gradient trains another set of weights than one built before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet peft==0.21.2 torch==2.13.0 transformers==5.23.0
export HOME=$folder HF_HUB_OFFLINE=1
cat > check.py <<'PY'
"""List the trainable adapters before and after an empty `with model.disable_adapter()`."""
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model


def fresh():
    return torch.nn.Sequential(torch.nn.Linear(4, 4))


def trainable(model):
    return sorted({name.split(".")[-2] for name, weight in model.named_parameters() if weight.requires_grad})


get_peft_model(fresh(), LoraConfig(target_modules=["0"], r=2)).save_pretrained("adapter")
wrong = []


def check(name, model, before, after):
    first = trainable(model)
    with model.disable_adapter():
        pass
    last = trainable(model)
    print(f"{name}: trainable before the block {first}, after it {last}")
    if (first, last) != (before, after):
        wrong.append(f"{name}: {first} -> {last}, not {before} -> {after}")


check("loaded for inference", PeftModel.from_pretrained(fresh(), "adapter"), [], ["default"])
model = get_peft_model(fresh(), LoraConfig(target_modules=["0"], r=2))
model.requires_grad_(False)
check("frozen by hand", model, [], ["default"])
model = get_peft_model(fresh(), LoraConfig(target_modules=["0"], r=2))
model.load_adapter("adapter", "second", is_trainable=True)
check("two trainable adapters, the first active", model, ["default", "second"], ["default"])
if wrong:
    sys.exit("CHANGED: " + "; ".join(wrong))
PY
env/bin/pip list 2>/dev/null | grep -E '^(peft|torch|transformers) '
env/bin/python check.py
