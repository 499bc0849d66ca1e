"""Three of the fourteen tables follow from the rules of a game or of a balance, so code generates them.

Each module has one function `table()`, which returns (x, y, columns): x float64 [rows, features], y int64 [rows] with
the class codes of OpenML's table, and the feature names. The rows are in OpenML's order, because the paper draws its
subsample by position.
"""

from etpo_paper.data.tasks.generators import balance_scale, jungle_chess, tic_tac_toe

GENERATORS = {
    "balance-scale": balance_scale.table,
    "tic-tac-toe": tic_tac_toe.table,
    "jungle-chess": jungle_chess.table,
}

__all__ = ["GENERATORS"]
