"""Error texts are clean by the time that anything reads them."""

import sys
from pathlib import Path

from programs import body

from etpo_core.sandbox import Outcome, Status
from etpo_core.sandbox.text import clean_message, clean_name


def test_control_and_direction_characters_go():
    raw = "\x1b[31mred\x1b[0m \u202ereversed\u202c nul\0 line\nnext\u2028end \U000f0000".encode()
    assert clean_message(raw) == "[31mred [0m reversed nul line next end"


def test_length_is_capped():
    assert len(clean_message(b"x" * 10_000)) == 500
    assert len(clean_name(b"X" * 300)) == 80
    assert clean_name(b"\x1b;") == "Exception"


def test_invalid_utf8_and_addresses():
    assert clean_message(b"a\xff <object at 0x7f00deadbeef>") == "a\ufffd <object at 0x...>"


def test_our_folders_are_not_named():
    import numpy

    import etpo_core

    for path in (numpy.__file__, etpo_core.__file__, sys.executable):
        cleaned = clean_message(f"in {path}: bad".encode())
        assert str(Path(path).parent) not in cleaned and Path(path).name in cleaned
    assert clean_message(b"No such file: '/etc/passwd'") == "No such file: '/etc/passwd'"


def test_error_text():
    assert Outcome(Status.OK, 1.0).error_text == ""
    failed = Outcome(Status.SNIPPET_ERROR, None, (), "NameError", "name 'X' is not defined", 3)
    assert failed.error_text == "NameError: name 'X' is not defined (line 3)"
    assert Outcome(Status.TIMEOUT, None, (), "TimeoutError", "late").error_text == "TimeoutError: late"


def test_texts_of_a_snippet(run):
    long = run(body("raise ValueError('x' * 50_000_000)"))
    assert (long.status, len(long.message), long.line) == (Status.SNIPPET_ERROR, 500, 4)
    odd = run(body("class E(Exception):\n    def __str__(self): raise E2()\nclass E2(Exception): pass\nraise E"))
    assert odd.status is Status.SNIPPET_ERROR and odd.message == "the error cannot be printed"
    dirty = run(body("raise type('\\x1b[0mEvil', (Exception,), {})('a\\x00b\\x1b[2J\\u202e\\ud800')"))
    assert dirty.error_type == "0mEvil" and dirty.message.isprintable()
    nested = run(body("def f():\n    raise ValueError('deep')\nf()"))
    assert nested.line == 5
    inside = run(body("np.linalg.inv(np.zeros((2, 3)))"))
    assert inside.line == 4 and inside.error_type == "LinAlgError"
