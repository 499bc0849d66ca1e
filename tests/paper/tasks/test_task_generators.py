"""The generated tables: counts, known rows, and rules on positions that one can check in the head."""

import hashlib

import numpy as np
import pytest

from etpo_paper.data.tasks.generators import GENERATORS, balance_scale, tic_tac_toe
from etpo_paper.data.tasks.generators.jungle_chess import (
    BLACK,
    ELEPHANT,
    LION,
    PANTHER,
    RAT,
    TIGER,
    WHITE,
    moves,
    takes,
)


def lines(x, y, classes):
    return [",".join(str(int(v)) for v in row) + "," + classes[k] for row, k in zip(x, y, strict=True)]


def test_balance_scale():
    x, y, columns = balance_scale.table()
    rows = lines(x, y, "LBR")
    assert x.shape == (625, 4) and len(columns) == 4
    assert np.bincount(y).tolist() == [288, 49, 288]
    assert rows[:3] == ["1,1,1,1,B", "1,1,1,2,R", "1,1,1,3,R"]
    assert rows[-2:] == ["5,5,5,4,L", "5,5,5,5,B"]
    assert "2,3,3,2,B" in rows and "4,1,1,3,L" in rows


def test_tic_tac_toe():
    x, y, columns = tic_tac_toe.table()
    assert x.shape == (958, 9) and len(columns) == 9
    assert np.bincount(y).tolist() == [332, 626]
    boards = ["".join("box"[int(v)] for v in row) for row in x]
    assert len(set(boards)) == 958
    assert boards[0] == "xxxxooxoo" and y[0] == 1
    assert y[:626].all() and not y[626:].any()
    assert all(tic_tac_toe.winner(b) == "o" for b in boards[626:942])
    assert all(tic_tac_toe.winner(b) is None and "b" not in b for b in boards[942:])
    assert all(b.count("x") - b.count("o") == (tic_tac_toe.winner(b) != "o") for b in boards)


@pytest.fixture(scope="module")
def jungle():
    return GENERATORS["jungle-chess"]()


def test_jungle_chess_is_the_published_table(jungle):
    x, y, columns = jungle
    assert x.shape == (44_819, 6) and len(columns) == 6
    assert np.bincount(y).tolist() == [23_062, 17_422, 4_335]
    text = "\n".join(lines(x, y, "wbd"))
    assert hashlib.sha256(text.encode()).hexdigest().startswith("94a74e744e59")


def test_jungle_chess_takes():
    land, other = (0, 0), (0, 1)
    assert takes(WHITE, LION, land, PANTHER, other) and not takes(WHITE, PANTHER, land, LION, other)
    assert takes(WHITE, LION, land, LION, other)
    assert takes(WHITE, RAT, land, ELEPHANT, other) and takes(WHITE, ELEPHANT, land, RAT, other)
    assert not takes(WHITE, RAT, (1, 3), ELEPHANT, (0, 3))  # out of the water
    assert takes(WHITE, PANTHER, (3, 2), LION, (3, 1))  # in white's own trap
    assert not takes(BLACK, PANTHER, (3, 2), LION, (3, 1))


def test_jungle_chess_moves():
    def targets(*given):
        return set(moves(*given))

    far = (6, 8)
    assert targets(WHITE, PANTHER, (0, 3), RAT, far) == {(0, 4), (0, 2)}  # not into the water
    assert targets(WHITE, RAT, (0, 3), RAT, far) == {(0, 4), (0, 2), (1, 3)}
    assert targets(WHITE, TIGER, (0, 3), RAT, far) == {(0, 4), (0, 2), (3, 3)}  # over two files
    assert targets(WHITE, LION, (1, 2), RAT, far) == {(0, 2), (2, 2), (1, 1), (1, 6)}  # over three ranks
    assert targets(WHITE, LION, (1, 2), RAT, (1, 4)) == {(0, 2), (2, 2), (1, 1)}  # a rat swims below
    assert targets(WHITE, LION, (2, 0), RAT, far) == {(1, 0), (2, 1)}  # not into the own den
    assert None in targets(BLACK, LION, (2, 0), RAT, far)  # into the enemy's
    assert targets(WHITE, RAT, (0, 0), LION, (0, 1)) == {(1, 0)}  # blocked by a stronger one
    assert None in targets(WHITE, LION, (0, 0), RAT, (0, 1))


def test_jungle_chess_values_at_a_glance(jungle):
    x, y, _ = jungle
    value = {tuple(row.astype(int)): "wbd"[k] for row, k in zip(x, y, strict=True)}
    assert value[ELEPHANT, 3, 7, ELEPHANT, 0, 0] == "w"  # one step from the black den
    assert value[ELEPHANT, 0, 8, ELEPHANT, 3, 1] == "b"  # black is one step from the white den
    assert value[LION, 0, 0, LION, 0, 1] == "w"  # white takes first
