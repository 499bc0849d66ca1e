#!/usr/bin/env bash
# Question: what does an OpenAI client do with a long `Retry-After` of a server that answers 429?
# One would think: it ignores a wait above 60 s and retries after its own waits of 0.5 to 8 s, as it did for years.
# What happens: a wait of up to 120 s is kept to, so a call sleeps for two minutes at each retry; one second more,
# and the call is not repeated at all, however large max_retries is.
# Versions: openai 3.54.0. In 1.109.1 the old rule held; the script runs both.
# Why it matters: a run against a rate-limited server either stands still for minutes or ends at the first refusal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > check.py <<'PY'
"""Ask a local server that always answers 429 with one Retry-After, and record the waits instead of waiting."""
import http.server
import sys
import threading
import time

import openai

waits, tries = [], []
time.sleep = waits.append


class Busy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        tries.append(self.path)
        self.send_response(429)
        self.send_header("Retry-After", self.server.wait)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


def ask(wait):
    """Return the number of tries and the waits of one call with max_retries=2."""
    waits.clear()
    tries.clear()
    server.wait = wait
    try:
        client.models.list()
    except openai.RateLimitError:
        return len(tries), [round(value) if value > 10 else "below 10" for value in waits]
    sys.exit("CHANGED: no RateLimitError")


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_retries=2)
EXPECTED = {
    "new": {"61": (3, [61, 61]), "120": (3, [120, 120]), "121": (1, [])},
    "old": {wait: (3, ["below 10", "below 10"]) for wait in ("61", "120", "121")},
}[sys.argv[1]]
wrong = []
for wait, expected in EXPECTED.items():
    seen = ask(wait)
    print(f"openai {openai.__version__}, Retry-After: {wait}: {seen[0]} tries, waits in s: {seen[1]}")
    if seen != expected:
        wrong.append(f"Retry-After {wait}: {seen}, not {expected}")
if wrong:
    sys.exit(f"CHANGED: openai {openai.__version__}: " + "; ".join(wrong))
PY
export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1
for pair in new:3.54.0 old:1.109.1; do
    python3 -m venv "${pair%%:*}"
    "${pair%%:*}/bin/pip" install --quiet "openai==${pair##*:}"
    "${pair%%:*}/bin/python" check.py "${pair%%:*}"
done
