"""Jungle Chess, two-piece endgames (OpenML 41027): who wins if white moves first and both sides play perfectly?

The board has 7 files and 9 ranks. Two rivers lie in the middle, and at each end there is a den with three traps around
it. Each side has one animal. An animal moves one square along a file or rank. Only the rat may enter the water; the
tiger and the lion leap over a river, unless the enemy's rat swims in their way. An animal may take an animal that is
not stronger, and any animal in a trap beside its own den. The rat may also take the elephant, but not out of the water.
A side wins when it takes the enemy's only animal or enters the enemy's den. If neither side can force a win, the game
is a draw.

`solve` finds the winner of every position by retrograde analysis: it marks the positions that are won with the next
move and works backwards through the moves that lead to them. See van Rijn and Vis, "Endgame Analysis of Dou Shou Qi",
2014.
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

# The pairs (white's animal, black's animal) in the order of the table.
PAIRS = (
    (RAT, RAT), (RAT, PANTHER), (PANTHER, RAT), (RAT, LION), (LION, RAT), (RAT, ELEPHANT), (ELEPHANT, RAT),
    (PANTHER, LION), (LION, PANTHER), (PANTHER, ELEPHANT), (ELEPHANT, PANTHER), (TIGER, LION), (LION, TIGER),
    (LION, LION), (LION, ELEPHANT), (ELEPHANT, LION), (ELEPHANT, ELEPHANT),
)  # fmt: skip


def takes(side: int, animal: int, start: Square, victim: int, target: Square) -> bool:
    """Whether the animal of `side` on `start` may take the victim on `target`, which is one move away."""
    if animal == RAT and victim == ELEPHANT:
        return start not in WATER
    return animal >= victim or target in TRAPS[side]


def moves(side: int, animal: int, start: Square, enemy: int, enemy_square: Square) -> Iterator[Square | None]:
    """The squares that the animal of `side` may move to; None stands for a move that wins the game."""
    for file_step, rank_step in STEPS:
        file, rank = start[0] + file_step, start[1] + rank_step
        if animal in (TIGER, LION):
            while (file, rank) in WATER and (file, rank) != enemy_square:
                file, rank = file + file_step, rank + rank_step
        target = (file, rank)
        if not (0 <= file <= 6 and 0 <= rank <= 8) or target == DENS[side]:
            continue
        if target in WATER and animal != RAT:  # includes a leap that is blocked by a swimming rat
            continue
        if target == DENS[1 - side] or target == enemy_square and takes(side, animal, start, enemy, target):
            yield None
        elif target != enemy_square:
            yield target


def squares(animal: int, ranks: range) -> list[Square]:
    """The squares on which an animal may stand, rank by rank in the given order, files from 0 to 6."""
    every = [(file, rank) for rank in ranks for file in range(7)]
    return [square for square in every if square not in DENS and (animal == RAT or square not in WATER)]


def solve(white: int, black: int) -> dict[Position, int]:
    """Returns the winner (WHITE or BLACK) of every position that is not a draw, for one pair of animals."""
    animals = (white, black)
    winners: dict[Position, int] = {}
    open_moves: dict[Position, int] = {}  # how many moves are not yet known to lose
    parents: dict[Position, list[Position]] = defaultdict(list)  # the positions from which a position is reached
    for white_square in squares(white, range(9)):
        for black_square in squares(black, range(9)):
            if white_square == black_square:
                continue
            where = (white_square, black_square)
            for side in (WHITE, BLACK):
                position = (side, white_square, black_square)
                found = list(moves(side, animals[side], where[side], animals[1 - side], where[1 - side]))
                targets = [target for target in found if target is not None]
                if len(targets) < len(found):
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
            if parent[0] == won_by or open_moves[parent] == 0:  # there is a winning move, or every move loses
                winners[parent] = won_by
                decided.append(parent)
    return winners


def table() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The whole table: x [44819, 6], y [44819] (23,062 white, 17,422 black, 4,335 draws), and column names."""
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
