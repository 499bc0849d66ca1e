"""The corpus once more, in processes of their own: at tier B, and as an ordinary user.

The rights of root may neither be needed nor make a difference. The processes run from the beginning of the session
(`elsewhere` in conftest.py), because most of the corpus waits; here they are waited for.
"""

import re
import time

import pytest


@pytest.mark.parametrize(("name", "cases"), [("tier B", 350), ("ordinary user", 700)])
def test_the_corpus_elsewhere(elsewhere, name, cases):
    process = elsewhere[name]
    if isinstance(process, str):
        pytest.skip(process)
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    text = process.output.read_text(errors="replace")
    failures = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert process.returncode == 0, "\n".join(failures) or text[-3000:]
    passed = re.search(r"(\d+) passed", text)
    if not passed and re.search(r"\d+ skipped", text):
        pytest.skip(f"{name} is not to be had here")
    assert int(passed[1]) > cases, text[-300:]
