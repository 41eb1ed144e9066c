"""Some rows of a source, as a source of their own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from holdfast.data.source import Source


class Part(Source):
    """The rows of `whole` that `ids` names, in this order; they are numbered anew from 0."""

    def __init__(self, whole: Source, ids: np.ndarray, what: str) -> None:
        self._whole, self._ids = whole, ids
        self.name, self.shape, self.class_names = (
            f"{whole.name} ({what})",
            whole.shape,
            whole.class_names,
        )
        self.inputs, self.remarks, self.loading = whole.inputs, whole.remarks, whole.loading
        self.columns = whole.columns
        if whole.groups is not None:
            self.groups = whole.groups[ids]

    def __len__(self) -> int:
        return len(self._ids)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = self._read(self._whole.rows, start, stop)
        return x, y

    def labels(self, start: int, stop: int) -> np.ndarray:
        return self._read(lambda a, b: (self._whole.labels(a, b),), start, stop)[0]

    def context(self, start: int, stop: int) -> dict[str, np.ndarray]:
        names = self._whole.context(0, 0)

        def columns(a: int, b: int) -> tuple[np.ndarray, ...]:
            return tuple(self._whole.context(a, b).values())

        return dict(zip(names, self._read(columns, start, stop), strict=True))

    def _read(
        self, read: Callable[[int, int], tuple[np.ndarray, ...]], start: int, stop: int
    ) -> tuple[np.ndarray, ...]:
        ids = self._ids[start:stop]
        if not len(ids):
            return read(0, 0)
        low, high = int(ids.min()), int(ids.max()) + 1
        if high - low <= 2 * len(ids):
            return tuple(part[ids - low] for part in read(low, high))
        # what lies together is read together
        runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
        parts = [read(int(run[0]), int(run[-1]) + 1) for run in runs]
        return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def divide(whole: Source, share: float, most: int, seed: int, what: str) -> tuple[Source, Source]:
    """What stays, and a random share of the rows (at least one, and no more than `most`) set
    apart."""
    count = max(1, min(most, round(share * len(whole))))
    order = np.random.default_rng(seed).permutation(len(whole))
    apart, rest = np.sort(order[:count]), np.sort(order[count:])
    return Part(whole, rest, f"without its {what} rows"), Part(whole, apart, f"{what} rows")
