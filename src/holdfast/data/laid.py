"""The same images with their axes in another order: channels first, channels last, or none where
there is one."""

from __future__ import annotations

import numpy as np

from holdfast.data.source import Source
from holdfast.errors import InputError


class Laid(Source):
    """The rows of `inner` as arrays of another shape: see `arranged`."""

    def __init__(self, inner: Source, shape: tuple[int, ...]) -> None:
        self._inner, self.shape = inner, shape
        self.name, self.class_names, self.groups = inner.name, inner.class_names, inner.groups
        self.remarks, self.loading = inner.remarks, inner.loading

    def __len__(self) -> int:
        return len(self._inner)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = self._inner.rows(start, stop)
        return arranged(x, self.shape), y

    def labels(self, start: int, stop: int) -> np.ndarray:
        return self._inner.labels(start, stop)


def laid_as(source: Source, shape: tuple[int, ...], taker: str = "the model takes") -> Source:
    """The source with inputs of this shape, where they are the same images with their axes in
    another order.

    Args:
        taker: who has this shape, for the message.

    Raises:
        InputError: they are not; the sentence names both shapes.
    """
    if tuple(source.shape) == tuple(shape) or source.inputs is not None:
        return source
    try:
        arranged(np.empty((0, *source.shape)), shape)
    except ValueError:
        raise InputError(
            f"inputs of {source.name} are {tuple(source.shape)}, but {taker} {tuple(shape)}."
        ) from None
    return Laid(source, tuple(shape))


def arranged(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Images [n, *own] as [n, *shape]: channels moved to the other end, or an axis of one channel
    added or left out.

    Raises:
        ValueError: `shape` is no such arrangement of them.
    """
    own = x.shape[1:]
    if own == shape:
        return x
    if len(own) == len(shape) == 3 and own[1:] + own[:1] == shape:
        return np.ascontiguousarray(np.moveaxis(x, 1, -1))
    if len(own) == len(shape) == 3 and own[-1:] + own[:-1] == shape:
        return np.ascontiguousarray(np.moveaxis(x, -1, 1))
    plane, image = sorted((own, shape), key=len)
    if len(plane) == 2 and image in ((1, *plane), (*plane, 1)):
        return x.reshape(-1, *shape)
    raise ValueError(f"{own} is not {shape}")
