#!/usr/bin/env bash
# Question: how often does a program that makes OpenAI clients read the bundle of certificates?
# One would think: once in a process, and not at all for a server at an http:// address.
# What happens: once for each client, http:// or not, sync or async, and once more for each proxy variable that is
# set, some tens of milliseconds every time. Clients that share one http_client read nothing more.
# Versions: openai 3.54.0, httpx2 2.16.2, truststore 0.10.5.
# Why it matters: a client made for each request or each thread spends more time on certificates than on a fast
# local server.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet openai==3.54.0 httpx2==2.16.2 truststore==0.10.5 certifi
unset SSL_CERT_DIR HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy
SSL_CERT_FILE=$(env/bin/python -m certifi)
export SSL_CERT_FILE
cat > check.py <<'PY'
"""Count how often certificates are loaded while ten clients are made."""
import os
import ssl
import sys
import time

import httpx2
import openai

calls = []
load = ssl.SSLContext.load_verify_locations


def counted(*arguments, **named):
    calls.append(arguments)
    return load(*arguments, **named)


ssl.SSLContext.load_verify_locations = counted
ADDRESS = {"api_key": "none", "base_url": "http://127.0.0.1:9/v1"}
wrong = []


def check(name, make, expected):
    calls.clear()
    start = time.monotonic()
    kept = [make() for _ in range(10)]
    print(f"{name}: {len(calls)} times for {len(kept)} clients, {100 * (time.monotonic() - start):.0f} ms a client")
    if len(calls) != expected:
        wrong.append(f"{name}: {len(calls)} times, not {expected}")


check("OpenAI", lambda: openai.OpenAI(**ADDRESS), 10)
check("AsyncOpenAI", lambda: openai.AsyncOpenAI(**ADDRESS), 10)
shared = httpx2.Client()
check("OpenAI with one shared http_client", lambda: openai.OpenAI(**ADDRESS, http_client=shared), 0)
os.environ["HTTP_PROXY"] = os.environ["HTTPS_PROXY"] = "http://127.0.0.1:9"
check("OpenAI with two proxy variables", lambda: openai.OpenAI(**ADDRESS), 30)
if wrong:
    sys.exit("CHANGED: certificates are loaded " + "; ".join(wrong))
PY
env/bin/pip list 2>/dev/null | grep -E '^(openai|httpx2|truststore) '
env/bin/python check.py
