"""The corpus, each case followed by an innocent program.

It runs in full at the best tier that this machine gives, and by one case of each group at the others, of which tier D
shows that an attack succeeds where nothing stops it. The rest of the product is marked `nightly`, and so is the whole
of it as an ordinary user (tests/nightly/test_corpus_as_an_ordinary_user.py).
"""

import itertools
import os
import re
import socket
import time
from dataclasses import replace

import pytest
from corpus import CASES
from programs import BEST, INNOCENT, LIMITS, children

from etpo_core.sandbox import Status
from etpo_core.sandbox.scoring import make_split, table_of

pytestmark = pytest.mark.filterwarnings("error")  # as a strict host would have it
_number = itertools.count()
_answers: dict[str, tuple] = {}  # what a case came to at the first tier it ran at


def sample(cases):
    """One case of each group: the first, if possible one that is not there to be stopped after some time."""
    chosen = {}
    for case in sorted(cases, key=lambda case: Status.TIMEOUT in case.expected):  # the order is kept otherwise
        if not case.machine:
            chosen.setdefault(case.id.partition("-")[0], case.id)
    return set(chosen.values())


def at_tiers(cases):
    """Every case at every tier that it is for; `nightly` where neither the tier is the best nor the case the sample."""
    parameters = []
    for tier in "ABC":
        possible = [case for case in cases if tier in case.tiers]
        chosen = sample(possible)
        for case in possible:
            marks = () if tier == BEST or case.id in chosen else pytest.mark.nightly
            parameters.append(pytest.param(case, tier, id=f"{case.id}-{tier}", marks=marks))
    return parameters


def without_walls(cases):
    """Every case that has a control; `nightly` if it is not in the sample."""
    possible = [case for case in cases if case.control is not None]
    chosen = sample(possible)
    return [pytest.param(c, id=c.id, marks=() if c.id in chosen else pytest.mark.nightly) for c in possible]


@pytest.fixture
def scene(tmp_path, table):
    """Names of what a case attacks: a secret, a file to spare, a listening port, this process, the labels.

    Says afterwards what was touched, if it is asked to.
    """
    secret, spare = tmp_path / "labels.csv", tmp_path / "spare"
    secret.write_text("secret labels")
    spare.write_text("")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def check():
            with pytest.raises(BlockingIOError):
                server.accept()
            assert sorted(os.listdir(tmp_path)) == ["labels.csv", "spare"]
            assert secret.read_text() == "secret labels" and secret.stat().st_mode & 0o777 == mode

        mode = secret.stat().st_mode & 0o777
        split = make_split(*table_of(*table), 0)
        held_back = [split.y_test, split.y_test[split.order], split.y_test.astype("i1"), split.y_test.astype("f8")]
        names = {
            "secret": secret,
            "spare": spare,
            "folder": tmp_path,
            "port": server.getsockname()[1],
            "host": os.getpid(),
            "hostname": os.uname().nodename,
            "needles": " ".join(labels.tobytes()[::-1].hex() for labels in held_back),
        }
        yield names, check


def filled(source, names):
    """The source with the names of the scene put in."""
    return re.sub(rf"\$({'|'.join(names)})\b", lambda match: str(names[match[1]]), source)


def comment():
    """A text that no program had before, so that none is answered from the cache."""
    return f"\n# {os.getpid()} {next(_number)}"


def fits(case):
    if case.machine and case.machine != os.uname().machine:
        pytest.skip(f"numbers of {case.machine}")


@pytest.mark.parametrize(("case", "tier"), at_tiers(CASES))
def test_corpus(tier_pool, table, honest, scene, monkeypatch, case, tier):
    fits(case)
    pool = tier_pool(tier)
    names, check = scene
    monkeypatch.setenv("ETPO_SECRET", "token")
    workers = children(os.getpid())
    before = [array.copy() for array in table]
    monkeypatch.setattr(pool, "limits", replace(LIMITS, cpu_s=case.cpu_s, wall_s=case.wall_s or LIMITS.wall_s))
    started = time.monotonic()
    outcome = pool.score(filled(case.source, names) + (comment() if case.source else ""), *table, [0])
    took = time.monotonic() - started

    # A case that may end in several ways may also end in another one when it is run again with other labels.
    withheld = {Status.LABEL_DEPENDENT} if len(case.expected) > 1 else set()
    assert outcome.status in case.expected | withheld, outcome
    assert outcome.status in withheld or re.search(case.text, outcome.error_text), outcome.error_text
    assert "secret labels" not in outcome.error_text
    assert outcome.error_text.isprintable() and len(outcome.message or "") <= 500
    assert case.line == 0 or outcome.line == case.line, outcome
    assert (outcome.score is None) == (outcome.status is not Status.OK) and outcome.tier == tier
    if outcome.status is Status.OK:
        wanted = honest if case.score == "as ever" else case.score
        assert wanted is None or outcome.score == wanted, outcome
    assert took < case.within_s, took
    assert outcome.cpu_s < case.cpu_s + 2, outcome
    check()
    assert all((a == b).all() for a, b in zip(before, table, strict=True))

    monkeypatch.undo()
    after = pool.score(INNOCENT + comment(), *table, [0])
    assert (after.status, after.score) == (Status.OK, honest)
    assert children(os.getpid()) == workers, "the program took its worker down"
    if case.id.startswith("same-"):
        answer = (outcome.status, outcome.scores, outcome.error_text)
        again = pool.score(filled(case.source, names) + comment(), *table, [0])
        assert (again.status, again.scores, again.error_text) == answer
        assert _answers.setdefault(case.id, answer) == answer, "another tier answered otherwise"


@pytest.mark.parametrize("case", without_walls(CASES))
def test_positive_control(tier_pool, table, scene, case):
    fits(case)
    if case.control_as_root and os.getuid() != 0:
        pytest.skip("an ordinary user may not do it anyway")
    outcome = tier_pool("D").score(filled(case.source, scene[0]) + comment(), *table, [0])
    assert re.search(case.control, outcome.error_text), outcome
    assert (outcome.status is Status.OK) == (case.control == ""), outcome
