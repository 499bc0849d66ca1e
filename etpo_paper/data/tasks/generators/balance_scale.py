"""Balance Scale (OpenML 11): which way does a balance tip?

The table holds all 5^4 combinations of left weight, left distance, right weight and right distance, each from 1 to 5,
in lexicographic order. The side on which the product of weight and distance is larger goes down; equal products
balance.
"""

from itertools import product

import numpy as np

COLUMNS = ("left-weight", "left-distance", "right-weight", "right-distance")
LEFT, BALANCED, RIGHT = 0, 1, 2  # OpenML's order of the classes L, B, R


def table() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """The whole table: x [625, 4] with entries 1..5, y [625] (288 left, 49 balanced, 288 right), and column names."""
    x = np.array(list(product(range(1, 6), repeat=4)), dtype=np.float64)
    torque = x[:, 0] * x[:, 1] - x[:, 2] * x[:, 3]
    y = np.select([torque > 0, torque == 0], [LEFT, BALANCED], RIGHT).astype(np.int64)
    return x, y, COLUMNS
