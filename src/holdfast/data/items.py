"""Data item by item, as datasets of any library give them: pairs (x, y), dicts, pictures."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from holdfast import usercode
from holdfast.data.arrays import to_numpy
from holdfast.data.source import Source, floats
from holdfast.errors import InputError

INPUTS = ("x", "pixel_values", "image", "images", "img", "input", "inputs", "features", "data")
LABELS = ("y", "label", "labels", "target", "targets", "class", "fine_label", "objects")


def pair_of(item: Any, what: str) -> tuple[Any, Any]:
    """The inputs and labels of an item or a batch: a pair, or a dict with one of `INPUTS` and one
    of `LABELS`.

    Raises:
        InputError: it is neither; `what` names it.
    """
    if isinstance(item, Mapping):
        x, y = (next((key for key in known if key in item), None) for known in (INPUTS, LABELS))
        if x is None or y is None:
            raise InputError(
                f"{what} is a dict with {', '.join(map(str, item)) or 'nothing'}; expected inputs "
                f"under one of {', '.join(INPUTS)}, and labels under one of {', '.join(LABELS)}."
            )
        return item[x], item[y]
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    long = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
    raise InputError(
        f"{what} is a {type(item).__name__}{long}; expected a pair (x, y), or a dict such as image "
        "and label."
    )


def is_picture(value: Any) -> bool:
    """Whether it is a picture of Pillow, which is imported only where there is one."""
    return any(
        kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(value).__mro__
    )


class Items(Source):
    """A map-style dataset (`len`, and items (x, y) or dicts), asked item by item; x of the first
    item sets the shape.

    Pictures become bytes [channels, height, width], grey where the first one is.

    Raises:
        InputError: it is empty, raises, gives no pairs, or its inputs differ in shape.
    """

    def __init__(
        self, items: Any, name: str, scale: bool, class_names: tuple[str, ...] | None = None
    ) -> None:
        self._items, self._scale, self.name, self.class_names = items, scale, name, class_names
        self._channels: int | None = None
        self._count: int = usercode.call(f"len of {name}", len, items)
        if not self._count:
            raise InputError(f"{name} is empty: its dataset has no items; expected at least one.")
        self.shape = self.item(0)[0].shape

    def __len__(self) -> int:
        return self._count

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        pairs = [self.item(row) for row in range(start, min(stop, self._count))]
        odd = next((row for row, (x, _) in enumerate(pairs, start) if x.shape != self.shape), None)
        if odd is not None:
            raise InputError(
                f"item {odd} of {self.name} has shape {pairs[odd - start][0].shape}; expected "
                f"{self.shape}, as item 0 has."
            )
        if not pairs:
            return np.empty((0, *self.shape), np.float32), np.empty(0, np.int64)
        x = np.stack([floats(x, self._scale) for x, _ in pairs])
        return x, to_numpy([y for _, y in pairs], f"y of {self.name}")

    def item(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """x [*shape] as it is stored, and its label."""
        what = f"item {row} of {self.name}"
        x, y = pair_of(usercode.call(what, lambda: self._items[row]), what)
        if is_picture(x):
            self._channels = self._channels or channels_of(x, what)
        return numbers_of(x, what, self._channels), to_numpy(y, f"y of {what}")

    def fitted(self, *, channels: int | None = None, size: tuple[int, int] | None = None) -> Source:
        if channels not in (1, 3) or not is_picture(pair_of(self._items[0], "item 0")[0]):
            return self
        own = copy.copy(self)
        own._channels = channels
        own.shape = own.item(0)[0].shape
        return own


def numbers_of(x: Any, what: str, channels: int | None = None) -> np.ndarray:
    """Inputs as an array: a picture as bytes [channels, height, width], a list of them as [n, ...].

    Raises:
        InputError: they are no numbers; `what` names the item.
    """
    if isinstance(x, list) and x and is_picture(x[0]):
        return np.stack([numbers_of(one, what, channels or channels_of(x[0], what)) for one in x])
    if is_picture(x):
        from holdfast.data.images import pixels_of

        image: Any = x
        return pixels_of(image, channels or channels_of(image, what))
    x = to_numpy(x, f"x of {what}")
    if x.dtype.kind not in "biuf" or not x.ndim or not x.size:
        raise InputError(
            f"x of {what} holds {x.dtype} of shape {x.shape}; expected an array of numbers."
        )
    return x


def channels_of(picture: Any, what: str) -> int:
    """1 of a grey picture of Pillow, 3 of one in colour."""
    from holdfast.data.images import picture_of

    return picture_of(picture, what).channels
