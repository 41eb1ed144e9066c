"""Some rows of a source, as a source of their own."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterator

import numpy as np

from holdfast.data.source import Source
from holdfast.errors import InputError, SpecError

_AT_ONCE = 1 << 20  # rows whose keys are held
_GAMMA = 0x9E3779B97F4A7C15
_MIXED = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


class Part(Source):
    """The rows of `whole` that `ids` [n] names, in this order; they are numbered anew from 0."""

    def __init__(self, whole: Source, ids: np.ndarray, what: str) -> None:
        self._whole, self.ids, self._what = whole, ids, what
        self.name, self.class_names = f"{whole.name} ({what})", whole.class_names
        self.inputs, self.remarks, self.loading = whole.inputs, whole.remarks, whole.loading
        self.columns = whole.columns
        if whole.groups is not None:
            self.groups = whole.groups[ids]

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._whole.shape

    def fitted(self, *, channels: int | None = None, size: tuple[int, int] | None = None) -> Source:
        own = copy.copy(self)
        own._whole = self._whole.fitted(channels=channels, size=size)
        own.remarks = own._whole.remarks
        return own

    def __len__(self) -> int:
        return len(self.ids)

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
        ids = self.ids[start:stop]
        if not len(ids):
            return read(0, 0)
        low, high = int(ids.min()), int(ids.max()) + 1
        if high - low <= 2 * len(ids):
            return tuple(part[ids - low] for part in read(low, high))
        # what lies together is read together, and in the order in which it lies
        rising, place = np.unique(ids, return_inverse=True)
        runs = np.split(rising, np.flatnonzero(np.diff(rising) != 1) + 1)
        parts = [read(int(run[0]), int(run[-1]) + 1) for run in runs]
        return tuple(np.concatenate(columns)[place] for columns in zip(*parts, strict=True))


class Joined(Source):
    """The rows of sources of one kind, those of one after those of the other."""

    def __init__(self, *sources: Source) -> None:
        first = sources[0]
        self.sources, self.name = sources, " and ".join(source.name for source in sources)
        self.shape, self.class_names, self.columns = first.shape, first.class_names, first.columns

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = zip(*(part.rows(a, b) for part, a, b in self._parts(start, stop)), strict=True)
        return np.concatenate(x), np.concatenate(y)

    def labels(self, start: int, stop: int) -> np.ndarray:
        return np.concatenate([part.labels(a, b) for part, a, b in self._parts(start, stop)])

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Source, int, int]]:
        """The sources that hold these rows, and which rows of theirs these are."""
        before = 0
        for source in self.sources:
            low, high = (min(max(at - before, 0), len(source)) for at in (start, stop))
            if low < high or source is self.sources[0]:
                yield source, low, high
            before += len(source)


def at_random(whole: Source, asked: str) -> Part:
    """Rows drawn at random, in ascending order; `asked` is how many and, after a comma, the seed.

    Each row has a key of the seed and its number, and those of the least keys are taken: the same
    on every machine, and a smaller sample lies within a larger one.

    Raises:
        SpecError: `asked` is no such text.
        InputError: there are fewer rows.
    """
    found = re.fullmatch("([0-9]{1,15})(?:,([0-9]{1,18}))?", asked)
    if found is None or not int(found[1]):
        raise SpecError(
            f"random is {asked!r}; expected a count of rows and a seed, such as 5000 or 5000,0."
        )
    count, seed = int(found[1]), int(found[2] or 0)
    if count > len(whole):
        raise InputError(
            f"{count:,} rows at random were asked for, but {whole.name} has {len(whole):,}."
        )
    ids = np.zeros(0, np.int64)
    for start in range(0, len(whole), _AT_ONCE):
        more = np.arange(start, min(start + _AT_ONCE, len(whole)))
        ids = np.concatenate([ids, more])
        ids = ids[_keys(seed, ids).argsort()[:count]]
    part = Part(whole, np.sort(ids), f"{count} rows at random, seed {seed}")
    part.loading = {**whole.loading, "random": f"{count},{seed}"}
    return part


def in_random_order(whole: Source, seed: int) -> Part:
    """All rows, in the order of the keys of `at_random`: the first n are those that it draws."""
    ids = _keys(seed, np.arange(len(whole))).argsort()
    return Part(whole, ids, f"in random order, seed {seed}")


def _keys(seed: int, ids: np.ndarray) -> np.ndarray:
    """A number of each row [n], no two alike: SplitMix64, as in `holdfast.rng`, without torch."""
    word = hashlib.blake2b(f"sample {seed}".encode(), digest_size=8).digest()
    z = (ids.astype(np.uint64) ^ np.uint64(int.from_bytes(word, "big"))) * np.uint64(_GAMMA)
    for shift, factor in _MIXED:
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


def divide(whole: Source, share: float, most: int, seed: int, what: str) -> tuple[Source, Source]:
    """What stays, and a random share of the rows (at least one, and no more than `most`) set
    apart.

    Raises:
        InputError: there is one row alone.
    """
    if len(whole) < 2:
        raise InputError(
            f"{whole.name} has 1 row, but some rows serve as {what} rows; give at least 2."
        )
    count = max(1, min(most, round(share * len(whole))))
    order = np.random.default_rng(seed).permutation(len(whole))
    apart, rest = np.sort(order[:count]), np.sort(order[count:])
    return Part(whole, rest, f"without its {what} rows"), Part(whole, apart, f"{what} rows")
