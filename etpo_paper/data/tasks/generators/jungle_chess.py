"""Jungle Chess, two-piece endgames (OpenML 41027): who wins, if both play perfectly and white moves?

The board has 7 files and 9 ranks; in its middle lie two rivers, at each end a den with three traps around it. Each
side has one animal. An animal steps one square along a file or rank; tiger and lion also leap over a river unless a
rat swims below; only the rat enters water. An animal takes one that is no stronger, and any that stands in a trap of
its own side; the rat takes the elephant, though not out of the water. To take the enemy's only animal, or to enter
the enemy's den, wins. A game that neither side can force to an end is a draw.

`solve` finds the winner of every position by retrograde analysis: it marks the positions that are won at once and works
backwards through the moves that lead to them. See van Rijn and Vis, "Endgame Analysis of Dou Shou Qi", 2014.
"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

Square = tuple[int, int]  # file 0..6, rank 0..8
Position = tuple[int, Square, Square]  # side to move, white's square, black's square

WHITE, BLACK = 0, 1
RAT, PANTHER, TIGER, LION, ELEPHANT = 0, 4, 5, 6, 7
WATER = frozenset((file, rank) for file in (1, 2, 4, 5) for rank in (3, 4, 5))
DENS = ((3, 0), (3, 8))
TRAPS = (frozenset({(2, 0), (4, 0), (3, 1)}), frozenset({(2, 8), (4, 8), (3, 7)}))
STEPS = ((0, 1), (0, -1), (1, 0), (-1, 0))
COLUMNS = tuple(f"{side}_piece0_{what}" for side in ("white", "black") for what in ("strength", "file", "rank"))
WHITE_WINS, BLACK_WINS, DRAWN = 0, 1, 2  # OpenML's order of the classes w, b, d

# Pairs (white's animal, black's animal) in the order of the table.
PAIRS = (
    (RAT, RAT), (RAT, PANTHER), (PANTHER, RAT), (RAT, LION), (LION, RAT), (RAT, ELEPHANT), (ELEPHANT, RAT),
    (PANTHER, LION), (LION, PANTHER), (PANTHER, ELEPHANT), (ELEPHANT, PANTHER), (TIGER, LION), (LION, TIGER),
    (LION, LION), (LION, ELEPHANT), (ELEPHANT, LION), (ELEPHANT, ELEPHANT),
)  # fmt: skip


def takes(side: int, animal: int, start: Square, victim: int, target: Square) -> bool:
    """Whether `side`'s animal on `start` may take the victim on `target`, one move away."""
    if animal == RAT and victim == ELEPHANT:
        return start not in WATER
    return animal >= victim or target in TRAPS[side]


def moves(side: int, animal: int, start: Square, enemy: int, enemy_square: Square) -> Iterator[Square | None]:
    """The squares that `side`'s animal may move to; None stands for a move that wins at once."""
    for file_step, rank_step in STEPS:
        file, rank = start[0] + file_step, start[1] + rank_step
        if animal in (TIGER, LION):
            while (file, rank) in WATER and (file, rank) != enemy_square:
                file, rank = file + file_step, rank + rank_step
        target = (file, rank)
        if not (0 <= file <= 6 and 0 <= rank <= 8) or target == DENS[side]:
            continue
        if target in WATER and animal != RAT:  # also a leap that a swimming rat blocks
            continue
        if target == DENS[1 - side] or target == enemy_square and takes(side, animal, start, enemy, target):
            yield None
        elif target != enemy_square:
            yield target


def squares(animal: int, ranks: range) -> list[Square]:
    """Where an animal may stand, rank by rank in the given order, files from 0 to 6."""
    every = [(file, rank) for rank in ranks for file in range(7)]
    return [square for square in every if square not in DENS and (animal == RAT or square not in WATER)]


def solve(white: int, black: int) -> dict[Position, int]:
    """The winner (WHITE or BLACK) of every position that is not a draw, for one pair of animals."""
    animals = (white, black)
    winners: dict[Position, int] = {}
    open_moves: dict[Position, int] = {}  # moves of the side to move not yet known to lose
    parents: dict[Position, list[Position]] = defaultdict(list)
    for white_square in squares(white, range(9)):
        for black_square in squares(black, range(9)):
            if white_square == black_square:
                continue
            where = (white_square, black_square)
            for side in (WHITE, BLACK):
                position = (side, white_square, black_square)
                targets = list(moves(side, animals[side], where[side], animals[1 - side], where[1 - side]))
                if None in targets:
                    winners[position] = side
                    continue
                open_moves[position] = len(targets)
                for target in targets:
                    after = (BLACK, target, black_square) if side == WHITE else (WHITE, white_square, target)
                    parents[after].append(position)
    decided = list(winners)
    while decided:
        position = decided.pop()
        won_by = winners[position]
        for parent in parents[position]:
            if parent in winners:
                continue
            open_moves[parent] -= 1
            if parent[0] == won_by or open_moves[parent] == 0:  # a winning move exists, or every move loses
                winners[parent] = won_by
                decided.append(parent)
    return winners


def table() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The whole table: x [44819, 6], y [44819] (23,062 white, 17,422 black, 4,335 draws), column names."""
    rows: list[tuple[int, ...]] = []
    for white, black in PAIRS:
        winners = solve(white, black)
        if white > black:
            pairs = ((w, b) for w in squares(white, range(9)) for b in squares(black, range(9)))
        else:
            down = range(8, -1, -1)
            pairs = ((w, b) for b in squares(black, down) for w in squares(white, down))
        for w, b in pairs:
            if w != b:
                rows.append((white, *w, black, *b, winners.get((WHITE, w, b), DRAWN)))
    rows.pop()  # OpenML's table lacks the last position
    values = np.array(rows, dtype=np.float64)
    return values[:, :-1], values[:, -1].astype(np.int64), COLUMNS
