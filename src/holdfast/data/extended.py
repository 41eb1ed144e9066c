"""Parameters of a change of each row, all of one value at first; the rows themselves as context."""

from __future__ import annotations

import numpy as np

from holdfast.data.source import Source


class Extended(Source):
    """`value` in each of `shape`, and as context, under `name`, each row of `inner`."""

    def __init__(self, inner: Source, shape: tuple[int, ...], value: float, column: str) -> None:
        self.inner, self.shape, self.value, self.column = inner, shape, value, column
        self.name, self.class_names = inner.name, inner.class_names
        self.remarks, self.loading = inner.remarks, inner.loading

    def __len__(self) -> int:
        return len(self.inner)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = self.inner.rows(start, stop)
        return np.full((len(x), *self.shape), self.value, x.dtype), y

    def context(self, start: int, stop: int) -> dict[str, np.ndarray]:
        return {**self.inner.context(start, stop), self.column: self.inner.rows(start, stop)[0]}
