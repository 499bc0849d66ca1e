"""The corpus once more as an ordinary user: the rights of root may neither be needed nor make a difference.

It runs in the background from the beginning of the session (`corpus_as_nobody` in conftest.py); here it is waited for.
"""

import os
import re
import time

import pytest
from unprivileged import command_as_nobody


def test_corpus_as_an_ordinary_user(corpus_as_nobody):
    if os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user already")
    if corpus_as_nobody is None:
        pytest.skip(command_as_nobody()[1])
    deadline = time.monotonic() + 600
    while corpus_as_nobody.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    text = corpus_as_nobody.output.read_text(errors="replace")
    failures = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
    assert corpus_as_nobody.returncode == 0, "\n".join(failures) or text[-3000:]
    assert int(re.search(r"(\d+) passed", text)[1]) > 700, text[-300:]
