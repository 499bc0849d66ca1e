#!/usr/bin/env bash
# Question: does a notebook get the parameters that papermill was given?
# One would think: the same values, or an error for what cannot be passed.
# What happens: from Python, a tuple arrives as the text "(1, 2)", and the number keys of a dict arrive as
# text keys. On the command line, `-p commit 12e5678` (a short commit name) arrives as the float inf, and 0012 as 12.
# There is no warning.
# Versions: papermill 2.7.0, nbclient 0.11.0, ipykernel 7.4.0.
# Why it matters: looking up table[1] fails or, with .get, silently takes the default; iterating over "(1, 2)" gives
# characters; and a report names the wrong commit. On the command line `-r` passes text as it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet papermill==2.7.0 nbclient==0.11.0 ipykernel==7.4.0
export HOME=$folder PATH=$folder/env/bin:$PATH
cat > check.py <<'PY'
"""Give parameters to a notebook that writes down the repr of each."""
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill

NAMES = ("value", "commit", "code", "raw")
cells = [
    nbformat.v4.new_code_cell("\n".join(f"{name} = None" for name in NAMES), metadata={"tags": ["parameters"]}),
    nbformat.v4.new_code_cell(
        f"import json\nfrom pathlib import Path\nPath('seen').write_text(json.dumps([repr(eval(n)) for n in {NAMES}]))"
    ),
]
kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), "in.ipynb")
wrong = []


def check(given, name, expected):
    seen = dict(zip(NAMES, json.loads(Path("seen").read_text())))[name]
    print(f"{given} arrives as {seen}")
    if seen != expected:
        wrong.append(f"{given} arrives as {seen}, not {expected}")


for value, expected in (((1, 2), "'(1, 2)'"), ({1: "a"}, "{'1': 'a'}"), ([1, 2], "[1, 2]")):
    papermill.execute_notebook("in.ipynb", None, parameters={"value": value}, progress_bar=False)
    check(repr(value), "value", expected)
line = "papermill --no-progress-bar -p commit 12e5678 -p code 0012 -r raw 12e5678 in.ipynb out.ipynb"
subprocess.run(line.split(), check=True, stderr=subprocess.DEVNULL)
check("-p commit 12e5678", "commit", "inf")
check("-p code 0012", "code", "12")
check("-r raw 12e5678", "raw", "'12e5678'")
if wrong:
    sys.exit("CHANGED: " + "; ".join(wrong))
PY
pip list 2>/dev/null | grep -E '^(papermill|nbclient|ipykernel) '
python check.py
