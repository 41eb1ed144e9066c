"""Which rows each step of an epoch takes, and how they are read: in blocks, so that any set
streams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from holdfast.data import Source

# of each step: the first row of a block, and which rows of the block it takes
Steps = list[tuple[int, np.ndarray]]
_BLOCK = 8192  # rows shuffled at once


def shuffled(n: int, batch_size: int, seed: int) -> Steps:
    """The steps of an epoch: each the first row of a block, and the rows of it that the step
    takes."""
    order = np.random.default_rng(seed)
    steps: Steps = []
    for start in order.permutation(np.arange(0, n, _BLOCK)):
        rows = order.permutation(min(_BLOCK, n - start))
        parts = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        # Batch norm takes no batch of one; the next epoch's shuffle brings the row back.
        steps += [
            (int(start), part) for part in parts if len(part) > 1 or batch_size == 1 or n == 1
        ]
    return steps


def read(data: Source, steps: Steps) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of each step."""
    block, x, y = -1, np.empty(0), np.empty(0)
    for start, rows in steps:
        if start != block:
            block, (x, y) = start, data.rows(start, start + _BLOCK)
        yield x[rows], np.asarray(y)[rows]
