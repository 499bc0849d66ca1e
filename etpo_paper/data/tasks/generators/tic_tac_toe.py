"""Tic-Tac-Toe Endgame (OpenML 50): has x won?

The table holds every board on which a game can end when x moves first. The 626 boards that x has won come first, then
the 316 that o has won, then the 16 draws. Within each group the order is lexicographic with x < o < b, where b is an
empty square.
"""

import numpy as np

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
CODES = {"b": 0, "o": 1, "x": 2}  # OpenML's order of the categories
GROUPS = ("x", "o", None)
ROWS, FILES = ("top", "middle", "bottom"), ("left", "middle", "right")
COLUMNS = tuple(f"{row}-{file}-square" for row in ROWS for file in FILES)


def winner(board: str) -> str | None:
    """The player who owns a line of the nine-letter board, or None."""
    for a, b, c in LINES:
        if board[a] != "b" and board[a] == board[b] == board[c]:
            return board[a]
    return None


def end_boards() -> dict[str, str | None]:
    """Every board on which a game ends, with its winner, or None for a draw."""
    ends: dict[str, str | None] = {}
    seen = {"bbbbbbbbb"}
    frontier = [("bbbbbbbbb", "x")]
    while frontier:
        board, player = frontier.pop()
        won = winner(board)
        if won or "b" not in board:
            ends[board] = won
            continue
        for square in (i for i in range(9) if board[i] == "b"):
            after = board[:square] + player + board[square + 1 :]
            if after not in seen:  # the board tells whose turn it is, by the number of moves made
                seen.add(after)
                frontier.append((after, "o" if player == "x" else "x"))
    return ends


def table() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The whole table: x [958, 9] with b, o, x as 0, 1, 2; y [958], 1 where x has won; and column names."""
    ends = end_boards()
    order = sorted(ends, key=lambda board: (GROUPS.index(ends[board]), ["xob".index(square) for square in board]))
    x = np.array([[CODES[square] for square in board] for board in order], dtype=np.float64)
    y = np.array([ends[board] == "x" for board in order], dtype=np.int64)
    return x, y, COLUMNS
