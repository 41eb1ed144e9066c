"""Rows of several arrays, of which the first is the one that may change."""

from __future__ import annotations

import numpy as np

from holdfast.data.arrays import Arrays
from holdfast.data.source import Source


class Joined(Source):
    """Rows of x; the others are their context: x2, x3, ... Bytes of these are never rescaled.

    Raises:
        InputError: an array is not numeric, or has another length.
    """

    def __init__(self, arrays: list[np.ndarray], y: np.ndarray, name: str, *, scale: bool) -> None:
        first, *others = arrays
        self.x = Arrays(first, y, name, scale=scale)
        self.others = [
            Arrays(a if a.ndim > 1 else a[:, None], y, f"{name}, x{i}", scale=False)
            for i, a in enumerate(others, 2)
        ]
        self.name, self.inputs = name, (self.x.shape, *(other.shape for other in self.others))
        self.shape = self.x.shape

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self.x.rows(start, stop)

    def context(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {f"x{i}": a.rows(start, stop)[0] for i, a in enumerate(self.others, 2)}
