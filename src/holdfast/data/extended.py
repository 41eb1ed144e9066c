"""Rows of a source with further features behind them, all of one value."""

from __future__ import annotations

import math

import numpy as np

from holdfast.data.source import Source


class Extended(Source):
    """Each row of `inner`, flat, and `count` times `value`."""

    def __init__(self, inner: Source, count: int, value: float) -> None:
        self.inner, self.count, self.value = inner, count, value
        self.name, self.class_names = inner.name, inner.class_names
        self.remarks, self.loading = inner.remarks, inner.loading
        self.shape = (math.prod(inner.shape) + count,)

    def __len__(self) -> int:
        return len(self.inner)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.inner.rows(start, stop)
        return np.concatenate(
            [x.reshape(len(x), -1), np.full((len(x), self.count), self.value, x.dtype)], 1
        ), y
