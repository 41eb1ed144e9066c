"""Which rows each step of an epoch takes, and how they are read: in blocks, so that any set
streams; and generated rows that take the place of some real ones in every step
(arXiv:2010.03593)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from holdfast.data import Source
from holdfast.errors import InputError, SpecError

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


@dataclass(frozen=True)
class GeneratedRows:
    """Rows of `data` are `share` of each step. An epoch has as many steps as without them, so it
    costs the same."""

    data: Source
    share: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise SpecError(
                f"the generated share is {self.share:g}; it is above 0 and below 1, such as 0.7."
            )

    def check(self, real: Source) -> None:
        """Refuse generated rows that cannot be mixed with the real ones."""
        if self.data.shape != real.shape:
            raise InputError(
                f"the generated rows have shape {self.data.shape}, those of {real.name} "
                f"{real.shape}."
            )

    def read(
        self, real: Source, steps: Steps, done: int, seed: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows of an epoch's `steps` after the first `done`; the seed orders the generated
        ones."""
        counts = [min(max(1, round(self.share * len(rows))), len(rows) - 1) for _, rows in steps]
        if min(counts) < 1:
            raise InputError(
                "a step of one row cannot be mixed with generated ones; give a larger batch_size."
            )
        made: Steps = []
        while len(made) < len(steps):
            made += shuffled(len(self.data), max(counts), seed + len(made))
        made = [(start, rows[:count]) for (start, rows), count in zip(made, counts, strict=False)]
        kept = [
            (start, rows[: len(rows) - count])
            for (start, rows), count in zip(steps, counts, strict=True)
        ]
        for (x, y), (u, v) in zip(
            read(real, kept[done:]), read(self.data, made[done:]), strict=True
        ):
            yield np.concatenate([x, u.astype(x.dtype)]), np.concatenate([y, v])
