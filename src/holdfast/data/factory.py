"""The user's own data: what `path/file.py:factory` or `package.module:factory` returns. This form runs code."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from holdfast import usercode
from holdfast.data.arrays import Arrays, to_numpy
from holdfast.data.source import Source, floats
from holdfast.errors import InputError


def open_factory(name: str, scale: bool) -> Source:
    """Call the factory that `name` spells; it gives (x, y), a map-style dataset, or a `Source`.

    Raises:
        InputError: no such file, module or factory; it raised; or it returned something else.
    """
    spec = os.path.expanduser(name)
    make = usercode.find(spec)
    with usercode.importable(usercode.home(spec)):
        made = usercode.call(name, make)
    if isinstance(made, Source):
        return made
    if isinstance(made, tuple) and len(made) == 2:
        return Arrays(to_numpy(made[0], f"x of {name}"), to_numpy(made[1], f"y of {name}"), name, scale=scale)
    if hasattr(made, "__len__") and hasattr(made, "__getitem__"):
        return Dataset(made, name, scale)
    raise InputError(f"{name} returned {type(made).__name__}; expected (x, y), a dataset of (x, y) items, or a Source.")


class Dataset(Source):
    """A map-style dataset (`len`, and items (x, y)), asked item by item; x of the first item sets the shape.

    Raises:
        InputError: it is empty, raises, gives no pairs, or its inputs differ in shape.
    """

    def __init__(self, items: Any, name: str, scale: bool) -> None:
        self._items, self._scale, self.name = items, scale, name
        self._count: int = usercode.call(f"len of {name}", len, items)
        if not self._count:
            raise InputError(f"{name} is empty: its dataset has no items; expected at least one.")
        self.shape = self._item(0)[0].shape

    def __len__(self) -> int:
        return self._count

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = [self._item(row) for row in range(start, min(stop, self._count))]
        odd = next((row for row, (x, _) in enumerate(pairs, start) if x.shape != self.shape), None)
        if odd is not None:
            shape = pairs[odd - start][0].shape
            raise InputError(f"item {odd} of {self.name} has shape {shape}; expected {self.shape}, as item 0 has.")
        x = np.stack([x for x, _ in pairs]) if pairs else np.empty((0, *self.shape), np.float32)
        return x, to_numpy([y for _, y in pairs], f"y of {self.name}")

    def _item(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        what = f"item {row} of {self.name}"
        item = usercode.call(what, lambda: self._items[row])
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise InputError(f"{what} is {type(item).__name__}; expected a pair (x, y).")
        x, y = to_numpy(item[0], f"x of {what}"), to_numpy(item[1], f"y of {what}")
        if x.dtype.kind not in "biuf" or not x.ndim or not x.size:
            raise InputError(f"x of {what} holds {x.dtype} of shape {x.shape}; expected an array of numbers.")
        return floats(x, self._scale), y
