#!/usr/bin/env bash
# Question: what happens when the base URL of an OpenAI client lacks `http://`?
# One would think: an error about the URL, at once, when the client is made or at the first request.
# What happens: the client is made, and each request is repeated max_retries times with growing waits as if the
# network had failed. The error says only "Connection error."; the reason is hidden in its __cause__, an
# UnsupportedProtocol from httpx2 (not from httpx, which this version of openai no longer uses).
# Versions: openai 3.54.0, httpx2 2.16.2.
# Why it matters: a typing error looks like a server that is down, and a long run spends its time on waiting for it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet openai==3.54.0 httpx2==2.16.2
cat > check.py <<'PY'
"""Count the tries of one request to a base URL without a scheme."""
import logging
import sys
import time

import openai

lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("openai").addHandler(handler)
logging.getLogger("openai").setLevel(logging.INFO)
client = openai.OpenAI(api_key="none", base_url="127.0.0.1:9/v1", max_retries=3)
start = time.monotonic()
try:
    client.models.list()
except Exception as error:
    caught = error
else:
    sys.exit("CHANGED: the request succeeded")
retries = [line for line in lines if line.startswith("Retrying")]
cause = caught.__cause__
print(*retries, sep="\n")
print(f"{type(caught).__name__}: {caught}  after {time.monotonic() - start:.1f} s and {len(retries)} retries")
print(f"__cause__: {type(cause).__module__}.{type(cause).__name__}: {cause}")
if len(retries) != 3:
    sys.exit(f"CHANGED: {len(retries)} retries, not 3")
if str(caught) != "Connection error.":
    sys.exit("CHANGED: the message is no longer just 'Connection error.'")
if (type(cause).__module__, type(cause).__name__) != ("httpx2", "UnsupportedProtocol"):
    sys.exit("CHANGED: the cause is not httpx2.UnsupportedProtocol")
PY
env/bin/pip list 2>/dev/null | grep -E '^(openai|httpx|httpx2) '
env/bin/python check.py
