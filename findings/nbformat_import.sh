#!/usr/bin/env bash
# Question: what does `import nbformat` cost, and where does the time go?
# One would think: a fraction of a second, spread over the notebook schema, jsonschema and traitlets.
# What happens: with the format checkers that Jupyter's server brings, nearly all of it goes into building
# one grammar for internationalised addresses (rfc3987_syntax, made by lark each time it is imported).
# jsonschema imports that package for a format no notebook uses, and does without it when it is missing.
# Versions: nbformat 5.11.1, jsonschema 4.26.0, rfc3987-syntax 1.1.0, lark 1.3.1, jupyter-events 0.12.1.
# Why it matters: every tool that opens a notebook pays this at each start, and so does every worker process.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet nbformat==5.11.1 jsonschema==4.26.0 rfc3987-syntax==1.1.0 lark==1.3.1 jupyter-events==0.12.1
cat > check.py <<'PY'
"""Print the time of `import nbformat` and the share of rfc3987_syntax, from Python's own -X importtime."""
import subprocess
import sys


def times():
    """Return the cumulative microseconds of each module, for the fastest of three imports."""
    runs = []
    for _ in range(3):
        text = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", "import nbformat"], capture_output=True, text=True, check=True
        ).stderr
        rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
        runs.append({name.strip(): int(total) for _, total, name in rows if total.strip().isdigit()})
    return min(runs, key=lambda run: run["nbformat"])


found = times()
whole, part = found["nbformat"], found.get("rfc3987_syntax", 0)
print(f"import nbformat {whole / 1e6:.2f} s, of it rfc3987_syntax {part / 1e6:.2f} s ({100 * part / whole:.0f} %)")
subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", "rfc3987-syntax"], check=True)
without = times()["nbformat"]
print(f"without the package rfc3987-syntax: {without / 1e6:.2f} s")
if part < 0.6 * whole:
    sys.exit(f"CHANGED: rfc3987_syntax is {100 * part / whole:.0f} % of the import, not most of it")
if without > 0.5 * whole:
    sys.exit(f"CHANGED: without rfc3987-syntax the import still takes {100 * without / whole:.0f} % of the time")
PY
env/bin/pip list 2>/dev/null | grep -E '^(nbformat|jsonschema|rfc3987-syntax|lark|jupyter-events) '
env/bin/python check.py
