"""Rows of several arrays, of which the first is the one that may change."""

from __future__ import annotations

import math

import numpy as np

from holdfast.data.arrays import Arrays
from holdfast.data.source import Source


class Joined(Source):
    """Each row flat: the others, in their order, and then x. Bytes of the others are never
    rescaled.

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
        self.shape = (sum(map(math.prod, self.inputs)),)

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.x.rows(start, stop)
        beside = [
            other.rows(start, stop)[0].reshape(len(x), -1).astype(x.dtype) for other in self.others
        ]
        return np.concatenate([*beside, x.reshape(len(x), -1)], 1), y
